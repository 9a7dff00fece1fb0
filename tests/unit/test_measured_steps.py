"""What benchmarks make of measured steps: what a run takes beside them, and what the switch costs."""

import pytest

from benchmarks.bench_presets import switch_line
from benchmarks.bench_whole_run import beside_steps
from wan_core.report import StepTiming


def test_parts_sum_to_what_is_beside_normal_steps():
    steps = [2.5, 2.0, 2.0, 2.25, 2.0]
    seconds = {"text": 0.5, "build": 0.25, "load": 0.75, "build, load and sample": 12.0, "decode and MP4": 3.0}
    parts = beside_steps(16.0, steps, seconds)
    assert parts == {
        "text": 0.5,
        "the first expert made ready": 1.0,
        "first step, and the switch": 0.75,
        "around the steps": 0.25,
        "decode and MP4": 3.0,
        "plan, and the rest": 0.5,
    }
    assert sum(parts.values()) == pytest.approx(16.0 - 5 * 2.0)


def timings(experts: str, seconds: list[float]) -> list[StepTiming]:
    return [
        StepTiming(index=index, expert=expert, timestep=0.0, seconds=each)
        for index, (expert, each) in enumerate(zip(experts, seconds, strict=True))
    ]


def test_the_switch_costs_what_the_steps_around_it_take_more():
    line = switch_line(timings("hhll", [2.5, 2.25, 2.125, 2.0]))
    assert line == "the switch costs +0.38 s (steps 2 and 3, compared with step 4)"


@pytest.mark.parametrize("experts", ["hhhh", "hhhl"])
def test_a_switch_without_a_normal_step_behind_it_is_not_measured(experts):
    assert "not measured" in switch_line(timings(experts, [2.0] * 4))
