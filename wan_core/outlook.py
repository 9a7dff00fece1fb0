"""What a choice means before anything runs: a recipe's noise levels and experts, a profile on this machine.

Plain data for an interface that shows it beside the choice. Nothing is built, loaded or measured; what cannot run comes
back as one sentence in `problem` rather than as an exception, because choosing is no mistake.
"""

from dataclasses import asdict, replace

from .component_plan import ComponentPlan
from .errors import InputError, OutOfMemoryError
from .estimate import Knowledge, RunEstimate, sampling_parts
from .memory_plan import Phase
from .plan import ExecutionPlan, resolve
from .profiles import OptimizationProfile
from .recipes import SampleRequest, disagreements
from .report import Decision
from .sampling.experts import split
from .sampling.schedule import for_request
from .specs import TransformerSpec
from .workload import Workload

_MORE_THAN_ENOUGH = 1 << 50

Facts = dict[str, object]


def recipe_outlook(request: SampleRequest) -> Facts:
    """Noise levels, the expert of each step, and what does not fit together in a recipe."""
    schedule = for_request(request)
    return {
        "sigmas": list(schedule.sigmas),
        "split": [expert.value for expert in split(schedule, request.recipe.boundary)],
        "boundary": request.recipe.boundary,
        "num_steps": request.recipe.num_steps,
        "warnings": disagreements(request.recipe),
    }


def profile_outlook(profile: OptimizationProfile, known: Knowledge, spec: TransformerSpec, workload: Workload) -> Facts:
    """What a profile would do with a workload on a machine; `plan` is `None` where it can do nothing.

    Where only memory is short, the plan is the one that a machine with enough of it would follow.
    """
    hardware, plan, problem = known.hardware, None, None
    try:
        plan = resolve(profile, hardware, spec, workload, known.calibration)
    except OutOfMemoryError as error:
        plan, problem = _with_memory_enough(profile, known, spec, workload), str(error)
    except InputError as error:
        problem = str(error)
    return {
        "profile": profile.name,
        "machine": {"name": hardware.name, "free_bytes": hardware.free_memory, "total_bytes": hardware.total_memory},
        "problem": problem,
        "plan": None if plan is None else plan_facts(plan),
        "estimate": None if plan is None or not hardware.tflops else estimate_facts(_sampling(plan, spec, known)),
    }


def _sampling(plan: ExecutionPlan, spec: TransformerSpec, known: Knowledge) -> RunEstimate:
    return RunEstimate(parts=sampling_parts(plan, spec, known))


def _with_memory_enough(
    profile: OptimizationProfile, known: Knowledge, spec: TransformerSpec, workload: Workload
) -> ExecutionPlan | None:
    roomy = replace(known.hardware, free_memory=_MORE_THAN_ENOUGH, host_free_memory=_MORE_THAN_ENOUGH)
    try:
        return resolve(profile, roomy, spec, workload, known.calibration)
    except InputError:
        return None


def plan_facts(plan: ExecutionPlan) -> Facts:
    """A plan as plain data."""
    return {
        **recipe_outlook(plan.workload.request),
        "device": plan.binding.device,
        "peak_bytes": plan.peak_bytes,
        "phases": [phase_facts(each) for each in plan.phases],
        "decisions": [decision_facts(each) for each in plan.decisions],
        "warnings": list(plan.warnings),
    }


def part_facts(name: str, plan: ComponentPlan) -> Facts:
    """The plan of the text encoder or the VAE as plain data."""
    return {
        "name": name,
        "phases": [phase_facts(plan.phase)],
        "decisions": [decision_facts(each) for each in plan.decisions],
    }


def phase_facts(phase: Phase) -> Facts:
    """The memory of a phase at its peak, on the device and waiting on the host."""
    return {"name": phase.name, "peak_bytes": phase.peak_bytes, "host_bytes": phase.host_bytes}


def estimate_facts(estimate: RunEstimate) -> Facts:
    """The time of a run, part by part; `runs` is how many earlier ones it was learned from."""
    return {
        "seconds": estimate.seconds,
        "runs": estimate.runs,
        "parts": [
            {"name": part.name, "stage": part.stage, "seconds": part.seconds, "count": part.count}
            for part in estimate.parts
        ],
    }


def decision_facts(decision: Decision) -> Facts:
    """A decision as plain data, with whether it is what was asked for."""
    return {**asdict(decision), "degraded": decision.degraded}
