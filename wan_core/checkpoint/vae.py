"""The Wan 2.1 VAE: its dimensions out of its tensors, and what is refused in its place."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..specs import WAN21_VAE, VaeSpec
from .complete import expect_exactly, num_layers, shape_of
from .inventory import vae_shapes
from .look import expect_decodable, expect_kind
from .read import Checkpoint, open_checkpoint

_WANTED = "a Wan 2.1 VAE such as wan_2.1_vae.safetensors"
_WAN22 = "decoder.upsamples.0.upsamples.0."
_WAN22_CHANNELS = 48


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VaeSource:
    """A VAE that can be built: its tensors and its dimensions."""

    checkpoint: Checkpoint
    spec: VaeSpec


def open_vae(path: Path | str) -> VaeSource:
    """Open a Wan 2.1 VAE, headers only; raises `CheckpointError` for anything else."""
    checkpoint = open_checkpoint(path)
    return VaeSource(checkpoint=checkpoint, spec=vae_spec(checkpoint))


def vae_spec(checkpoint: Checkpoint) -> VaeSpec:
    """Dimensions of a Wan 2.1 VAE; raises `CheckpointError` in one sentence for anything else."""
    expect_kind(checkpoint, "vae", _WANTED)
    channels = _latent_channels(checkpoint)
    if channels != WAN21_VAE.latent_channels:
        raise CheckpointError(
            f"{checkpoint.label} is a VAE of {channels} latent channels, expected {_WANTED} "
            f"({WAN21_VAE.latent_channels} latent channels)"
        )
    expect_decodable(checkpoint)
    spec = _dimensions(checkpoint, channels)
    expect_exactly(checkpoint, "vae", vae_shapes(spec), "a Wan 2.1 VAE")
    if spec.stride != WAN21_VAE.stride:
        raise CheckpointError(
            f"{checkpoint.label} is a VAE of stride {spec.stride}, expected {WAN21_VAE.stride} (t, h, w)"
        )
    return spec


def is_wan22(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is the VAE of TI2V-5B, whose layers are nested one deeper."""
    return any(name.startswith(_WAN22) for name in checkpoint.tensors)


def _latent_channels(checkpoint: Checkpoint) -> int:
    channels = shape_of(checkpoint, "conv2.weight", 5)[0]
    if channels == _WAN22_CHANNELS or is_wan22(checkpoint):
        raise CheckpointError(
            f"{checkpoint.label} is the Wan 2.2 VAE ({channels} latent channels), which belongs to TI2V-5B; the 14B "
            f"experts need {_WANTED} ({WAN21_VAE.latent_channels} latent channels)"
        )
    return channels


def _dimensions(checkpoint: Checkpoint, latent_channels: int) -> VaeSpec:
    """Walk the encoder's layers: residual blocks of one width form a level, and a resampling layer ends it."""
    dim = shape_of(checkpoint, "encoder.conv1.weight", 5)[0]
    widths, blocks, temporal = [], 0, []
    for layer in (f"encoder.downsamples.{i}" for i in range(num_layers(checkpoint, "encoder.downsamples"))):
        if f"{layer}.resample.1.weight" in checkpoint.tensors:
            temporal.append(f"{layer}.time_conv.weight" in checkpoint.tensors)
            continue
        width = shape_of(checkpoint, f"{layer}.residual.6.weight", 5)[0]
        if len(widths) <= len(temporal):
            widths.append(width)
        blocks += 1
    if not widths or len(widths) != len(temporal) + 1 or any(width % dim for width in widths):
        raise CheckpointError(f"{checkpoint.label} is incomplete: its encoder has {blocks} residual blocks and "
                              f"{len(temporal)} resampling layers, expected 8 and 3")  # fmt: skip
    return VaeSpec(
        dim=dim,
        latent_channels=latent_channels,
        dim_multipliers=tuple(width // dim for width in widths),
        num_res_blocks=max(blocks // len(widths), 1),
        temporal_downsample=tuple(temporal),
        stride=(2 ** sum(temporal), 2 ** len(temporal), 2 ** len(temporal)),
    )
