"""Sampling with built experts: the one function that the ComfyUI node and the command line both call.

`sample` checks what it is given, draws the noise, has the steps run (`steps.py`) and returns the latent with the run's
report. Where a run stands is kept in its journal, from which it goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .components import Experts
from .errors import InputError
from .hooks import PlanEvent, RunHooks, Silent
from .measure import measured_phase
from .pacing import Pacer
from .plan import ExecutionPlan
from .precision import tf32
from .recovery.journal import Journal
from .recovery.state import Position
from .report import Decision, Report
from .sampling.noise import draw_noise, from_handover, is_empty, mix, to_handover, to_model_space, to_raw_space
from .steps import Conditioning, Steps
from .workload import check_sides


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleResult:
    """A latent (B, 16, T, H, W) in raw VAE space, float32 on the host, and what was done to get it."""

    latent: Tensor
    report: Report


def sample(
    experts: Experts,
    plan: ExecutionPlan,
    conditioning: Conditioning,
    latent: Tensor,
    *,
    hooks: RunHooks | None = None,
    report: Report | None = None,
    journal: Journal | None = None,
) -> SampleResult:
    """Run the plan's schedule on a latent (B, 16, T, H, W) in raw VAE space; an all-zero latent means pure noise.

    journal: where the run begins, if not at its first step, and what remembers how far it came, however it ends.

    Raises `InputError` for shapes that do not fit the experts, before anything is loaded, `NonFiniteError` where not
    even the safe kernels give finite numbers, and `Interrupted` when the hooks ask to stop. In any case the experts can
    be used again at once.
    """
    hooks, report, journal = hooks or Silent(), report or Report(), journal or Journal()
    _check(experts, conditioning, latent)
    for expert, loras in experts.loras.items():
        loras.wanted = tuple(choice.strength(expert) for choice in plan.workload.loras)
    device, split = plan.binding.device, plan.split
    first = journal.position.next_step if journal.position else 0
    if first >= len(split):
        return SampleResult(latent=_finish(plan, journal.position.latent).float().cpu().clone(), report=report)
    steps = Steps(experts, plan, conditioning, hooks, report)
    report.warnings += plan.warnings
    decisions = _decisions(plan, experts)
    report.decisions += decisions
    hooks.on_plan(_plan_event(plan, decisions, first))
    report.flops_per_step.update({expert.value: flops for expert, flops in plan.step_flops})
    with torch.inference_mode(), tf32(enabled=plan.tf32 == "on"):
        try:
            hooks.on_phase("load")
            with measured_phase(report, "load", device):
                steps.settle()
                steps.switch_to(split[first])
            report.warnings += experts.residency.notes()
            hooks.on_phase("sample")
            start = journal.position or Position(next_step=0, latent=_start(plan, latent, device))
            with measured_phase(report, "sample", device), Pacer(steps.blocks(), hooks.should_stop):
                denoised = steps.run(start.to(device), journal)
        finally:
            steps.close()
            experts.residency.release()
            report.decisions = [_as_compiled(decision, experts) for decision in report.decisions]
            journal.flush()
            if journal.problem:
                report.warnings.append(journal.problem)
            report.steps += steps.clock.timings()
    if steps.switch_seconds:
        report.seconds["expert switch (within sample)"] = sum(steps.switch_seconds)
    # Copied outside inference mode: an ordinary tensor, which the host may do anything with.
    return SampleResult(latent=_finish(plan, denoised).float().cpu().clone(), report=report)


def _start(plan: ExecutionPlan, latent: Tensor, device: str) -> Tensor:
    """The latent at the noise level of the first step, in model space, float32 on the device."""
    request, sigma = plan.workload.request, plan.schedule.sigmas[0]
    empty = is_empty(latent)
    clean = latent.to(device, torch.float32)
    clean = clean if empty else to_model_space(clean)
    if request.add_noise == "off":
        return from_handover(clean, sigma)
    drawn_on = device if request.noise_device == "device" else "cpu"
    noise = draw_noise(tuple(latent.shape), request.seed, drawn_on).to(device)
    # The reference starts from pure noise although its first sigma is a little under 1. A part of a schedule starts at
    # its noise level, as in ComfyUI.
    is_whole = request.start_step == 0 and request.denoise == 1.0 and request.sigmas is None
    return noise if empty and is_whole else mix(clean, noise, sigma)


def _finish(plan: ExecutionPlan, latent: Tensor) -> Tensor:
    """The last latent of the loop in raw VAE space; one that keeps noise is scaled as the next sampler expects it."""
    sigma = plan.schedule.sigmas[-1]
    return to_raw_space(to_handover(latent, sigma) if sigma > 0.0 else latent)


def _decisions(plan: ExecutionPlan, experts: Experts) -> list[Decision]:
    """The plan's decisions, with those that building changed in place of the planned ones, and what only it knows."""
    planned = {decision.topic: decision for decision in plan.decisions}
    return list((planned | {decision.topic: decision for decision in experts.decisions}).values())


def _as_compiled(decision: Decision, experts: Experts) -> Decision:
    """The decision on compiling as the run left it: whether a mode works is known when the first block has run."""
    if decision.topic != "compile" or not experts.region.rejected:
        return decision
    rejected = (*decision.rejected, *experts.region.rejected)
    return replace(decision, chosen=experts.region.mode, rejected=rejected)


def _plan_event(plan: ExecutionPlan, decisions: Sequence[Decision], first_step: int) -> PlanEvent:
    return PlanEvent(
        device=plan.binding.device,
        sigmas=plan.schedule.sigmas,
        split=plan.split,
        first_step=first_step,
        boundary=plan.workload.request.recipe.boundary,
        peak_bytes=plan.peak_bytes,
        decisions=tuple(decisions),
        warnings=plan.warnings,
    )


def _check(experts: Experts, conditioning: Conditioning, latent: Tensor) -> None:
    spec = experts.spec
    if latent.ndim != 5 or latent.shape[1] != spec.out_dim:
        hint = (
            "; 48 channels are a Wan 2.2 VAE latent of the 5B model"
            if latent.ndim == 5 and latent.shape[1] == 48
            else ""
        )
        raise InputError(
            f"latent has shape {tuple(latent.shape)}, expected (batch, {spec.out_dim}, frames, height / 8, width / 8)"
            f"{hint}"
        )
    check_sides(tuple(latent.shape[2:]))
    for name, embeddings in (("positive", conditioning.positive), ("negative", conditioning.negative)):
        if embeddings.ndim != 3 or embeddings.shape[2] != spec.text_dim:
            raise InputError(
                f"{name} conditioning has shape {tuple(embeddings.shape)}, expected (1, 512, {spec.text_dim}); "
                "it must come from the text encoder that belongs to these experts"
            )
        if embeddings.shape[0] not in (1, latent.shape[0]):
            raise InputError(
                f"{name} conditioning holds {embeddings.shape[0]} prompts for {latent.shape[0]} videos, expected 1 or "
                f"{latent.shape[0]}"
            )
    for name, tensor in (("latent", latent), ("positive conditioning", conditioning.positive),
                         ("negative conditioning", conditioning.negative)):  # fmt: skip
        if not tensor.isfinite().all():
            raise InputError(f"the {name} holds numbers that are not finite; what made it has failed")
