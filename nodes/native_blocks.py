"""Our forward for the blocks of ComfyUI's Wan model, and whether a block is one that it is meant for.

Written against v0.33.0, where a block is layer norm, modulation, self attention, gate; norm, cross attention; layer
norm, modulation, feed-forward, gate. Linear layers, the third norm, cross attention and feed-forward are called as
modules of the host: LoRAs, quantised weights, weights that are cast or streamed in, and the check for an interrupt stay
theirs. Another version of ComfyUI may compute something else, so `trial_error` is asked before any of this is used.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial

import comfy.ldm.wan.model as wan
import comfy.model_management
import comfy.ops
import torch
from torch import Tensor, nn

from ..wan_core.kernels.block import BlockKernels, Tables
from ..wan_core.report import Rejection

_ARGUMENTS = {
    wan.WanAttentionBlock: ("self", "x", "e", "freqs", "context", "context_img_len", "transformer_options"),
    wan.WanSelfAttention: ("self", "x", "freqs", "transformer_options"),
}
# Relative errors within which two ways of computing one block are the same mathematics; another formula is far above.
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def candidates(transformer: wan.WanModel) -> Iterator[nn.Module]:
    """Every block and its self attention; what somebody has put in place of a block (a compiled one) is none."""
    for block in (*transformer.blocks, *getattr(transformer, "vace_blocks", ())):
        if isinstance(block, wan.WanAttentionBlock):
            yield from (block, block.self_attn)


def left_alone(module: nn.Module) -> Rejection | None:
    """Why a block, or a self attention, keeps its own forward; `None` where ours takes its place."""
    kind = type(module)
    own = vars(module).get("forward")
    reason = None
    if kind not in _ARGUMENTS:
        reason = "of another kind than we know"
    elif own is not None and getattr(own, "__func__", None) is not kind.forward:
        # What the host puts back after an object patch is the bound method, which is the module's own.
        reason = "replaced by another node"
    elif not _takes_what_we_know(kind):
        reason = "its forward takes other arguments in this version of ComfyUI"
    elif kind is wan.WanAttentionBlock and not _is_bare_norm(module.norm1, module.norm2):
        reason = "its norms have weights"
    elif kind is wan.WanSelfAttention and not _is_rms_norm(module.norm_q, module.norm_k):
        reason = "queries and keys are not normed as we know it"
    return None if reason is None else Rejection(name=kind.__name__, reason=reason)


@contextmanager
def fused(transformer: wan.WanModel, work: BlockKernels) -> Iterator[None]:
    """The transformer's blocks with our forward where they are as we know them, and with their own again afterwards."""
    before: list[tuple[nn.Module, Callable[..., Tensor] | None]] = []
    try:
        for module in candidates(transformer):
            if left_alone(module) is None:
                before.append((module, vars(module).get("forward")))
                module.forward = partial(_OURS[type(module)], module, work)
        yield
    finally:
        for module, forward in before:
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def trial_error(transformer: wan.WanModel, work: BlockKernels, like: Tensor) -> float | None:
    """Relative distance between our forward and the host's own for one block on a few random tokens.

    like: a tensor with the dtype and device of the run. `None` where no block is ours.
    """
    ours = (each for each in candidates(transformer) if type(each) is wan.WanAttentionBlock and not left_alone(each))
    if (block := next(ours, None)) is None:
        return None
    generator, tokens, text = torch.Generator().manual_seed(0), 8, 6

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(like.device, like.dtype)

    angles = torch.randn(1, tokens, 1, block.dim // block.num_heads // 2, generator=generator)
    cos, sin = angles.cos(), angles.sin()
    inputs = {
        "x": draw(1, tokens, block.dim),
        "e": draw(1, 1, 6, block.dim),
        "freqs": torch.stack((cos, -sin, sin, cos), -1).unflatten(-1, (2, 2)).to(like.device),
        "context": draw(1, text, block.dim),
        "context_img_len": 2,
    }
    expected = block(**inputs, transformer_options={})
    with fused(transformer, work):
        found = block(**inputs, transformer_options={})
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def is_same(error: float, dtype: torch.dtype) -> bool:
    """Whether an error of `trial_error` is rounding; one that is no number is not."""
    return error <= _TOLERANCES.get(dtype, 0.0)


@cache
def _takes_what_we_know(kind: type[nn.Module]) -> bool:
    return tuple(inspect.signature(kind.forward).parameters) == _ARGUMENTS[kind]


def _is_bare_norm(*norms: nn.Module) -> bool:
    return all(isinstance(norm, nn.LayerNorm) and norm.weight is None for norm in norms)


def _is_rms_norm(*norms: nn.Module) -> bool:
    return all(isinstance(norm, comfy.ops.disable_weight_init.RMSNorm) and norm.weight is not None for norm in norms)


def _is_patched(options: dict[str, object]) -> bool:
    """Whether somebody wants something of the attention inside a block, which the host's own forward knows about."""
    return any(name.startswith("attn") for name in options.get("patches", {}))


def _block(
    block: wan.WanAttentionBlock,
    work: BlockKernels,
    x: Tensor,
    e: Tensor,
    freqs: Tensor,
    context: Tensor,
    context_img_len: int | None = 257,
    transformer_options: dict[str, object] | None = None,
) -> Tensor:
    """The block's forward; `e` is its modulation by time, (B, S, 6, D)."""
    options = {} if transformer_options is None else transformer_options
    text = {"context_img_len": context_img_len, "transformer_options": options}
    # A timestep per frame (the 5B model's image to video) would have to be spread over the tokens first.
    if e.ndim != 4 or e.shape[1] not in (1, x.shape[1]) or _is_patched(options):
        return type(block).forward(block, x, e, freqs, context, **text)
    modulation = comfy.model_management.cast_to(block.modulation, dtype=torch.float32, device=x.device)
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (modulation.unsqueeze(0) + e.float()).unbind(2)
    y = work.norm(x, 1 + scale, shift, block.norm1.eps, x.dtype)
    y = block.self_attn(y, freqs, transformer_options=options)
    x = work.add(x, y, gate)
    y = block.cross_attn(block.norm3(x), context, **text)
    x, y = work.add_norm(x, y, None, 1 + ffn_scale, ffn_shift, block.norm2.eps, x.dtype)
    return work.add(x, block.ffn(y), ffn_gate)


def _self_attention(
    attention: wan.WanSelfAttention,
    work: BlockKernels,
    x: Tensor,
    freqs: Tensor,
    transformer_options: dict[str, object] | None = None,
) -> Tensor:
    """The self attention's forward; `freqs` are rotations as matrices, (1, L, 1, D / 2, 2, 2)."""
    options = {} if transformer_options is None else transformer_options
    tables = _tables(freqs, x)
    if tables is None or _is_patched(options):
        return type(attention).forward(attention, x, freqs, options)

    def rotated(norm: nn.Module, features: Tensor) -> Tensor:
        weight, bias, stream = comfy.ops.cast_bias_weight(norm, features, offloadable=True)
        try:
            return work.rms_norm(features, weight, attention.num_heads, tables, norm.eps, features.dtype).flatten(2)
        finally:
            comfy.ops.uncast_bias_weight(norm, weight, bias, stream)

    # One after the other, so that of the two only one stands beside its unrotated form.
    q = rotated(attention.norm_q, attention.q(x))
    k = rotated(attention.norm_k, attention.k(x))
    # Looked up at each call: this is the function that carries overrides, and other packs may put theirs in its place.
    out = wan.optimized_attention(q, k, attention.v(x), heads=attention.num_heads, transformer_options=options)
    return attention.o(out)


_OURS = {wan.WanAttentionBlock: _block, wan.WanSelfAttention: _self_attention}


def _tables(freqs: Tensor, x: Tensor) -> Tables | None:
    """Cosines and sines (L, 1, D / 2) of the host's matrices; `None` where they are not one for each token of x."""
    if freqs.ndim != 6 or freqs.shape[:3] != (1, x.shape[1], 1) or freqs.dtype != torch.float32:
        return None
    return freqs[0, ..., 0, 0].contiguous(), freqs[0, ..., 1, 0].contiguous()
