"""What every phase of a run holds: values that a plan makes, a report repeats and a measurement is held against."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from .footprint import SLACK_BYTES, UnitSizes
from .placement import Placement
from .report import gib
from .specs import Expert

PhaseName = Literal["text", "high expert", "switch", "low expert", "decode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something that lies on the device."""

    what: str
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase at its peak: what is on the device, and the weights that wait in the host's memory (page-locked)."""

    name: PhaseName
    parts: tuple[Part, ...]
    host_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """Predicted `torch.cuda.max_memory_allocated`."""
        return sum(part.nbytes for part in self.parts)

    def beside(self, *others: Part) -> "Phase":
        """The same phase with more on the device."""
        return replace(self, parts=self.parts + tuple(part for part in others if part.nbytes))

    def __str__(self) -> str:
        held = ", ".join(f"{part.what} {part.nbytes / 2**30:.2f}" for part in self.parts if part.nbytes >= 1 << 26)
        held = f" ({held})" if held else ""
        waiting = f"; {gib(self.host_bytes)} wait on the host" if self.host_bytes else ""
        return f"{self.name}: {self.peak_bytes / 2**30:.2f} GiB{held}{waiting}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What sampling takes, wherever its weights are.

    adapters: bytes beside the layers of the high and low expert. slack: what the allocator cannot use.
    """

    weights: UnitSizes
    adapters: tuple[int, int]
    activations: int
    text: int
    latents: int
    workspaces: int
    slack: int = SLACK_BYTES

    def weights_on_device(self, placement: Placement) -> tuple[int, int]:
        """Bytes of weights, adapters included, while the high and while the low expert runs."""
        high, low = (self.weights.on_device(placement.streamed_blocks) + adapters for adapters in self.adapters)
        return (high + low, high + low) if placement.policy == "resident" else (high, low)

    def resting_bytes(self, placement: Placement) -> int:
        """Weights that are still on the device when a run is over."""
        return max(self.weights_on_device(placement)) - self.weights.buffers(placement.streamed_blocks)

    def host_bytes(self, placement: Placement) -> int:
        """Copies on the host: of both experts, so that each leaves the device by being forgotten."""
        return 0 if placement.policy == "resident" else 2 * self.weights.total + sum(self.adapters)

    def phases(self, placement: Placement, split: Collection[Expert] = tuple(Expert)) -> tuple[Phase, ...]:
        """The experts of a split at work, and the switch between them."""
        high, low = self.weights_on_device(placement)
        always = (Part(what="text", nbytes=self.text), Part(what="latents", nbytes=self.latents + self.workspaces))
        working = (*always, Part(what="activations", nbytes=self.activations))
        waiting = self.host_bytes(placement)
        found = {
            Expert.HIGH: Phase(name="high expert", parts=(_weights(high), *working), host_bytes=waiting),
            Expert.LOW: Phase(name="low expert", parts=(_weights(low), *working), host_bytes=waiting),
        }
        switch = Phase(name="switch", parts=(_weights(max(high, low)), *always), host_bytes=waiting)
        if not all(expert in split for expert in Expert):
            return tuple(phase for expert, phase in found.items() if expert in split)
        return found[Expert.HIGH], switch, found[Expert.LOW]

    def needed(self, placement: Placement) -> int:
        """What has to be free for it."""
        return max(phase.peak_bytes for phase in self.phases(placement)) + self.slack


def _weights(nbytes: int) -> Part:
    return Part(what="weights", nbytes=nbytes)
