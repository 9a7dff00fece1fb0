"""The report: degradations are visible, times add up, JSON holds all of it."""

import json

import pytest

from wan_core.report import Decision, Rejection, Report, StepTiming


def _steps(*rows: tuple[str, float]) -> list[StepTiming]:
    return [
        StepTiming(index=index, expert=expert, timestep=1000.0 - index, seconds=seconds)
        for index, (expert, seconds) in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("asked", "chosen", "degraded"), [("auto", "flash", False), ("flash", "flash", False), ("cudnn", "flash", True)]
)
def test_degraded_means_that_another_option_was_named(asked, chosen, degraded):
    assert Decision(topic="attention", asked=asked, chosen=chosen).degraded is degraded


def test_a_decision_reads_as_one_line_with_its_reasons():
    decision = Decision(
        topic="attention", asked="cudnn", chosen="near8", reason="fastest left", quality="near",
        rejected=(Rejection(name="cudnn", reason="needs an NVIDIA GPU"),),
    )  # fmt: skip
    assert str(decision) == "attention: near8 instead of cudnn [near] (fastest left); not cudnn: needs an NVIDIA GPU"


def test_phases_of_one_name_add_up_also_when_one_fails(monkeypatch):
    clock = iter([10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr("wan_core.report.perf_counter", lambda: next(clock))
    report = Report()
    with report.phase("decode"):
        pass
    with pytest.raises(ZeroDivisionError), report.phase("decode"):
        raise ZeroDivisionError
    assert report.seconds == {"decode": 5.0}


def test_seconds_per_step_is_the_median_without_the_first_step_of_each_expert():
    report = Report(
        steps=_steps(("high", 60.0), ("high", 2.0), ("high", 4.0), ("high", 3.0), ("low", 20.0), ("low", 7.0))
    )
    assert report.seconds_per_step("high") == 3.0
    assert report.seconds_per_step("low") == 7.0


def test_a_single_step_counts_although_it_is_the_first():
    assert Report(steps=_steps(("high", 60.0))).seconds_per_step("high") == 60.0
    assert Report().seconds_per_step("high") is None


def test_json_holds_decisions_speed_and_memory():
    report = Report(
        decisions=[Decision(topic="attention", asked="cudnn", chosen="flash")],
        peak_bytes={"sample": 3 * 2**30},
        steps=_steps(("high", 9.0), ("high", 2.0)),
        flops_per_step={"high": 4e12, "low": 4e12},
    )
    data = json.loads(report.to_json())
    assert data["decisions"][0]["degraded"] is True
    assert data["speed"] == {"high": {"seconds_per_step": 2.0, "tflops": 2.0}}
    assert data["steps"][1] == {"index": 1, "expert": "high", "timestep": 999.0, "seconds": 2.0}
    assert data["peak_bytes"] == {"sample": 3 * 2**30}


def test_text_puts_warnings_first_and_marks_what_was_degraded():
    report = Report(
        warnings=["shift 12 at 4 steps"],
        decisions=[
            Decision(topic="attention", asked="cudnn", chosen="flash"),
            Decision(topic="guidance", asked="auto", chosen="batched"),
        ],
        seconds={"sample": 4.0},
        peak_bytes={"sample": 2**30, "load": 2**29},
        predicted_bytes={"sample": 2**30 + 2**25},
        steps=_steps(("high", 9.0), ("high", 2.0)),
        flops_per_step={"high": 4e12},
    )
    assert report.to_text().splitlines() == [
        "! shift 12 at 4 steps",
        "! attention: flash instead of cudnn",
        "guidance: batched",
        "high noise: 2 steps, 2 s/step, 2 TFLOP/s",
        "sample: 4.00 s",
        "peak memory, sample: 1.00 GiB, 1.03 predicted",
        "peak memory, load: 0.50 GiB",
    ]


@pytest.mark.parametrize(
    ("high", "low", "cost"),
    [
        ([9.0, 2.0, 2.0, 2.5], [3.25, 3.0, 3.0], 0.75),
        ([9.0, 2.0], [3.25, 3.0], None),  # the only other high step compiles
        ([9.0, 2.0, 2.0], [3.0], None),
        ([9.0, 2.0, 2.0], [], None),
        ([], [], None),
    ],
)
def test_the_switch_is_told_beside_normal_steps(high, low, cost):
    rows = [("high", seconds) for seconds in high] + [("low", seconds) for seconds in low]
    report = Report(steps=_steps(*rows))
    assert report.switch_cost == report.to_dict()["switch_cost"] == cost
    assert ("expert switch: +0.75 s" in report.to_text()) is (cost is not None)
