"""The plans of all phases of one run, made together: what is on the device in one phase is in the way of the others.

The text encoder stays on the device while the experts sample if there is room for both, and is read again otherwise.
The experts stay while the VAE decodes if whole frames fit beside them. Where they do not, experts that have copies on
the host leave, which costs them one transfer; experts that have none stay, and the VAE decodes in tiles.
"""

from dataclasses import dataclass, replace
from typing import Literal

from .attention.verdicts import NOTHING_MEASURED, Calibration
from .choices import choose_dtype
from .component_plan import ComponentPlan, resolve_decode, resolve_text
from .footprint import kept_bytes, vae_bytes
from .hardware import Hardware
from .memory_plan import Part, Phase
from .placement import Placement
from .placing import within_budget
from .plan import ExecutionPlan, resolve
from .profiles import OptimizationProfile
from .specs import TextEncoderSpec, TransformerSpec, VaeSpec
from .workload import Workload

Loaded = Literal["experts", "VAE"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpecs:
    """Dimensions of everything that a run uses."""

    transformer: TransformerSpec
    text_encoder: TextEncoderSpec
    vae: VaeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """The plans of all phases of one run.

    keeps_text: the text encoder stays on the device while the experts sample. keeps_experts: they stay there while the
    VAE decodes. kept_bytes: what else sampling leaves there for that time. loaded: what is on the device from a run
    before. phases: what the device holds in each, all components together.
    """

    text: ComponentPlan
    experts: ExecutionPlan
    decode: ComponentPlan
    keeps_text: bool
    keeps_experts: bool
    kept_bytes: int
    free_memory: int
    loaded: frozenset[Loaded] = frozenset()

    @property
    def text_needs_room(self) -> bool:
        """Whether experts of a run before must leave the device for the text encoder."""
        needed = self.text.peak_bytes + self.experts.resting_bytes + self._vae_before.nbytes
        return "experts" in self.loaded and self.text.weight_bytes > 0 and needed > self.free_memory

    @property
    def _vae_before(self) -> Part:
        return Part(what="VAE", nbytes=self.decode.weight_bytes if "VAE" in self.loaded else 0)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All phases in their order; the VAE comes last, so only one of a run before is beside the others."""
        text = Part(what="text encoder", nbytes=self.text.weight_bytes if self.keeps_text else 0)
        stay = "experts" in self.loaded and not self.text_needs_room
        before = Part(what="experts", nbytes=self.experts.resting_bytes if stay else 0)
        experts = Part(what="experts", nbytes=self.experts.resting_bytes if self.keeps_experts else 0)
        latents = Part(what="latents", nbytes=self.kept_bytes)
        sampling = tuple(phase.beside(text, self._vae_before) for phase in self.experts.phases)
        decode = self.decode.phase.beside(experts, text, latents)
        return self.text.phase.beside(before, self._vae_before), *sampling, decode

    @property
    def predicted_bytes(self) -> dict[str, int]:
        """Peaks by the names that a report gives the phases that it measures; nothing is predicted for a CPU."""
        if not self.experts.binding.device.startswith("cuda"):
            return {}
        text, *sampling, decode = self.phases
        return {
            "text": text.peak_bytes,
            "sample": max(phase.peak_bytes for phase in sampling),
            "decode": decode.peak_bytes,
        }

    def to_text(self) -> str:
        lines = [self.experts.describe(), self.text.describe(), self.decode.describe()]
        lines += [f"memory, {phase}" for phase in self.phases]
        return "\n".join((*lines, f"peak memory: {max(p.peak_bytes for p in self.phases) / 2**30:.2f} GiB (estimate)"))


def resolve_run(
    profile: OptimizationProfile,
    hardware: Hardware,
    specs: ModelSpecs,
    workload: Workload,
    calibration: Calibration = NOTHING_MEASURED,
    *,
    loaded: frozenset[Loaded] = frozenset(),
    current: Placement | None = None,
) -> RunPlan:
    """Decide how a whole run goes; raises what `plan.resolve` raises.

    `hardware.free_memory` counts as free what is loaded, since it is there to be reused. current: see `plan.resolve`.
    """
    hardware = within_budget(profile.offload, hardware)
    text = resolve_text(profile, hardware, specs.text_encoder)
    # Where several videos are made, the VAE of the one before is there while the next is sampled; counted from the
    # start, so that the placement stays the same.
    dtype, _ = choose_dtype("VAE precision", profile.vae.precision, hardware)
    vae = vae_bytes(specs.vae, dtype) if hardware.is_cuda else 0
    experts = resolve(profile, hardware, specs.transformer, workload, calibration, aside=vae, current=current)
    keeps_text = experts.peak_bytes + text.weight_bytes + vae + experts.slack_bytes <= hardware.free_memory
    kept = kept_bytes(specs.transformer, workload.latent_size, workload.batch)
    beside = kept + (text.weight_bytes if keeps_text else 0)
    decode, keeps_experts = _decode(profile, hardware, specs.vae, experts, beside)
    return RunPlan(
        text=text,
        experts=experts,
        decode=decode,
        keeps_text=keeps_text,
        keeps_experts=keeps_experts,
        kept_bytes=kept,
        free_memory=hardware.free_memory,
        loaded=loaded,
    )


def _decode(
    profile: OptimizationProfile, hardware: Hardware, spec: VaeSpec, experts: ExecutionPlan, beside: int
) -> tuple[ComponentPlan, bool]:
    """The decode, and whether the experts stay on the device beside it."""
    size = experts.workload.latent_size
    without = replace(hardware, free_memory=max(hardware.free_memory - beside, 0))
    room = replace(without, free_memory=max(without.free_memory - experts.resting_bytes, 0))
    if not hardware.is_cuda:
        return resolve_decode(profile, room, spec, size), True
    decode = resolve_decode(profile, room, spec, size)
    is_whole = decode.tile is None or profile.vae.tiling == "on"
    has_copies = experts.binding.placement.policy != "resident"
    if decode.peak_bytes <= room.free_memory and (is_whole or not has_copies):
        return decode, True
    return resolve_decode(profile, without, spec, size), False
