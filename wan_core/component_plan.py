"""How the text encoder and the VAE run: where, in which dtype, in which tiles. Pure, as `plan.resolve` is.

A component knows nothing of the experts: whoever keeps them on the device beside it, subtracts them from the free
memory first (`run_plan.py`).
"""

import math
from dataclasses import dataclass, replace

from .activations import DTYPE_BYTES
from .choices import choose_dtype, choose_vae_kernels
from .footprint import (
    DECODE_ROUNDING_BYTES,
    DECODE_SEGMENTS_BYTES,
    SLACK_BYTES,
    WORKSPACE_BYTES,
    frames_bytes,
    text_encoder_sizes,
    text_forward_bytes,
    vae_bytes,
)
from .hardware import Hardware
from .kernels.vae import FORMS, VaeForms
from .memory_plan import Part, Phase
from .models.vae_memory import buffer_bytes, decode_bytes, default_tile
from .models.vae_tiling import Tile
from .placing import HOST_HEADROOM_BYTES, within_budget
from .predict import decode_seconds
from .profiles import OptimizationProfile
from .report import Decision, gib
from .specs import TextEncoderSpec, VaeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentPlan:
    """Where and in which dtype the text encoder or the VAE runs; `tile` is `None` for whole frames.

    kernels: what the VAE is built with, by name; `strict` where other ones in their place are refused.
    may_shrink_tiles: whether the VAE goes on in smaller tiles where memory runs out.
    """

    device: str
    dtype: str
    phase: Phase
    weight_bytes: int
    decisions: tuple[Decision, ...]
    seconds: float | None = None
    tile: Tile | None = None
    streamed_blocks: int = 0
    kernels: str = "off"
    strict: bool = False
    may_shrink_tiles: bool = True

    @property
    def peak_bytes(self) -> int:
        """What must be free for it, weights included, with what the allocator cannot use."""
        return self.phase.peak_bytes + SLACK_BYTES

    @property
    def concessions(self) -> tuple[Decision, ...]:
        """What is not exact, or not what was asked for: to be said where there is no report that says all."""
        return tuple(each for each in self.decisions if each.quality != "exact" or each.degraded)

    def describe(self) -> str:
        """The choices and the time."""
        lines = [*map(str, self.decisions)]
        if self.seconds is not None:
            lines.append(f"{self.phase.name}: about {self.seconds:.3g} s (estimate)")
        return "\n".join(lines)

    def to_text(self) -> str:
        """The plan of this component alone, for people."""
        return f"{self.describe()}\nmemory, {self.phase} (estimate)"


def resolve_text(profile: OptimizationProfile, hardware: Hardware, spec: TextEncoderSpec) -> ComponentPlan:
    """Decide how the text encoder runs: on the device, some blocks streamed where it does not fit; else on the host."""
    hardware = within_budget(profile.offload, hardware)
    dtype, dtype_decision = choose_dtype("text encoder precision", profile.precision.weights, hardware)
    sizes = text_encoder_sizes(spec, dtype)

    def phase(streamed: int) -> Phase:
        return _text_phase(spec, dtype, sizes.on_device(streamed), hardware.is_cuda)

    def fits(streamed: int) -> bool:
        return not hardware.is_cuda or phase(streamed).peak_bytes + SLACK_BYTES <= hardware.free_memory

    reason = "" if fits(0) else f"{gib(phase(0).peak_bytes + SLACK_BYTES)} do not fit in the "
    reason += "" if fits(0) else f"{gib(hardware.free_memory)} free on {hardware.device}"
    if (streamed := next((blocks for blocks in range(sizes.num_blocks + 1) if fits(blocks)), None)) is None:
        return _text_on_host(hardware, spec, Decision(topic="text encoder", asked="auto", chosen="cpu", reason=reason))
    if streamed:
        reason += f"; {streamed} of {sizes.num_blocks} blocks pass through two buffers"
    place = Decision(topic="text encoder", asked="auto", chosen=hardware.device, reason=reason)
    return ComponentPlan(
        device=hardware.device,
        dtype=dtype,
        phase=replace(phase(streamed), host_bytes=sizes.total if streamed else 0),
        weight_bytes=sizes.on_device(streamed),
        decisions=(place, dtype_decision),
        streamed_blocks=streamed,
    )


