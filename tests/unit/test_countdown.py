"""The time left of a run: what was expected at first, and more and more what is seen."""

import pytest
import torch

from wan_core.countdown import Countdown
from wan_core.estimate import Part, RunEstimate
from wan_core.history import Task
from wan_core.hooks import StepEvent
from wan_core.specs import Expert


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def part(name: str, stage: str, seconds: float, count: int = 1) -> Part:
    return Part(
        name=name, stage=stage, task=Task(kind=name, size="", work=1.0), seconds=seconds, count=count, runs=1,
        source="learned",
    )  # fmt: skip


ESTIMATE = RunEstimate(
    parts=(
        part("text", "text", 3.0),
        part("build", "build", 1.0),
        part("load", "load", 10.0),
        part("first step", "sample", 8.0),
        part("high noise step", "sample", 2.0, 3),
        part("switch", "sample", 4.0),
        part("low noise step", "sample", 1.0, 2),
        part("decode", "decode", 6.0),
        part("save", "decode", 1.0),
    )  # fmt: skip
)


def step(index: int, seconds: float) -> StepEvent:
    expert = Expert.HIGH if index < 3 else Expert.LOW
    return StepEvent(
        index=index, num_steps=5, expert=expert, sigma=0.9, timestep=900.0, seconds=seconds, denoised=torch.zeros(1)
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def countdown(clock) -> Countdown:
    return Countdown(ESTIMATE, clock)


def test_before_anything_happens_it_is_the_estimate(countdown, clock):
    assert countdown.num_steps == 5
    assert countdown.seconds_left() == ESTIMATE.seconds == 41.0
    clock.now += 1.0
    assert countdown.seconds_left() == 40.0


def test_phases_that_are_over_take_no_more_time_and_late_ones_only_their_own(countdown, clock):
    countdown.on_phase("text")
    clock.now += 30.0
    assert countdown.seconds_left() == 38.0
    countdown.on_phase("load")
    assert countdown.seconds_left() == 37.0
    countdown.on_phase("unheard of")
    clock.now += 4.0
    assert countdown.seconds_left() == 33.0


def test_steps_that_were_seen_replace_those_that_were_expected(countdown, clock):
    countdown.on_phase("sample")
    assert countdown.seconds_left() == 8.0 + 6.0 + 4.0 + 2.0 + 7.0
    clock.now += 3.0
    assert countdown.seconds_left() == 24.0
    countdown.on_step(step(0, 12.0))  # the first step compiles: nothing to learn for the others
    assert countdown.seconds_left() == 4.0 + 4.0 + 2.0 + 7.0
    countdown.on_step(step(1, 4.0))  # twice what was expected, so the other expert is expected to be as slow
    assert countdown.seconds_left() == 4.0 + 4.0 + 4.0 + 7.0
    countdown.on_step(step(2, 4.0))
    countdown.on_step(step(3, 6.0))  # with the switch
    assert countdown.seconds_left() == 2.0 + 7.0
    countdown.on_step(step(4, 1.5))
    assert countdown.seconds_left() == 7.0


def test_a_step_that_takes_too_long_does_not_eat_into_later_ones(countdown, clock):
    countdown.on_phase("sample")
    for index in range(2):
        countdown.on_step(step(index, 2.0))
    clock.now += 60.0
    assert countdown.seconds_left() == 4.0 + 2.0 + 7.0


def test_a_decode_is_corrected_by_its_own_pace(countdown, clock):
    countdown.on_phase("decode")
    assert countdown.seconds_left() == 7.0
    clock.now += 7.0  # half is done in twice the time
    countdown.on_chunk(2, 4)
    assert countdown.seconds_left() == pytest.approx(0.5 * (7.0 + 0.5 * 7.0))
    countdown.on_chunk(4, 4)
    assert countdown.seconds_left() == 0.0
