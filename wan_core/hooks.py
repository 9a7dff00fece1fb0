"""The whole conversation between a run and whoever drives it: events up, one question down.

The core returns values; while it runs it calls these hooks. They are implemented by the terminal's progress bar and by
the ComfyUI host. Hooks must return quickly: they are called on the thread that feeds the device.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .report import Decision
from .specs import Expert

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEvent:
    """What a run is about to do; sent again where it has to go on in another way.

    sigmas: one more than the steps; split: the expert of each step; boundary: a fraction in [0, 1]. first_step: those
    before it are done already. peak_bytes: of device memory, an estimate.
    """

    device: str
    sigmas: tuple[float, ...]
    split: tuple[Expert, ...]
    boundary: float
    peak_bytes: int
    first_step: int = 0
    decisions: tuple[Decision, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """One finished solver step.

    index: 0 to num_steps - 1. sigma, timestep: noise level at which the step started. seconds: since the last event.
    denoised: the prediction of the clean latent (B, C, T, H, W) in model space, on the device, for previews.
    """

    index: int
    num_steps: int
    expert: Expert
    sigma: float
    timestep: float
    seconds: float
    denoised: "Tensor"


class RunHooks(Protocol):
    """What a driver of a run implements."""

    def on_plan(self, plan: PlanEvent) -> None:
        """Everything is decided and built; the run begins."""

    def on_warning(self, text: str) -> None:
        """Something is not as it was planned or asked for; the run goes on."""

    def on_phase(self, name: str) -> None:
        """A phase begins: "text", "build", "load", "sample", "decode", ..."""

    def on_load(self, what: str, done: int, total: int) -> None:
        """`done` of `total` bytes of a checkpoint are in place."""

    def on_step(self, event: StepEvent) -> None:
        """A solver step has been handed to the device."""

    def on_chunk(self, done: int, total: int) -> None:
        """`done` of `total` latent frames are decoded or encoded."""

    def should_stop(self) -> bool:
        """Asked before every transformer block and VAE chunk; true raises `Interrupted` there."""


class Silent:
    """Hooks that say nothing and never stop."""

    def on_plan(self, plan: PlanEvent) -> None: ...

    def on_warning(self, text: str) -> None: ...

    def on_phase(self, name: str) -> None: ...

    def on_load(self, what: str, done: int, total: int) -> None: ...

    def on_step(self, event: StepEvent) -> None: ...

    def on_chunk(self, done: int, total: int) -> None: ...

    def should_stop(self) -> bool:
        return False
