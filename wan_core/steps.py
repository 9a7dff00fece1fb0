"""The steps of one run: which expert takes each, the switch between them, and the step that is done again.

`sampling.loop` drives the solver; here its question for a velocity is answered by the expert that the schedule names,
which the residency brings to the device. Nothing waits for the device between two steps. A step with numbers that are
not finite is done again on the safe kernels.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from .components import Experts
from .errors import NonFiniteError
from .hooks import RunHooks, StepEvent
from .measure import StepClock
from .models.transformer import TextContext
from .plan import ExecutionPlan
from .recovery.culprit import find_culprit
from .recovery.guard import guarded_steps
from .recovery.journal import Journal
from .recovery.safe import SAFE_KERNELS, safe_kernels
from .recovery.state import Position
from .report import Decision, Report
from .sampling.guidance import PartByPart
from .sampling.loop import SolverStep, denoise
from .sampling.solvers import SOLVERS
from .specs import Expert


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """Text embeddings (B, L, D) of the prompt and of the negative prompt; B is 1 or the batch of the latent."""

    positive: Tensor
    negative: Tensor


class Steps:
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

    def run(self, start: Position, journal: Journal) -> Tensor:
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
