"""The ladder on invented machines: every rung needs less than the one before, and it ends."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.unit.recovery.conftest import out_of_memory
from wan_core.errors import OutOfMemoryError
from wan_core.hardware import Hardware
from wan_core.plan import ExecutionPlan, resolve
from wan_core.profiles import OptimizationProfile, preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.recovery.journal import Journal
from wan_core.recovery.ladder import Ladder, is_out_of_memory, sample_down_the_ladder
from wan_core.report import Report
from wan_core.specs import T2V_A14B_TRANSFORMER
from wan_core.workload import Workload

MachineMaker = Callable[..., Hardware]
SIZES = {
    "1280x720x81": VideoSize(width=1280, height=720, num_frames=81),
    "small": VideoSize(width=256, height=256, num_frames=17),
}


def rungs(profile: OptimizationProfile, hardware: Hardware, size: VideoSize) -> list[ExecutionPlan]:
    """The plan of a run and all that the ladder has below it."""
    ladder = Ladder(profile=profile, hardware=lambda: hardware, spec=T2V_A14B_TRANSFORMER)
    workload = Workload(request=SampleRequest(recipe=recipe("official")), latent_size=size.latent_size)
    plans = [resolve(profile, hardware, T2V_A14B_TRANSFORMER, workload)]
    while (lower := ladder.below(plans[-1])) is not None:
        plans.append(lower)
        assert len(plans) < 60, "the ladder has no end"
    return plans


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("asked", ["auto", "resident", "experts"])
def test_goes_down_to_streaming_and_ends(machine: MachineMaker, asked: str, size: str) -> None:
    profile = preset("auto").with_settings({"offload.policy": asked})
    plans = rungs(profile, machine("h200"), SIZES[size])
    policies = list(dict.fromkeys(plan.binding.placement.policy for plan in plans))
    assert policies == {"auto": ["resident", "experts", "stream"]}.get(asked, policies)
    assert policies[-1] == "stream"
    guided = [plan for plan in plans if plan.guidance == "sequential"]
    assert plans[1:] == plans[len(plans) - len(guided) :] or plans == guided  # sequential is the first rung, for good
    peaks = [plan.peak_bytes for plan in guided]
    assert all(lower < upper for upper, lower in zip(peaks, peaks[1:], strict=False))


def test_what_is_computed_stays_the_same(machine: MachineMaker) -> None:
    plans = rungs(preset("auto"), machine("h200"), SIZES["1280x720x81"])
    assert len({(plan.schedule, plan.binding.dtype, plan.binding.attention.names, plan.split) for plan in plans}) == 1


def test_a_card_that_is_full_now_is_not_planned_with(machine: MachineMaker) -> None:
    plan = rungs(preset("auto"), machine("h200"), SIZES["1280x720x81"])[0]
    full = replace(machine("h200"), free_memory=45 << 30)
    lower = Ladder(profile=preset("auto"), hardware=lambda: full, spec=T2V_A14B_TRANSFORMER).below(plan)
    assert lower.peak_bytes <= full.free_memory


def test_a_strict_profile_has_no_ladder(machine: MachineMaker) -> None:
    strict = preset("auto").with_settings({"on_unsupported": "error"})
    assert len(rungs(strict, machine("h200"), SIZES["small"])) == 1


def test_each_rung_is_told_and_what_ran_before_is_not_reported_twice(machine: MachineMaker) -> None:
    plans, told, report = rungs(preset("auto"), machine("h200"), SIZES["small"]), [], Report()
    report.warnings.append("from before")

    def attempt(plan: ExecutionPlan) -> str:
        report.decisions += plan.decisions
        report.warnings.append("of the attempt")
        if plan.binding.placement.policy != "stream":
            out_of_memory()
        return plan.binding.placement.policy

    ladder = Ladder(profile=preset("auto"), hardware=lambda: machine("h200"), spec=T2V_A14B_TRANSFORMER)
    freed: list[bool] = []
    result = sample_down_the_ladder(
        attempt, plans[0], ladder, Journal(), report, lambda: freed.append(True), told.append
    )
    assert result == "stream" and len(told) == len(freed) >= 2
    topics = [decision.topic for decision in report.decisions]
    assert topics.count("out of memory") == len(told) and topics.count("placement") == 1
    assert report.warnings == ["from before", "of the attempt"]


def test_other_errors_pass(machine: MachineMaker) -> None:
    ladder = Ladder(profile=preset("auto"), hardware=lambda: machine("h200"), spec=T2V_A14B_TRANSFORMER)
    plan = rungs(preset("auto"), machine("h200"), SIZES["small"])[0]

    def attempt(plan: ExecutionPlan) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        sample_down_the_ladder(attempt, plan, ladder, Journal(), Report(), lambda: None, lambda text: None)


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried ..."))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))  # page-locked memory
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(OutOfMemoryError):
        raise OutOfMemoryError("a plan's own word is no RuntimeError and passes the ladder")
    assert not issubclass(OutOfMemoryError, RuntimeError)
