"""Random weights for the miniature: every tensor by its official name, with its shape, mean and standard deviation.

The tables are written from the architecture and not taken from the model classes, so that a loader or a class that
misnames a tensor meets a file that does not share its mistake.

Scales are chosen so that random weights behave like a model: activations keep their size, the velocity has about unit
variance, and time, text and position each change it. Norm weights and biases are random too: a loader that forgets one
is noticed.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wan_core.specs import Expert, TextEncoderSpec, TransformerSpec, VaeSpec

from .architecture import TEXT_ENCODER, TRANSFORMER, VAE
from .vocabulary import train_vocabulary

# What SiLU and GELU leave of a unit variance, made up for by the layer that follows.
AFTER_ACTIVATION = 1.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The weights of a whole model by official names, the bytes of its `spiece.model`, and where they come from."""

    experts: dict[Expert, dict[str, Tensor]]
    text_encoder: dict[str, Tensor]
    vae: dict[str, Tensor]
    vocabulary: bytes
    origin: str


@dataclass(frozen=True, slots=True)
class Draw:
    """How one tensor is drawn."""

    shape: tuple[int, ...]
    std: float
    mean: float = 0.0


Table = dict[str, Draw]


def random_parts(seed: int, dtype: torch.dtype) -> Parts:
    """The whole miniature from a seed; the same bits on every machine."""
    return Parts(
        experts={
            expert: draw_table(transformer_table(TRANSFORMER), f"{seed} {expert.value}", dtype) for expert in Expert
        },
        text_encoder=draw_table(text_encoder_table(TEXT_ENCODER), f"{seed} text encoder", dtype),
        vae=draw_table(vae_table(VAE), f"{seed} vae", dtype),
        vocabulary=train_vocabulary(TEXT_ENCODER.vocab_size),
        origin=f"random, seed {seed}",
    )


