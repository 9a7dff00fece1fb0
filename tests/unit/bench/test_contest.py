"""Who runs when, beside whom, and what becomes of those who fail."""

import json

import pytest
import torch

from tests.unit.bench.fakes import TASK, Fake, failing, out_of_memory
from wan_core.bench import contest as module
from wan_core.bench.contest import Conduct, Contest, Say
from wan_core.bench.result import Row
from wan_core.bench.torch_settings import TorchSettings
from wan_core.errors import OutOfMemoryError, UnsupportedError

QUICK = Conduct(repeats=2, breakdown=False)


def held(*fakes: Fake, conduct: Conduct = QUICK, part: str = "step", say: Say = lambda line: None) -> dict[str, Row]:
    contest = Contest(part, TASK, conduct, say)
    for _ in contest.run(fakes):
        pass
    return {row.name: row for row in contest.result.rows}


def trio(**of_b: object) -> tuple[list[str], tuple[Fake, Fake, Fake]]:
    log: list[str] = []
    return log, (Fake("a", log), Fake("b", log, **of_b), Fake("c", log))


def test_contestants_take_turns():
    log, fakes = trio()
    rows = held(*fakes)
    cold = ["build a", "run a", "build b", "run b", "build c", "run c"]
    assert log == [*cold, "run a", "run b", "run c", "run a", "run b", "run c"]
    assert rows["b"].beside == ("a", "c")
    assert [len(row.seconds) for row in rows.values()] == [2, 2, 2]
    assert rows["a"].slowdown == 1.0
    assert rows["b"].slowdown == pytest.approx(rows["b"].median / rows["a"].median)


def test_the_first_run_is_the_warm_up_and_is_not_among_the_timed():
    (row,) = held(Fake("a")).values()
    assert row.cold_seconds > 0
    assert row.cold_seconds not in row.seconds
    assert row.build_seconds > 0


def test_who_takes_no_part_has_no_row():
    _, fakes = trio(parts=("step",))
    assert list(held(*fakes, part="vae")) == ["a", "c"]


def test_who_does_not_fit_beside_all_runs_beside_the_first():
    log, fakes = trio()
    said: list[str] = []
    rows = held(*fakes[:2], Fake("c", log, builds=[out_of_memory()]), say=said.append)
    assert "step: c waits until b has made room beside a" in said
    assert log[4:] == [
        "build c", "run a", "run b", "run a", "run b",
        "build c", "run c", "run a", "run c", "run a", "run c",
    ]  # fmt: skip
    assert (rows["b"].beside, rows["c"].beside) == (("a",), ("a",))
    assert (len(rows["a"].seconds), len(rows["c"].seconds), rows["c"].problem) == (4, 2, None)


def test_who_does_not_fit_beside_the_first_runs_alone_at_the_end():
    log, fakes = trio(builds=[out_of_memory()])
    rows = held(*fakes)
    assert log == [
        "build a", "run a", "build b", "build c", "run c", "run a", "run c", "run a", "run c",
        "build b", "run b", "run b", "run b",
    ]  # fmt: skip
    assert rows["b"].beside == ()
    assert rows["b"].slowdown == pytest.approx(rows["b"].median / rows["a"].median)


def test_who_never_fits_is_a_row_with_the_reason():
    log, fakes = trio(builds=[out_of_memory()] * 3)
    rows = held(*fakes)
    assert rows["b"].problem == "does not fit: CUDA out of memory. Tried to allocate 57.00 GiB."
    assert (rows["b"].seconds, rows["b"].slowdown) == ([], None)
    assert [len(rows[name].seconds) for name in "ac"] == [2, 2]


def test_a_plan_of_ours_that_does_not_fit_is_a_row_too():
    log, fakes = trio(is_peer=False, builds=[failing(OutOfMemoryError("this run needs 30 GiB more"))] * 3)
    assert held(*fakes)["b"].problem == "does not fit: this run needs 30 GiB more"


