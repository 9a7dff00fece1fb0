"""The live state of a run, driven by the hooks and a clock of our own."""

import json

import pytest

from wan_core.errors import Interrupted
from wan_core.estimate import Part, RunEstimate
from wan_core.history import Task
from wan_core.hooks import PlanEvent, StepEvent
from wan_core.live import LiveRun, LiveState, Memory
from wan_core.report import Decision
from wan_core.specs import Expert

SPLIT = (Expert.HIGH, Expert.HIGH, Expert.LOW, Expert.LOW)


class Watched:
    """A run with its states, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.states: list[LiveState] = []
        self.run = LiveRun(self.states.append, lambda: Memory(used=1, peak=2, total=3), lambda: self.now)

    def plan(self, compile_mode: str = "off", warnings: tuple[str, ...] = (), first_step: int = 0) -> None:
        compiled = Decision(topic="compile", asked="default", chosen=compile_mode, reason="a reason")
        self.run.on_plan(
            PlanEvent(
                device="cpu",
                sigmas=(1.0, 0.9, 0.8, 0.5, 0.0),
                split=SPLIT,
                boundary=0.875,
                peak_bytes=0,
                first_step=first_step,
                decisions=(compiled,),
                warnings=warnings,
            )
        )

    def step(self, index: int, seconds: float, switching: float = 0.0) -> None:
        self.now += seconds - switching
        self.run.on_step(
            StepEvent(
                index=index, num_steps=4, expert=SPLIT[index], sigma=1.0, timestep=1000.0, seconds=seconds,
                denoised=None,
            )
        )  # fmt: skip

    @property
    def phases(self) -> list[str]:
        return list(dict.fromkeys(state.phase for state in self.states))


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_run_from_begin_to_end(watched: Watched) -> None:
    with watched.run:
        watched.plan()
        watched.run.on_phase("load")
        watched.run.on_load("high", 10, 10)
        watched.run.on_phase("sample")
        watched.step(0, 1.0)
        watched.step(1, 1.0)
        watched.now += 5.0
        watched.run.on_load("low", 1, 2)
        assert watched.states[-1].phase == "switch" and watched.states[-1].expert is Expert.LOW
        watched.run.on_load("low", 2, 2)
        watched.step(2, 1.0)
        watched.step(3, 1.0)
    assert watched.phases == ["prepare", "load", "sample", "switch", "finish", "done"]
    assert watched.states[-1].is_over and watched.states[-1].seconds_left is None
    assert watched.states[-1].num_done == 4


def test_the_switch_is_no_part_of_a_step(watched: Watched) -> None:
    watched.plan()
    watched.run.on_phase("sample")
    watched.step(0, 1.0)
    watched.step(1, 1.0)
    watched.run.on_load("low", 1, 2)
    watched.now += 30.0
    watched.run.on_load("low", 2, 2)
    watched.step(2, 31.0, switching=30.0)
    assert watched.states[-1].seconds_per_step == pytest.approx(1.0)


TASK = Task(kind="a", size="b", work=1.0)
ESTIMATE = RunEstimate(
    parts=(
        Part(name="high noise step", stage="sample", task=TASK, seconds=2.0, count=2),
        Part(name="low noise step", stage="sample", task=TASK, seconds=1.0, count=2),
        Part(name="decode", stage="decode", task=TASK, seconds=7.0),
    )
)


def test_time_left_is_the_countdowns(watched: Watched) -> None:
    watched.plan()
    assert watched.states[-1].seconds_left is None
    watched.run.expect(ESTIMATE)
    watched.run.on_phase("sample")
    assert watched.states[-1].seconds_left == pytest.approx(13.0)
    watched.step(0, 2.0)
    assert watched.states[-1].seconds_left == pytest.approx(11.0)


def test_a_run_that_goes_on_begins_at_its_step(watched: Watched) -> None:
    watched.run.expect(ESTIMATE)
    watched.plan(first_step=3)
    watched.run.on_phase("sample")
    assert watched.states[-1].seconds_left == pytest.approx(1.0 + 7.0)
    assert (watched.states[-1].num_done, watched.states[-1].expert) == (3, Expert.LOW)


def test_compiling_has_a_phase_of_its_own(watched: Watched) -> None:
    watched.plan(compile_mode="default")
    watched.run.on_phase("sample")
    assert watched.states[-1].phase == "compile"
    watched.step(0, 60.0)
    assert watched.states[-1].phase == "sample"


def test_warnings_are_collected_once_each_with_what_was_replaced(watched: Watched) -> None:
    watched.plan(warnings=("too few steps",))
    watched.run.on_warning("out of memory: guidance passes one after the other")
    watched.run.on_warning("too few steps")
    assert watched.states[-1].warnings == (
        "too few steps",
        "compile: off instead of default (a reason)",
        "out of memory: guidance passes one after the other",
    )


def test_loading_is_shown_ten_times_a_second_at_most(watched: Watched) -> None:
    watched.run.on_phase("load")
    before = len(watched.states)
    for done in range(1, 1000):
        watched.now += 0.001
        watched.run.on_load("high", done, 1000)
    watched.run.on_load("high", 1000, 1000)
    assert 10 <= len(watched.states) - before <= 13
    assert watched.states[-1].loading.done == 1000


def test_loading_has_its_mean_rate_from_the_second_report_on(watched: Watched) -> None:
    watched.run.on_phase("load")
    watched.run.on_load("high", 500, 4500)
    assert watched.states[-1].loading.bytes_per_second is None
    watched.now += 2.0
    watched.run.on_load("high", 2500, 4500)
    assert watched.states[-1].loading.bytes_per_second == 1000.0
    watched.now += 0.5
    watched.run.on_load("high", 4500, 4500)
    assert watched.states[-1].loading.bytes_per_second == 1600.0
    watched.run.on_load("low", 700, 4500)  # another one is timed anew
    assert watched.states[-1].to_dict()["loading"] == {
        "what": "low", "done": 700, "total": 4500, "bytes_per_second": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "phase"), [(ValueError, "failed"), (Interrupted, "stopped"), (KeyboardInterrupt, "stopped")]
)
def test_how_it_ended_is_said(watched: Watched, error: type[BaseException], phase: str) -> None:
    with pytest.raises(error), watched.run:
        raise error
    assert watched.states[-1].phase == phase


def test_every_state_is_json(watched: Watched) -> None:
    # An event that is none would end the host's whole server.
    with watched.run:
        watched.plan(warnings=("a",))
        watched.run.on_phase("sample")
        watched.run.on_load("low", 1, 2)
        watched.step(0, 1.0)
    for state in watched.states:
        json.dumps(state.to_dict(), allow_nan=False)
    assert watched.states[-1].to_dict()["plan"]["split"] == ["high", "high", "low", "low"]
