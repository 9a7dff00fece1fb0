"""Sampling with built experts: the one function that the ComfyUI node and the command line both call.

`sample` draws the noise, lets `sampling.loop` drive the solver, asks the residency for the expert that the schedule
names, and returns the latent with the run's report. Nothing in the step loop waits for the device. Where a run stands
is kept in its journal, from which it goes on, and a step with numbers that are not finite is done again.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from .components import Experts
from .errors import InputError, NonFiniteError
from .hooks import PlanEvent, RunHooks, Silent, StepEvent
from .measure import StepClock, measured_phase
from .models.transformer import TextContext
from .pacing import Pacer
from .plan import ExecutionPlan
from .precision import tf32
from .recovery.culprit import find_culprit
from .recovery.guard import guarded_steps
from .recovery.journal import Journal
from .recovery.safe import SAFE_KERNELS, safe_kernels
from .recovery.state import Position
from .report import Decision, Report
from .sampling.guidance import PartByPart
from .sampling.loop import SolverStep, denoise
from .sampling.noise import draw_noise, from_handover, is_empty, mix, to_handover, to_model_space, to_raw_space
from .sampling.solvers import SOLVERS
from .specs import Expert
from .workload import check_sides


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """Text embeddings (B, L, D) of the prompt and of the negative prompt; B is 1 or the batch of the latent."""

    positive: Tensor
    negative: Tensor


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
    run = _Run(experts, plan, conditioning, hooks, report)
    report.warnings += plan.warnings
    decisions = _decisions(plan, experts)
    report.decisions += decisions
    hooks.on_plan(_plan_event(plan, decisions, first))
    report.flops_per_step.update({expert.value: flops for expert, flops in plan.step_flops})
    with torch.inference_mode(), tf32(enabled=plan.tf32 == "on"):
        try:
            hooks.on_phase("load")
            with measured_phase(report, "load", device):
                run.settle()
                run.switch_to(split[first])
            report.warnings += experts.residency.notes()
            hooks.on_phase("sample")
            start = journal.position or Position(next_step=0, latent=_start(plan, latent, device))
            with measured_phase(report, "sample", device), Pacer(run.blocks(), hooks.should_stop):
                denoised = run.denoise(start.to(device), journal)
        finally:
            run.close()
            experts.residency.release()
            report.decisions = [_as_compiled(decision, experts) for decision in report.decisions]
            journal.flush()
            if journal.problem:
                report.warnings.append(journal.problem)
            report.steps += run.clock.timings()
    if run.switch_seconds:
        report.seconds["expert switch (within sample)"] = sum(run.switch_seconds)
    # Copied outside inference mode: an ordinary tensor, which the host may do anything with.
    return SampleResult(latent=_finish(plan, denoised).float().cpu().clone(), report=report)


class _Run:
    """What lives for one run: the active expert and the conditioning as that expert sees it."""

    def __init__(
        self, experts: Experts, plan: ExecutionPlan, conditioning: Conditioning, hooks: RunHooks, report: Report
    ) -> None:
        self._experts = experts
        self._plan = plan
        self._conditioning = conditioning
        self._hooks = hooks
        self._report = report
        self._guidance = plan.guidance
        self._active: Expert | None = None
        self._velocity: PartByPart | None = None
        self._redone = 0
        self._for_the_rest = ExitStack()
        self.clock = StepClock(plan.binding.device)
        self.switch_seconds: list[float] = []

    def close(self) -> None:
        """Leave the experts as they were bound."""
        self._for_the_rest.close()

    def blocks(self) -> Iterator[torch.nn.Module]:
        for transformer in self._experts.transformers.values():
            yield from transformer.blocks

    def settle(self) -> None:
        """Give the weights that are in memory the strengths of this run, wherever they are, before they move."""
        for expert, loras in self._experts.loras.items():
            loras.settle(self._experts.weights[expert])

    def switch_to(self, expert: Expert) -> None:
        """Make `expert` the one that runs: its weights on the device, its keys and values of the text."""
        self._velocity = None  # the other expert's keys and values need not be there beside its own
        later = self._plan.split[self._plan.split.index(expert) :]
        self._experts.residency.activate(expert, self._hooks.on_load, later=later)
        transformer = self._experts.transformers[expert]
        guided = self._plan.workload.request.recipe.guidance(expert) != 1.0
        with self._experts.residency.single_layers(expert):
            positive = self._context(transformer, self._conditioning.positive)
            negative = self._context(transformer, self._conditioning.negative) if guided else None
        self._velocity = PartByPart(
            transformer, positive, negative, execution=self._guidance, at_once=self._plan.videos_at_once
        )
        self._active = expert

    def denoise(self, start: Position, journal: Journal) -> Tensor:
        """Run every step that is left; returns the last latent in model space."""
        self.clock.mark(perf_counter())
        with closing(guarded_steps(self._steps_from, start, keep=journal.keep, redo=self._redo)) as steps:
            for step in steps:
                self._tell(step)
        return step.latent

    def _steps_from(self, position: Position) -> Iterator[SolverStep]:
        solver = SOLVERS[self._plan.workload.request.recipe.solver]
        latent, start, history = position.latent, position.next_step, position.history
        return denoise(self._predict, latent, self._plan.schedule, solver, start=start, history=history)

    def _tell(self, step: SolverStep) -> None:
        schedule, expert = self._plan.schedule, self._plan.split[step.index]
        timestep = schedule.timesteps[step.index]
        self._hooks.on_step(
            StepEvent(
                index=step.index,
                num_steps=len(self._plan.split),
                expert=expert,
                sigma=schedule.sigmas[step.index],
                timestep=timestep,
                seconds=self.clock.step(step.index, expert.value, timestep, perf_counter()),
                denoised=step.denoised,
            )
        )

    def _redo(self, position: Position) -> SolverStep:
        """One step on the safe kernels; a second one leaves the rest of the run on them."""
        index = position.next_step
        expert, where = self._plan.split[index], f"step {index + 1} of {len(self._plan.split)}"
        transformer = self._experts.transformers[expert]
        culprit = find_culprit(transformer, lambda: self._predict(position.latent, index)) or "no part when run again"
        self._redone += 1
        with ExitStack() as for_this_step:
            stack = for_this_step if self._redone == 1 else self._for_the_rest
            stack.enter_context(safe_kernels(self._experts.transformers.values()))
            stack.callback(self._set_guidance, self._guidance)
            self._set_guidance("sequential")
            step = next(self._steps_from(position))
            if not step.latent.isfinite().all():
                raise NonFiniteError(
                    f"{where} gives numbers that are not finite, on the safe kernels too; they first appear in the "
                    f"{expert.value}-noise expert in {culprit}"
                )
        redone = Decision(
            topic=f"{where}{' and all that follow' if self._redone > 1 else ''}",
            asked="the kernels above",
            chosen=SAFE_KERNELS,
            reason=f"numbers that are not finite first appeared in the {expert.value}-noise expert in {culprit}",
        )
        self._report.decisions.append(redone)
        self._hooks.on_warning(str(redone))
        return step

    def _set_guidance(self, execution: str) -> None:
        self._guidance = execution
        self._velocity = None  # made anew, because it joins the contexts of the prompts in its own way

    def _predict(self, latent: Tensor, index: int) -> Tensor:
        expert = self._plan.split[index]
        if self._velocity is None:
            self.switch_to(expert)
        elif expert is not self._active:
            start = perf_counter()
            self.switch_to(expert)
            self.switch_seconds.append(perf_counter() - start)
        timestep = torch.full(
            (latent.shape[0],), self._plan.schedule.timesteps[index], dtype=torch.float32, device=latent.device
        )
        scale = self._plan.workload.request.recipe.guidance(expert)
        is_last = expert is not self._plan.split[min(index + 1, len(self._plan.split) - 1)]
        if is_last:
            self._experts.residency.prepare(self._plan.split[index + 1], self._velocity.num_forwards(scale))
        velocity = self._velocity(latent, timestep, scale)
        if is_last:
            self._active = None  # its weights may have made room: whoever needs it again activates it again
        return velocity

    def _context(self, transformer: torch.nn.Module, embeddings: Tensor) -> TextContext:
        batch = self._plan.workload.batch
        embeddings = embeddings.to(self._plan.binding.device)
        return transformer.prepare_text(embeddings.expand(batch, -1, -1) if embeddings.shape[0] == 1 else embeddings)


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
    """The plan's decisions, with those that building changed in place of the planned ones."""
    built = {decision.topic: decision for decision in experts.decisions}
    return [built.get(decision.topic, decision) for decision in plan.decisions]


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
