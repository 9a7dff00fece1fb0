"""How the text encoder and the VAE run: where, in which dtype, in which tiles. Pure, as `plan.resolve` is.

A component knows nothing of the experts; whoever has both resident subtracts their weights from the free memory first.
"""

from dataclasses import dataclass

from .choices import choose_dtype
from .hardware import Hardware
from .models.vae_tiling import Tile, decode_bytes, default_tile
from .predict import DTYPE_BYTES, RESERVED_BYTES, decode_seconds, text_encoder_bytes
from .profiles import OptimizationProfile
from .report import Decision, gib
from .specs import TextEncoderSpec, VaeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentPlan:
    """Where and in which dtype the text encoder or the VAE runs; `tile` is `None` for whole frames."""

    device: str
    dtype: str
    peak_bytes: int
    decisions: tuple[Decision, ...]
    seconds: float | None = None
    tile: Tile | None = None

    def to_text(self) -> str:
        seconds = "" if self.seconds is None else f", about {self.seconds:.3g} s"
        lines = [*map(str, self.decisions), f"at most {self.peak_bytes / 2**30:.2f} GiB{seconds} (estimate)"]
        return "\n".join(lines)


def resolve_text(profile: OptimizationProfile, hardware: Hardware, spec: TextEncoderSpec) -> ComponentPlan:
    """Decide how the text encoder runs: on the device where its weights fit, else on the host."""
    dtype, dtype_decision = choose_dtype("text encoder precision", profile.precision.weights, hardware)
    needed = text_encoder_bytes(spec, dtype) + RESERVED_BYTES
    if hardware.is_cuda and needed > hardware.free_memory:
        reason = f"{gib(needed)} do not fit in the {gib(hardware.free_memory)} free on {hardware.device}"
        place = Decision(topic="text encoder", asked="auto", chosen="cpu", reason=reason)
        return ComponentPlan(
            device="cpu", dtype="float32", peak_bytes=text_encoder_bytes(spec, "float32"), decisions=(place,)
        )
    place = Decision(topic="text encoder", asked="auto", chosen=hardware.device)
    return ComponentPlan(device=hardware.device, dtype=dtype, peak_bytes=needed, decisions=(place, dtype_decision))


def resolve_decode(
    profile: OptimizationProfile, hardware: Hardware, spec: VaeSpec, latent_size: tuple[int, int, int]
) -> ComponentPlan:
    """Decide how the VAE runs on a latent (T, H, W): whole frames where they fit, else in tiles."""
    dtype, dtype_decision = choose_dtype("VAE precision", profile.vae.precision, hardware)
    whole = decode_bytes(spec, latent_size, DTYPE_BYTES[dtype], None) + RESERVED_BYTES
    tile, peak, reason = None, whole, ""
    if profile.vae.tiling == "on" or (profile.vae.tiling == "auto" and whole > hardware.free_memory):
        tile = default_tile(spec, latent_size, DTYPE_BYTES[dtype], hardware.free_memory - RESERVED_BYTES) or Tile()
        peak = decode_bytes(spec, latent_size, DTYPE_BYTES[dtype], tile) + RESERVED_BYTES
        reason = f"whole frames need {gib(whole)}, {gib(hardware.free_memory)} are free"
    # Tiles differ from whole frames by at most 1e-3 of the norm, where their overlaps are blended.
    tiling = Decision(
        topic="VAE decode",
        asked="auto",
        chosen="whole frames" if tile is None else f"tiles {tile}",
        reason=reason,
        quality="exact" if tile is None else "near",
    )
    rate = hardware.rate(dtype)
    return ComponentPlan(
        device=hardware.device,
        dtype=dtype,
        peak_bytes=peak,
        tile=tile,
        decisions=(dtype_decision, tiling),
        seconds=None if rate is None else decode_seconds(spec, latent_size, rate),
    )