def test_where_the_first_does_not_fit_the_next_one_leads():
    rows = held(Fake("a", builds=[out_of_memory()]), Fake("b"))
    assert rows["a"].problem.startswith("does not fit")
    assert (rows["b"].slowdown, rows["b"].difference) == (1.0, None)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (RuntimeError("no kernel\nfor this"), "RuntimeError: no kernel"),
        (AttributeError("moved"), "AttributeError: moved"),
        (UnsupportedError("diffusers cannot be imported here"), "diffusers cannot be imported here"),
    ],
)
def test_a_peer_that_fails_is_a_row_with_the_reason(error, problem):
    log, fakes = trio(builds=[failing(error)])
    rows = held(*fakes)
    assert rows["b"].problem == problem
    assert log.count("build b") == 1
    assert [len(rows[name].seconds) for name in "ac"] == [2, 2]


def test_a_peer_that_fails_in_a_turn_keeps_the_times_before():
    log, fakes = trio(runs=[None, None, failing(RuntimeError("lost"))])
    rows = held(*fakes, conduct=Conduct(repeats=3, breakdown=False))
    assert (rows["b"].problem, len(rows["b"].seconds), log.count("run b")) == ("RuntimeError: lost", 1, 3)
    assert rows["b"].slowdown is not None
    assert len(rows["c"].seconds) == 3


def test_a_kernel_of_ours_that_breaks_is_our_defect():
    with pytest.raises(RuntimeError, match="ours"):
        held(Fake("a", is_peer=False, builds=[failing(RuntimeError("ours"))]))


def test_outputs_are_compared_with_the_firsts():
    rows = held(Fake("a"), Fake("b", value=1.01))
    assert (rows["a"].difference, rows["b"].difference) == (None, pytest.approx(0.01))


def test_an_output_that_is_not_finite_is_no_result():
    rows = held(Fake("a"), Fake("b", value=float("nan")))
    assert rows["b"].problem == "RuntimeError: its output has numbers that are not finite"


def test_there_is_something_to_write_after_every_contestant():
    contest = Contest("step", TASK, QUICK, lambda line: None)
    seen = [[row.cold_seconds is not None for row in contest.result.rows] for _ in contest.run(trio()[1])]
    assert seen == [[True, False, False], [True, True, False], [True, True, True], [True, True, True]]


def test_a_contestants_switches_are_set_for_its_turns_alone():
    before, ours = TorchSettings.current(), torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not ours
    its = TorchSettings.current()
    before.apply()
    seen: list[tuple[str, bool]] = []

    def look(name: str):
        return lambda: seen.append((name, torch.backends.cudnn.benchmark))

    held(Fake("a", runs=[look("a")] * 3), Fake("b", runs=[look("b")] * 3, settings=its))
    assert set(seen) == {("a", ours), ("b", not ours)}
    assert TorchSettings.current() == before


def test_one_run_of_each_is_profiled_and_its_trace_kept(tmp_path):
    log, fakes = trio()
    conduct = Conduct(repeats=1, trace=tmp_path / "trace.json")
    rows = held(*fakes[:2], conduct=conduct)
    assert log[-2:] == ["run a", "run b"]
    assert all(row.breakdown.whole > 0 for row in rows.values())
    assert {path.name for path in tmp_path.iterdir()} == {"trace.json", "trace-b.json"}
    assert "traceEvents" in json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))


def test_a_contestant_that_leaves_the_others_no_room_is_sent_away(monkeypatch):
    """Weights of 40 each on a device of 100; a run of the first takes 30 more."""
    weights = {"a": 0, "b": 0}
    log: list[str] = []

    def holding(name: str):
        return lambda: weights.__setitem__(name, 40)

    monkeypatch.setattr(module, "allocated", lambda device: sum(weights.values()))
    monkeypatch.setattr(module, "capacity", lambda device: 100)
    monkeypatch.setattr(module, "peak", lambda device: sum(weights.values()) + 30)
    a, b = Fake("a", log, builds=[holding("a")]), Fake("b", log, builds=[holding("b"), None])
    rows = held(a, b)
    assert log[:4] == ["build a", "run a", "build b", "run a"]
    assert log.count("build b") == 2
    assert (rows["a"].weight_bytes, rows["a"].peak_bytes) == (40, 70)
