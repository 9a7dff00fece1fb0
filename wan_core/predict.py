"""How much memory and time a run should take, from shapes alone.

Two small models, kept apart from the plan so that they can be checked against measurements. Memory is bytes of device
memory at the peak of a phase; time is the roofline with the efficiencies below, an estimate and marked as one.
"""

from dataclasses import dataclass

from .specs import TextEncoderSpec, TransformerSpec, VaeSpec

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Share of the measured matrix product rate that the parts of a forward reach: linear layers and attention of ComfyUI's
# and the reference's stacks on one H200 (docs/LOG.md, 2026-11-21).
LINEAR_EFFICIENCY = 0.85
ATTENTION_EFFICIENCY = 0.60
CONVOLUTION_EFFICIENCY = 0.25

# The allocator's slack, the CUDA context and library workspaces.
RESERVED_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardShape:
    """What one forward of an expert runs on: the latent (T, H, W), the videos times passes in a batch, the dtypes."""

    latent_size: tuple[int, int, int]
    batch: int
    dtype: str
    residual: str


def expert_bytes(spec: TransformerSpec, dtype: str) -> int:
    """Weights of one expert; time embedding, modulation, norms and the head stay in float32."""
    d = spec.dim
    time = spec.freq_dim * d + d + d * d + d + 6 * d * d + 6 * d
    small = spec.num_layers * (6 * d + 4 * d + 2 * d) + 2 * d
    in_float32 = time + small
    return (spec.num_parameters - in_float32) * DTYPE_BYTES[dtype] + in_float32 * 4


def forward_bytes(spec: TransformerSpec, shape: ForwardShape) -> int:
    """Activations of one forward at its widest point, inside a block."""
    tokens = spec.num_tokens(shape.latent_size) * shape.batch
    d, f = spec.dim, spec.ffn_dim
    wide, narrow = DTYPE_BYTES[shape.residual], DTYPE_BYTES[shape.dtype]
    residual = 2 * d * wide
    attention = 5 * d * narrow + 3 * d * 4
    feed_forward = 2 * f * narrow + 2 * d * narrow + d * 4
    return tokens * (residual + max(attention, feed_forward))


def text_context_bytes(spec: TransformerSpec, num_prompts: int, dtype: str) -> int:
    """Keys and values of every cross attention, kept for the run."""
    return num_prompts * spec.num_layers * 2 * spec.text_len * spec.dim * DTYPE_BYTES[dtype]


def text_encoder_bytes(spec: TextEncoderSpec, dtype: str) -> int:
    """Weights of the text encoder."""
    return spec.num_parameters * DTYPE_BYTES[dtype]


def forward_seconds(spec: TransformerSpec, shape: ForwardShape, tflops: float) -> float:
    """Roofline of one forward at a measured matrix product rate."""
    flops = spec.forward_flops(shape.latent_size, shape.batch)
    attention = (flops.self_attention + flops.cross_attention) / ATTENTION_EFFICIENCY
    return (flops.linear / LINEAR_EFFICIENCY + attention) / (tflops * 1e12)


def decode_flops(spec: VaeSpec, latent_size: tuple[int, int, int]) -> float:
    """Operations of the decoder's 3 x 3 x 3 convolutions, level by level; the rest is small beside them."""
    t, h, w = latent_size
    channels = [spec.dim * m for m in reversed(spec.dim_multipliers)]
    total, pixels, previous = 0.0, float(t * h * w), channels[0]
    for level, width in enumerate(channels):
        blocks = spec.num_res_blocks + 1
        total += pixels * 2 * 27 * (previous * width + width * width * (2 * blocks - 1))
        if level < len(channels) - 1:
            pixels *= 4 * (2 if level < sum(spec.temporal_downsample) else 1)
        previous = width // 2
    return total


def decode_seconds(spec: VaeSpec, latent_size: tuple[int, int, int], tflops: float) -> float:
    """Roofline of a decode at a measured matrix product rate."""
    return decode_flops(spec, latent_size) / (tflops * CONVOLUTION_EFFICIENCY * 1e12)