def _text_on_host(hardware: Hardware, spec: TextEncoderSpec, place: Decision) -> ComponentPlan:
    """In float32, as exact as it gets, where the host has room for that; else in bfloat16."""
    room = hardware.host_free_memory - HOST_HEADROOM_BYTES
    sizes = {dtype: text_encoder_sizes(spec, dtype).total for dtype in ("float32", "bfloat16")}
    dtype = "float32" if sizes["float32"] <= room else "bfloat16"
    reason = "" if dtype == "float32" else f"{gib(sizes['float32'])} of float32 do not fit in the {gib(room)} there"
    chosen = Decision(topic="text encoder precision", asked="auto", chosen=dtype, reason=reason)
    phase = Phase(name="text", parts=(), host_bytes=sizes[dtype])
    return ComponentPlan(device="cpu", dtype=dtype, phase=phase, weight_bytes=0, decisions=(place, chosen))


def _text_phase(spec: TextEncoderSpec, dtype: str, weights: int, is_cuda: bool) -> Phase:  # noqa: FBT001
    working = text_forward_bytes(spec, dtype) + (WORKSPACE_BYTES if is_cuda else 0)
    return Phase(
        name="text", parts=(Part(what="text encoder", nbytes=weights), Part(what="activations", nbytes=working))
    )


def resolve_decode(
    profile: OptimizationProfile, hardware: Hardware, spec: VaeSpec, latent_size: tuple[int, int, int]
) -> ComponentPlan:
    """Decide how the VAE runs on a latent (T, H, W): whole frames where they fit, else in tiles.

    The videos of a batch are decoded one after the other. What fits a decode fits the encode of the same video, which
    takes about 0.7 of its memory.
    """
    hardware = within_budget(profile.offload, hardware)
    dtype, dtype_decision = choose_dtype("VAE precision", profile.vae.precision, hardware)
    kernels, kernels_decision = choose_vae_kernels(profile.fusion.kernels, dtype, hardware, profile)
    forms, itemsize = FORMS[kernels], DTYPE_BYTES[dtype]
    weights = vae_bytes(spec, dtype)
    aside = spec.latent_channels * math.prod(latent_size) * DTYPE_BYTES["float32"]
    aside += WORKSPACE_BYTES + DECODE_ROUNDING_BYTES if hardware.is_cuda else 0
    aside += DECODE_SEGMENTS_BYTES if hardware.has_fixed_segments else 0

    def working(tile: Tile | None) -> int:
        return aside + _decoding_bytes(spec, latent_size, itemsize, tile, forms)

    tile, reason = None, ""
    whole = weights + working(None) + SLACK_BYTES
    if profile.vae.tiling == "on" or (profile.vae.tiling == "auto" and whole > hardware.free_memory):
        room = hardware.free_memory - weights - aside - SLACK_BYTES
        tile = default_tile(spec, latent_size, itemsize, room, forms=forms) or Tile()
        reason = f"whole frames need {gib(whole)}, {gib(hardware.free_memory)} are free"
        reason = "asked for" if profile.vae.tiling == "on" else reason
    # Tiles differ from whole frames by at most 1e-3 of the norm, where their overlaps are blended.
    tiling = Decision(
        topic="VAE tiling",
        asked="auto",
        chosen=tile_words(tile),
        reason=reason,
        quality="exact" if tile is None else "near",
    )
    rate = hardware.rate(dtype)
    return ComponentPlan(
        device=hardware.device,
        dtype=dtype,
        phase=Phase(
            name="decode", parts=(Part(what="VAE", nbytes=weights), Part(what="activations", nbytes=working(tile)))
        ),
        weight_bytes=weights,
        tile=tile,
        kernels=kernels,
        strict=profile.on_unsupported == "error",
        may_shrink_tiles=profile.on_unsupported != "error" and profile.vae.tiling != "off",
        decisions=(dtype_decision, kernels_decision, tiling),
        seconds=None if rate is None else decode_seconds(spec, latent_size, rate, kernels),
    )


def tile_words(tile: Tile | None) -> str:
    """How the VAE takes frames, for a decision."""
    return "whole frames" if tile is None else f"tiles of {tile.width * 8}x{tile.height * 8} pixels"


def _decoding_bytes(
    spec: VaeSpec, latent_size: tuple[int, int, int], itemsize: int, tile: Tile | None, forms: VaeForms
) -> int:
    """Live tensors of a decode with its frames on their way to the host.

    Whole frames leave while the next chunk is decoded. In tiles they leave when all is done, and are then brought into
    their form beside the buffers: float32, a second time, as they go, and those before them.
    """
    _, height, width = latent_size
    frames, live = frames_bytes(spec, latent_size), decode_bytes(spec, latent_size, itemsize, tile, forms)
    if tile is None or tile.covers(height, width):
        return live + frames
    return max(live, buffer_bytes(spec, latent_size, itemsize) + 4 * frames)