def draw_table(table: Table, seed: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor from a generator of its own, so that its values depend on its name and on no other tensor."""
    tensors = {}
    for name, draw in table.items():
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        # Uniform and not normal: its bits do not depend on a processor's logarithm.
        unit = (torch.rand(draw.shape, generator=generator) - 0.5) * math.sqrt(12)
        tensors[name] = (draw.mean + draw.std * unit).to(dtype)
    return tensors


def transformer_table(spec: TransformerSpec) -> Table:
    dim, patch = spec.dim, math.prod(spec.patch)
    table = {
        "patch_embedding.weight": Draw((dim, spec.in_dim, *spec.patch), (spec.in_dim * patch) ** -0.5),
        "patch_embedding.bias": _bias(dim),
        **_linear("text_embedding.0", spec.text_dim, dim),
        **_linear("text_embedding.2", dim, dim, AFTER_ACTIVATION),
        **_linear("time_embedding.0", spec.freq_dim, dim),
        **_linear("time_embedding.2", dim, dim, 0.5),
        **_linear("time_projection.1", dim, 6 * dim),
    }
    for index in range(spec.num_layers):
        table |= _transformer_block(f"blocks.{index}", spec)
    return table | {"head.modulation": Draw((1, 2, dim), 0.1), **_linear("head.head", dim, patch * spec.out_dim)}


def _transformer_block(name: str, spec: TransformerSpec) -> Table:
    dim = spec.dim
    return {
        f"{name}.modulation": Draw((1, 6, dim), 0.3),
        **_attention(f"{name}.self_attn", dim, sharpness=1.5, gain=1.0),
        f"{name}.norm3.weight": Draw((dim,), 0.1, 1.0),
        f"{name}.norm3.bias": _bias(dim),
        # Padding is most of the 512 text tokens: only sharp attention lets a prompt of ten tokens be heard among them.
        **_attention(f"{name}.cross_attn", dim, sharpness=2.5, gain=0.4),
        **_linear(f"{name}.ffn.0", dim, spec.ffn_dim),
        **_linear(f"{name}.ffn.2", spec.ffn_dim, dim, AFTER_ACTIVATION),
    }


def _attention(name: str, dim: int, *, sharpness: float, gain: float) -> Table:
    return {
        **_linear(f"{name}.q", dim, dim),
        **_linear(f"{name}.k", dim, dim),
        **_linear(f"{name}.v", dim, dim),
        **_linear(f"{name}.o", dim, dim, gain),
        f"{name}.norm_q.weight": Draw((dim,), 0.1, sharpness),
        f"{name}.norm_k.weight": Draw((dim,), 0.1, sharpness),
    }


def text_encoder_table(spec: TextEncoderSpec) -> Table:
    dim, inner = spec.dim, spec.attention_dim
    table = {"token_embedding.weight": Draw((spec.vocab_size, dim), 1.0)}
    # Scores are not scaled by the head's width, so the queries are.
    sharpness = 2 * (inner / spec.num_heads) ** -0.5
    for index in range(spec.num_layers):
        name = f"blocks.{index}"
        table |= {
            f"{name}.norm1.weight": Draw((dim,), 0.1, 1.0),
            f"{name}.attn.q.weight": Draw((inner, dim), sharpness * dim**-0.5),
            f"{name}.attn.k.weight": Draw((inner, dim), dim**-0.5),
            f"{name}.attn.v.weight": Draw((inner, dim), dim**-0.5),
            f"{name}.attn.o.weight": Draw((dim, inner), inner**-0.5),
            f"{name}.norm2.weight": Draw((dim,), 0.1, 1.0),
            f"{name}.ffn.gate.0.weight": Draw((spec.ffn_dim, dim), dim**-0.5),
            f"{name}.ffn.fc1.weight": Draw((spec.ffn_dim, dim), dim**-0.5),
            f"{name}.ffn.fc2.weight": Draw((dim, spec.ffn_dim), AFTER_ACTIVATION * spec.ffn_dim**-0.5),
            f"{name}.pos_embedding.embedding.weight": Draw((spec.num_buckets, spec.num_heads), 1.0),
        }
    return table | {"norm.weight": Draw((dim,), 0.1, 1.0)}


def vae_table(spec: VaeSpec) -> Table:
    latent = spec.latent_channels
    return {
        **_vae_encoder(spec),
        **_conv("conv1", 2 * latent, 2 * latent, (1, 1, 1)),
        **_conv("conv2", latent, latent, (1, 1, 1)),
        **_vae_decoder(spec),
    }


def _vae_encoder(spec: VaeSpec) -> Table:
    widths = [spec.dim * multiplier for multiplier in (1, *spec.dim_multipliers)]
    table = _conv("encoder.conv1", 3, widths[0], (3, 3, 3))
    index = 0
    for stage, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        for block in range(spec.num_res_blocks):
            table |= _residual(f"encoder.downsamples.{index}", after if block else before, after)
            index += 1
        if stage < len(spec.temporal_downsample):
            table |= _conv(f"encoder.downsamples.{index}.resample.1", after, after, (3, 3))
            if spec.temporal_downsample[stage]:
                table |= _conv(f"encoder.downsamples.{index}.time_conv", after, after, (3, 1, 1))
            index += 1
    return table | _middle("encoder", widths[-1]) | _output("encoder", widths[-1], 2 * spec.latent_channels, 1.0)


def _vae_decoder(spec: VaeSpec) -> Table:
    multipliers = spec.dim_multipliers[::-1]
    widths = [spec.dim * multiplier for multiplier in (multipliers[0], *multipliers)]
    table = _conv("decoder.conv1", spec.latent_channels, widths[0], (3, 3, 3)) | _middle("decoder", widths[0])
    index = 0
    for stage, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        # Each upsampling halves the width of what it hands on.
        before = before // 2 if stage else before
        for block in range(spec.num_res_blocks + 1):
            table |= _residual(f"decoder.upsamples.{index}", after if block else before, after)
            index += 1
        if stage < len(spec.temporal_downsample):
            table |= _conv(f"decoder.upsamples.{index}.resample.1", after, after // 2, (3, 3))
            if spec.temporal_downsample[::-1][stage]:
                table |= _conv(f"decoder.upsamples.{index}.time_conv", after, 2 * after, (3, 1, 1))
            index += 1
    # Half of a unit deviation: contrast, and few values beyond [-1, 1].
    return table | _output("decoder", widths[-1], 3, 0.5)


def _middle(name: str, width: int) -> Table:
    return {
        **_residual(f"{name}.middle.0", width, width),
        f"{name}.middle.1.norm.gamma": Draw((width, 1, 1), 0.1, 1.0),
        **_conv(f"{name}.middle.1.to_qkv", width, 3 * width, (1, 1)),
        **_conv(f"{name}.middle.1.proj", width, width, (1, 1)),
        **_residual(f"{name}.middle.2", width, width),
    }


def _output(name: str, width: int, channels: int, std: float) -> Table:
    return {
        f"{name}.head.0.gamma": Draw((width, 1, 1, 1), 0.1, 1.0),
        **_conv(f"{name}.head.2", width, channels, (3, 3, 3), AFTER_ACTIVATION * std),
    }


def _residual(name: str, before: int, after: int) -> Table:
    table = {
        f"{name}.residual.0.gamma": Draw((before, 1, 1, 1), 0.1, 1.0),
        **_conv(f"{name}.residual.2", before, after, (3, 3, 3), AFTER_ACTIVATION),
        f"{name}.residual.3.gamma": Draw((after, 1, 1, 1), 0.1, 1.0),
        **_conv(f"{name}.residual.6", after, after, (3, 3, 3), AFTER_ACTIVATION),
    }
    return table if before == after else table | _conv(f"{name}.shortcut", before, after, (1, 1, 1))


def _conv(name: str, before: int, after: int, kernel: tuple[int, ...], gain: float = 1.0) -> Table:
    fan_in = before * math.prod(kernel)
    return {f"{name}.weight": Draw((after, before, *kernel), gain * fan_in**-0.5), f"{name}.bias": _bias(after)}


def _linear(name: str, before: int, after: int, gain: float = 1.0) -> Table:
    return {f"{name}.weight": Draw((after, before), gain * before**-0.5), f"{name}.bias": _bias(after)}


def _bias(width: int) -> Draw:
    return Draw((width,), 0.05)
