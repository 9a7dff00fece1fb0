"""Out of memory: the steps down, each taken once, each in the report, and no finished step lost.

Sampling: guidance passes one after the other; then the placement that the plan chooses for less memory, again and
again, until the plan itself says that nothing fits. The VAE: smaller tiles. A profile without fallbacks gets none.
Every rung needs less memory than the one before, so the ladder ends.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ..activations import DTYPE_BYTES
from ..component_plan import ComponentPlan, tile_words
from ..errors import OutOfMemoryError
from ..hardware import Hardware
from ..models.vae_memory import decode_bytes, default_tile
from ..models.vae_tiling import Tile
from ..plan import ExecutionPlan, resolve
from ..profiles import OptimizationProfile
from ..report import Decision, Report
from ..specs import TransformerSpec, VaeSpec
from .journal import Journal

Result = TypeVar("Result")
Coding = Literal["decode", "encode"]

# Topic of the decisions that the report has for each rung.
OUT_OF_MEMORY = "out of memory"
_CODING_OUT_OF_MEMORY: dict[Coding, str] = {
    "decode": "VAE decode after running out of memory",
    "encode": "VAE encode after running out of memory",
}

# Share of the memory of a plan that failed which the next one may plan with.
_LESS = 0.85
_SMALLER_TILES = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """What is needed to plan the same run for less memory. hardware: asked anew for each rung."""

    profile: OptimizationProfile
    hardware: Callable[[], Hardware]
    spec: TransformerSpec

    def below(self, plan: ExecutionPlan) -> ExecutionPlan | None:
        """The next plan down from one that ran out of memory; `None` at the foot of the ladder."""
        if self.profile.on_unsupported == "error":
            return None
        hardware = self.hardware()
        settings = {"guidance.execution": "sequential", "offload.policy": "auto"}
        if plan.guidance != "sequential" and plan.workload.is_guided:
            settings["offload.policy"] = self.profile.offload.policy
        else:
            hardware = replace(hardware, free_memory=int(min(hardware.free_memory, plan.peak_bytes) * _LESS))
        try:
            return resolve(self.profile.with_settings(settings), hardware, self.spec, plan.workload)
        except OutOfMemoryError:
            return None


def sample_down_the_ladder(
    attempt: Callable[[ExecutionPlan], Result],
    plan: ExecutionPlan,
    ladder: Ladder,
    journal: Journal,
    report: Report,
    free: Callable[[], None],
    tell: Callable[[str], None],
) -> Result:
    """`attempt` with the plan, and with lower ones where memory runs out; it goes on from the journal's position.

    free: gives back what can be given back before the next attempt. tell: hears of each rung. Raises `OutOfMemoryError`
    in one sentence at the foot of the ladder.
    """
    num_warnings = len(report.warnings)
    while True:
        try:
            return attempt(plan)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            cause = _first_line(error)
        # Outside the handler: the traceback held every tensor of the failed step.
        free()
        done = journal.position.next_step if journal.position else 0
        where = f"in step {done + 1} of {plan.schedule.num_steps}"
        lower = ladder.below(plan)
        if lower is None:
            saved = f"; the {done} finished steps are in {str(journal.saved)!r}" if done and journal.saved else ""
            raise OutOfMemoryError(f"out of memory {where}, and there is nothing left to step down to ({cause}){saved}")
        rung = _rung(plan, lower, f"out of memory {where}, {done} finished steps kept")
        tell(str(rung))
        # What the failed attempt said of its plan no longer holds.
        stale = {decision.topic for decision in plan.decisions}
        report.decisions = [each for each in report.decisions if each.topic not in stale] + [rung]
        del report.warnings[num_warnings:]
        plan = lower


def code_down_the_ladder(
    coding: Coding,
    code: Callable[[Tile | None], Iterator[Tensor]],
    tile: Tile | None,
    smaller: Callable[[Tile | None], Tile | None],
    report: Report,
    free: Callable[[], None],
    tell: Callable[[str], None],
) -> Iterator[Tensor]:
    """Chunks of `code` with a tile, and with smaller ones where memory runs out; frames already given are not again.

    Raises `OutOfMemoryError` in one sentence where no smaller tile is left.
    """
    num_given = 0
    while True:
        seen = 0
        try:
            for chunk in code(tile):
                seen += chunk.shape[2]
                if seen > num_given:
                    num_given = seen
                    yield chunk
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            cause = _first_line(error)
        free()
        lower = smaller(tile)
        if lower is None:
            raise OutOfMemoryError(
                f"out of memory in the VAE's {coding} ({tile_words(tile)}), and there is nothing left to step down to "
                f"({cause})"
            )
        report.decisions.append(
            Decision(
                topic=_CODING_OUT_OF_MEMORY[coding],
                asked=tile_words(tile),
                chosen=tile_words(lower),
                reason=f"{num_given} frames were {coding}d",
                quality="near",
            )
        )
        tell(str(report.decisions[-1]))
        tile = lower


def smaller_tiles(
    plan: ComponentPlan, spec: VaeSpec, latent_size: tuple[int, int, int]
) -> Callable[[Tile | None], Tile | None]:
    """The tile below a tile (or below whole frames), for a latent (T, H, W); `None` below the smallest.

    `None` below any where the plan's profile takes no smaller ones.
    """
    itemsize = DTYPE_BYTES[plan.dtype]

    def smaller(tile: Tile | None) -> Tile | None:
        if not plan.may_shrink_tiles:
            return None
        before = decode_bytes(spec, latent_size, itemsize, tile)
        lower = default_tile(spec, latent_size, itemsize, int(before * _SMALLER_TILES))
        return lower if lower and decode_bytes(spec, latent_size, itemsize, lower) < before else None

    return smaller


def has_stepped_down(report: Report) -> bool:
    """Whether a run took a step down, so that its times say nothing about the next one."""
    return any(decision.topic in (OUT_OF_MEMORY, *_CODING_OUT_OF_MEMORY.values()) for decision in report.decisions)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Device memory as the allocator reports it, or pinned memory as the driver does."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def give_back(device: str) -> None:
    """What nobody holds any more goes back to the device."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _rung(before: ExecutionPlan, after: ExecutionPlan, reason: str) -> Decision:
    return Decision(topic=OUT_OF_MEMORY, asked=_words(before), chosen=_words(after), reason=reason)


def _words(plan: ExecutionPlan) -> str:
    """What a rung changes, for example "batched guidance, resident, weights as stored"."""
    placement = plan.binding.placement
    streamed = f" {placement.streamed_blocks} blocks" if placement.streamed_blocks else ""
    guidance = f"{plan.guidance} guidance, " if plan.workload.is_guided else ""
    storage = ", weights as stored" if placement.storage == "file" else ""
    return f"{guidance}{placement.policy}{streamed}{storage}"


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().split("\n", 1)[0].split(". ", 1)[0]
