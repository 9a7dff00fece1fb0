"""Memory presets under a real limit of the process: they run, and hold what was predicted. Some seconds each.

At real width with few blocks; what the other blocks would add is arithmetic (`benchmarks/bench_memory.py`, which also
makes the table of the results, with more cases).
"""

import pytest

from benchmarks.bench_memory import Cases, give_back


@pytest.fixture(scope="module")
def cases():
    yield Cases("cuda:0")
    give_back()


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ["80gb", "40gb", "24gb", "16gb"])
def test_a_preset_keeps_to_its_card_and_to_its_prediction(cases, name, batch):
    row = cases.run(name, "480p", batch)
    assert row.measured, f"out of memory: {row}"
    assert 0 <= row.over <= 0.05, row
