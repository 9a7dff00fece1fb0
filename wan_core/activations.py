"""What one forward of an expert holds beside its weights, counted by running the expert's own code without memory.

A transformer of one block runs on the meta device at the real size, where a tensor has a shape and no numbers, and the
live bytes are counted. So the count follows the code: one H200 took 8.65 GiB at 1280x720x81, counted are 8.69
(benchmarks/results/attention_h200_202611.md). What a compiled block holds is written down here.
Not counted: weights, keys and values of the text, the latent, the allocator's rounding, workspaces of cuBLAS.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from .attention.interface import Attend
from .checkpoint.codes import Coding
from .kernels.block import TORCH, BlockKernels
from .live_bytes import LiveBytes
from .meta import without_numbers
from .models.layers import KeyValue
from .models.transformer import TextContext, WanTransformer, wants_float32
from .specs import TransformerSpec
from .storage import keep_as_stored

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardShape:
    """One forward of an expert: the latent (T, H, W), the samples in its batch, dtypes, attention kernels by name.

    has_adapters: whether something stands beside the linear layers. stored: layers of the block that keep codes.
    """

    latent_size: tuple[int, int, int]
    batch: int
    dtype: str
    residual: str
    attention: str = "sdpa"
    cross_attention: str = "sdpa"
    is_compiled: bool = False
    block_kernels: str = "off"
    has_adapters: bool = False
    stored: tuple[tuple[str, Coding], ...] = ()


@lru_cache(maxsize=256)
def forward_bytes(spec: TransformerSpec, shape: ForwardShape) -> int:
    """Bytes of live tensors at the widest point of one forward."""
    counted = _counted(replace(spec, num_layers=1), shape)
    return max(counted, _compiled_block(spec, shape)) if shape.is_compiled else counted


def _compiled_block(spec: TransformerSpec, shape: ForwardShape) -> int:
    """A block as Inductor lays it out, read from its code (torch 2.13).

    The caller holds the stream that came in. Attention adds five tensors in the products' dtype and the one that the
    next product is fed; the feed-forward the new stream, the hidden layer and what stands on one side of it.
    """
    wide, narrow = DTYPE_BYTES[shape.residual], DTYPE_BYTES[shape.dtype]
    num_tokens = spec.num_tokens(shape.latent_size) * shape.batch
    # A compiler lets what stands beside a layer add to a copy of the layer's answer.
    num_hidden = 2 if shape.has_adapters else 1
    attention = (wide + 6 * narrow) * spec.dim
    feed_forward = (2 * wide + narrow) * spec.dim + num_hidden * narrow * spec.ffn_dim
    in_attention = (wide + 4 * narrow) * spec.dim * num_tokens + _attention_bytes(spec, shape, shape.attention)
    return max(num_tokens * max(attention, feed_forward), in_attention) + _compiled_weight(spec, shape)


def _compiled_weight(spec: TransformerSpec, shape: ForwardShape) -> int:
    """The largest decoded weight; of blocks of GGUF also its float32 numbers, which may not all be fused away."""
    if not shape.stored:
        return 0
    has_blocks = any(coding.codes_dtype != coding.dtype for _, coding in shape.stored)
    return spec.dim * spec.ffn_dim * (DTYPE_BYTES[shape.dtype] + (8 if has_blocks else 0))


def _counted(spec: TransformerSpec, shape: ForwardShape) -> int:
    dtype, kernels = getattr(torch, shape.dtype), _kernels(shape)
    with without_numbers():
        transformer = WanTransformer(
            spec,
            attend=_stand_in(_attention_bytes(spec, shape, shape.attention)),
            cross_attend=_stand_in(_attention_bytes(spec, shape, shape.cross_attention, kv_len=spec.text_len)),
            residual=getattr(torch, shape.residual),
            kernels=kernels,
        )
        latent = torch.empty(shape.batch, spec.in_dim, *shape.latent_size)
        timestep = torch.empty(shape.batch)
        keys = torch.empty(shape.batch, spec.text_len, spec.num_heads, spec.head_dim, dtype=dtype)
    for name, parameter in transformer.named_parameters():
        if not wants_float32(name):
            parameter.data = parameter.data.to(dtype)
    stored = {f"blocks.0.{layer}": coding for layer, coding in shape.stored}
    keep_as_stored(transformer, stored, dtype, kernels)
    if shape.is_compiled:
        transformer.blocks[0].forward = lambda x, *rest: torch.empty_like(x)
    text = TextContext((KeyValue(keys, keys),))
    with torch.inference_mode(), LiveBytes() as live:
        transformer(latent, timestep, text)
    return live.peak


# Fused kernels hold their answers and nothing else.
_FUSED = BlockKernels(
    name="stand-ins",
    norm=lambda x, scale, shift, eps, dtype: torch.empty_like(x, dtype=dtype),
    add=lambda x, branch, gate: torch.empty_like(x),
    add_norm=lambda x, branch, gate, scale, shift, eps, dtype: (torch.empty_like(x), torch.empty_like(x, dtype=dtype)),
    rms_norm=lambda x, weight, num_heads, tables, eps, dtype: x.new_empty(
        *x.shape[:2], num_heads, x.shape[2] // num_heads, dtype=dtype
    ),
    # The GELU is in the product's epilogue, unless something stands beside the layer.
    expand=lambda linear, x: linear(x),
    decode=lambda place, codes, scale, form: None,
)


def _kernels(shape: ForwardShape) -> BlockKernels:
    if shape.block_kernels == "off":
        return TORCH
    return replace(_FUSED, expand=TORCH.expand) if shape.has_adapters else _FUSED


def _stand_in(nbytes: int) -> Attend:
    """Attention that takes so many bytes and computes nothing."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        working = q.new_empty(nbytes, dtype=torch.uint8)
        del working
        return torch.empty_like(q)

    return attend


def _attention_bytes(spec: TransformerSpec, shape: ForwardShape, kernel: str, *, kv_len: int | None = None) -> int:
    """What a kernel holds beside q, k, v and its answer."""
    num_queries = spec.num_tokens(shape.latent_size)
    num_keys = kv_len or num_queries
    per_token = shape.batch * spec.dim
    if kernel == "math":
        # Scores and their softmax; q, k and v, in float32 where they are narrower, and q and k once more, scaled.
        lifted = 3 if shape.dtype != "float32" else 0
        scores = 2 * shape.batch * spec.num_heads * num_queries * num_keys
        return 4 * (scores + (lifted + 2) * per_token * max(num_queries, num_keys))
    # The log-sum-exp of every query, and the answer once more where it is put into our layout.
    return num_queries * (4 * shape.batch * spec.num_heads + per_token * DTYPE_BYTES[shape.dtype])
