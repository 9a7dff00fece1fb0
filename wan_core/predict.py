"""How much time the parts of a run should take, from shapes alone: the roofline with the efficiencies below.

Estimates, and marked as such wherever they are shown. Memory is `footprint.py` and `activations.py`.
"""

from .specs import TransformerSpec, VaeSpec

# Share of the measured matrix product rate that the parts of a forward reach: linear layers and attention of ComfyUI's
# and the reference's stacks on one H200 (docs/LOG.md, 2026-11-21).
LINEAR_EFFICIENCY = 0.85
ATTENTION_EFFICIENCY = 0.60
# Of a whole decode, by the kernels between its convolutions; at 1280x720x81 on one H200 (2026-11-21).
CONVOLUTION_EFFICIENCY = {"off": 0.25, "triton": 0.47}

# Bytes per second of a file on a common NVMe disk; one H200 read 5.0e9 from memory
# (benchmarks/results/first_run_h200_202611.md).
READ_RATE = 2.0e9


def forward_seconds(spec: TransformerSpec, latent_size: tuple[int, int, int], batch: int, tflops: float) -> float:
    """Roofline of one forward at a measured matrix product rate."""
    flops = spec.forward_flops(latent_size, batch)
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


def decode_seconds(spec: VaeSpec, latent_size: tuple[int, int, int], tflops: float, kernels: str = "off") -> float:
    """Roofline of a decode at a measured matrix product rate."""
    return decode_flops(spec, latent_size) / (tflops * CONVOLUTION_EFFICIENCY[kernels] * 1e12)
