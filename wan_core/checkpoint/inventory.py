"""What a complete checkpoint holds: the official name and the shape of every tensor, computed from its dimensions.

The reference's modules define these lists: 1095 tensors for an A14B expert, 242 for UMT5-XXL, 194 for the Wan 2.1 VAE.
Shapes are as in torch: linear (out, in), convolution (out, in, *kernel).
"""

import math

from ..specs import TextEncoderSpec, TransformerSpec, VaeSpec

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


def transformer_shapes(spec: TransformerSpec) -> Shapes:
    """Every tensor of one expert."""
    d, f = spec.dim, spec.ffn_dim
    shapes = _layer("patch_embedding", (d, spec.in_dim, *spec.patch))
    shapes |= _layer("text_embedding.0", (d, spec.text_dim)) | _layer("text_embedding.2", (d, d))
    shapes |= _layer("time_embedding.0", (d, spec.freq_dim)) | _layer("time_embedding.2", (d, d))
    shapes |= _layer("time_projection.1", (6 * d, d))
    for block in (f"blocks.{i}" for i in range(spec.num_layers)):
        shapes[f"{block}.modulation"] = (1, 6, d)
        shapes |= _layer(f"{block}.norm3", (d,))
        for attention in (f"{block}.self_attn", f"{block}.cross_attn"):
            for name in ("q", "k", "v", "o"):
                shapes |= _layer(f"{attention}.{name}", (d, d))
            shapes |= {f"{attention}.norm_q.weight": (d,), f"{attention}.norm_k.weight": (d,)}
        shapes |= _layer(f"{block}.ffn.0", (f, d)) | _layer(f"{block}.ffn.2", (d, f))
    shapes["head.modulation"] = (1, 2, d)
    return shapes | _layer("head.head", (math.prod(spec.patch) * spec.out_dim, d))


def text_encoder_shapes(spec: TextEncoderSpec) -> Shapes:
    """Every tensor of a UMT5 encoder; it has no biases, and every layer its own table of relative positions."""
    d, a, f = spec.dim, spec.attention_dim, spec.ffn_dim
    shapes: Shapes = {"token_embedding.weight": (spec.vocab_size, d), "norm.weight": (d,)}
    for block in (f"blocks.{i}" for i in range(spec.num_layers)):
        shapes |= {f"{block}.{norm}.weight": (d,) for norm in ("norm1", "norm2")}
        shapes |= {f"{block}.attn.{name}.weight": (a, d) for name in ("q", "k", "v")}
        shapes[f"{block}.attn.o.weight"] = (d, a)
        shapes[f"{block}.pos_embedding.embedding.weight"] = (spec.num_buckets, spec.num_heads)
        shapes |= {f"{block}.ffn.gate.0.weight": (f, d), f"{block}.ffn.fc1.weight": (f, d)}
        shapes[f"{block}.ffn.fc2.weight"] = (d, f)
    return shapes


def vae_shapes(spec: VaeSpec) -> Shapes:
    """Every tensor of a Wan 2.1 VAE, encoder and decoder."""
    z = spec.latent_channels
    return _encoder(spec) | _decoder(spec) | _layer("conv1", (2 * z, 2 * z, 1, 1, 1)) | _layer("conv2", (z, z, 1, 1, 1))


def _encoder(spec: VaeSpec) -> Shapes:
    widths = [spec.dim * factor for factor in (1, *spec.dim_multipliers)]
    shapes = _layer("encoder.conv1", (widths[0], 3, 3, 3, 3))
    position = 0
    for level, (width, wide) in enumerate(zip(widths, widths[1:], strict=False)):
        for block in range(spec.num_res_blocks):
            shapes |= _residual(f"encoder.downsamples.{position}", wide if block else width, wide)
            position += 1
        if level < len(spec.dim_multipliers) - 1:
            name = f"encoder.downsamples.{position}"
            shapes |= _layer(f"{name}.resample.1", (wide, wide, 3, 3))
            if spec.temporal_downsample[level]:
                shapes |= _layer(f"{name}.time_conv", (wide, wide, 3, 1, 1))
            position += 1
    return shapes | _middle("encoder", widths[-1]) | _head("encoder", widths[-1], 2 * spec.latent_channels)


def _decoder(spec: VaeSpec) -> Shapes:
    factors = (spec.dim_multipliers[-1], *reversed(spec.dim_multipliers))
    widths = [spec.dim * factor for factor in factors]
    shapes = _layer("decoder.conv1", (widths[0], spec.latent_channels, 3, 3, 3))
    position = 0
    for level, (width, wide) in enumerate(zip(widths, widths[1:], strict=False)):
        # Every upsampling halves the width on its way to the next level.
        entering = width // 2 if level else width
        for block in range(spec.num_res_blocks + 1):
            shapes |= _residual(f"decoder.upsamples.{position}", wide if block else entering, wide)
            position += 1
        if level < len(spec.dim_multipliers) - 1:
            name = f"decoder.upsamples.{position}"
            shapes |= _layer(f"{name}.resample.1", (wide // 2, wide, 3, 3))
            if spec.temporal_downsample[-1 - level]:
                shapes |= _layer(f"{name}.time_conv", (2 * wide, wide, 3, 1, 1))
            position += 1
    return shapes | _middle("decoder", widths[0]) | _head("decoder", widths[-1], 3)


def _middle(side: str, width: int) -> Shapes:
    attention = f"{side}.middle.1"
    shapes = _residual(f"{side}.middle.0", width, width) | _residual(f"{side}.middle.2", width, width)
    shapes[f"{attention}.norm.gamma"] = (width, 1, 1)
    return (
        shapes
        | _layer(f"{attention}.to_qkv", (3 * width, width, 1, 1))
        | _layer(f"{attention}.proj", (width, width, 1, 1))
    )


def _head(side: str, width: int, channels: int) -> Shapes:
    return {f"{side}.head.0.gamma": (width, 1, 1, 1)} | _layer(f"{side}.head.2", (channels, width, 3, 3, 3))


def _residual(name: str, width: int, wide: int) -> Shapes:
    shapes: Shapes = {f"{name}.residual.0.gamma": (width, 1, 1, 1), f"{name}.residual.3.gamma": (wide, 1, 1, 1)}
    shapes |= _layer(f"{name}.residual.2", (wide, width, 3, 3, 3)) | _layer(f"{name}.residual.6", (wide, wide, 3, 3, 3))
    return shapes | (_layer(f"{name}.shortcut", (wide, width, 1, 1, 1)) if width != wide else {})


def _layer(name: str, weight: Shape) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}
