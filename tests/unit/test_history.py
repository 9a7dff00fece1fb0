"""The local history: what it says of a task, what it keeps and for how long, and that nothing about its file hurts."""

import json

import pytest

from wan_core import history
from wan_core.history import MAX_KINDS, MAX_RUNS, MAX_SIZES, History, Past, Task
from wan_core.machine_file import MAX_MACHINES

STEP = Task(kind="step", size="1x5x12x12", work=100.0)


def past(*seconds: float, work: float = 100.0) -> Past:
    return Past(work=work, seconds=seconds)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [((4.0,), 4.0), ((4.0, 2.0), 2.0), ((4.0, 2.0, 2.2), 2.2), ((9.0, 2.0, 30.0, 2.2, 2.1), 2.2)],
)
def test_the_first_run_and_one_slow_run_do_not_decide(seconds, expected):
    assert past(*seconds).expected == expected


def test_a_task_that_ran_is_known_by_its_runs_and_another_size_in_proportion():
    known = History(kinds={"step": {"small": past(1.0, work=10.0), "1x5x12x12": past(8.0, 8.0)}})
    assert known.expect(STEP) == history.Expectation(seconds=8.0, runs=2)
    # Twice the work of the nearer size, not twenty times that of the other.
    twice = Task(kind="step", size="1x9x12x12", work=200.0)
    assert known.expect(twice) == history.Expectation(seconds=16.0, runs=0)
    assert known.expect(Task(kind="other step", size="1x5x12x12", work=100.0)) is None


def test_only_the_last_runs_sizes_and_kinds_are_kept():
    known = History()
    for run in range(MAX_RUNS + 3):
        known = known.with_runs([(STEP, float(run))])
    assert known.kinds["step"][STEP.size].seconds == tuple(map(float, range(3, MAX_RUNS + 3)))
    known = known.with_runs((Task(kind="step", size=str(size), work=1.0), 1.0) for size in range(MAX_SIZES))
    assert len(known.kinds["step"]) == MAX_SIZES and STEP.size not in known.kinds["step"]
    known = known.with_runs((Task(kind=str(kind), size="", work=1.0), 1.0) for kind in range(MAX_KINDS))
    assert len(known.kinds) == MAX_KINDS and "step" not in known.kinds


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("WAN_VELOCITY_CACHE", str(tmp_path))
    return tmp_path


def test_what_is_kept_is_found_again_on_this_machine_alone(cache, machine):
    assert history.keep([(STEP, 2.5)], machine("h200")) is None
    assert history.keep([(STEP, 2.0)], machine("h200")) is None
    assert history.read(machine("h200")).kinds["step"][STEP.size] == past(2.5, 2.0)
    assert history.read(machine("a100")) == History()
    assert history.read(machine("h200", libraries=(("triton", "9.9"),))) == History()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"machines": 3}', "null", '{"machines": {"KEY": {"step": {"s": {"seconds": [1]}}}}}',
             '{"machines": {"KEY": {"step": {"s": {"work": 1, "seconds": []}}}}}',
             '{"machines": {"KEY": {"step": {"s": {"work": 1, "seconds": ["NaN"]}}}}}'],
)  # fmt: skip
def test_a_damaged_file_is_no_history_and_is_replaced(cache, machine, text):
    hardware = machine("h200")
    (cache / "history.json").write_text(text.replace("KEY", history.FILE.key(hardware)), encoding="utf-8")
    found = history.read(hardware)
    assert not found.kinds and found.notes == ("history.json in the cache folder cannot be read and is ignored",)
    assert history.keep([(STEP, 2.0)], hardware) is None
    assert history.read(hardware) == History(kinds={"step": {STEP.size: past(2.0)}})


def test_a_folder_that_cannot_be_written_is_a_note(monkeypatch, tmp_path, machine):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WAN_VELOCITY_CACHE", str(tmp_path / "file" / "cache"))
    note = history.keep([(STEP, 2.0)], machine("h200"))
    assert note and note.startswith("the times of this run are not kept: ")


def test_times_that_make_no_sense_are_not_kept(cache, machine):
    assert history.keep([(STEP, float("nan")), (STEP, -1.0)], machine("h200")) is None
    assert not (cache / "history.json").exists()


def test_old_machines_go_and_the_file_stays_small(cache, machine):
    for version in range(MAX_MACHINES + 2):
        history.keep([(STEP, 1.0)], machine("h200", libraries=(("triton", str(version)),)))
    kept = json.loads((cache / "history.json").read_text(encoding="utf-8"))["machines"]
    assert len(kept) == MAX_MACHINES and not any("triton 0" in key for key in kept)
