"""The share of a trace in which a GPU works."""

import pytest

from benchmarks.busy import busy


def event(start: float, length: float, name: str = "kernel", cat: str = "kernel") -> dict:
    return {"ts": start, "dur": length, "name": name, "cat": cat}


def test_streams_side_by_side_count_once_and_gaps_are_found():
    found = busy(
        [
            event(15, 10, "overlaps"),
            event(0, 20, "long"),
            event(5, 5, "inside"),
            event(30, 10, "copy", cat="gpu_memcpy"),
            event(41, 9, "last"),
            event(0, 1000, "aten::mm", cat="cpu_op"),
            event(0, 50, "range", cat="gpu_user_annotation"),
        ]
    )
    assert (found.whole, found.working, found.share) == (50, 44, 0.88)
    assert [(gap.length, gap.after, gap.before) for gap in found.gaps] == [(5, "overlaps", "copy"), (1, "copy", "last")]


def test_a_trace_of_a_cpu_is_refused():
    with pytest.raises(ValueError, match="no work of a GPU"):
        busy([event(0, 5, cat="cpu_op")])
