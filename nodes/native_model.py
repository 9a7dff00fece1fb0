"""ComfyUI's own Wan model, accelerated in place: its blocks' elementwise work and its attention, on its own weights.

How it holds on to the model (read in v0.33.0):
- Everything hangs on the clone: a DIFFUSION_MODEL wrapper and an attention override in its transformer options. The
  wrapper finds the blocks of whatever instance it is called for, since a clone may come to stand for another one
  (TorchCompileModel loads the model anew, several GPUs hold one each), and it puts their own `forward` back before it
  returns. A model that is not running is as it was.
- Linear layers, cross attention and feed-forward stay the host's modules, called as ever: LoRAs, quantised weights,
  weights that are cast or streamed in, and the check for an interrupt are theirs.
- A block, or its self attention, that another node has replaced is left to that node.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import comfy.ldm.wan.model as wan
import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor, nn

from ..wan_core.errors import InputError
from ..wan_core.kernels.block import TORCH, BlockKernels, Tables
from ..wan_core.native.facts import NativeModel
from ..wan_core.native.kernels import AttentionKernels
from ..wan_core.native.override import AttentionOverride, without_ours
from ..wan_core.report import Rejection

_KEY = "wan_velocity"
_COMPILE_KEY = "torch.compile"  # the host's own, of the wrapper with which it compiles whole models
_OVERRIDE = "optimized_attention_override"
_BLOCK_ARGUMENTS = ("self", "x", "e", "freqs", "context", "context_img_len", "transformer_options")
_ATTENTION_ARGUMENTS = ("self", "x", "freqs", "transformer_options")


def read(model: ModelPatcher) -> NativeModel:
    """What there is to be accelerated; raises `InputError` for a model that is no Wan."""
    transformer = model.get_model_object("diffusion_model")
    if not isinstance(transformer, wan.WanModel):
        raise InputError(
            f"the model is a {type(model.model).__name__}, expected a Wan 2.1 or 2.2 model, such as Load Diffusion "
            "Model gives for a Wan file"
        )
    blocks = list(transformer.blocks)
    modules = [*blocks, *(block.self_attn for block in blocks)]
    options = model.model_options["transformer_options"]
    return NativeModel(
        name=type(model.model).__name__,
        num_blocks=len(blocks),
        num_heads=transformer.num_heads,
        head_dim=transformer.dim // transformer.num_heads,
        dtype=str(model.model.manual_cast_dtype or model.model.get_dtype()).removeprefix("torch."),
        left=tuple(found for module in modules if isinstance(found := _forward(module, TORCH), Rejection)),
        compiled_whole=bool(model.get_wrappers(WrappersMP.APPLY_MODEL, _COMPILE_KEY)),
        has_override=without_ours(options.get(_OVERRIDE)) is not None,
    )


def accelerated(model: ModelPatcher, kernels: AttentionKernels, work: BlockKernels | None) -> ModelPatcher:
    """A clone whose attention runs on `kernels` and, unless it is `None`, whose blocks do their work by `work`.

    What an earlier application of this left on the model is replaced.
    """
    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, _KEY)
    if work is not None:
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, _KEY, partial(_run_fused, work))
    options = clone.model_options["transformer_options"]
    options[_OVERRIDE] = AttentionOverride(kernels, clone.load_device, without_ours(options.get(_OVERRIDE)))
    return clone


def _run_fused(work: BlockKernels, executor: WrapperExecutor, *args: object, **kwargs: object) -> Tensor:
    if torch.compiler.is_compiling():
        # Somebody compiles the model whole, and fuses the same work on their own.
        return executor(*args, **kwargs)
    with _fused(executor.class_obj, work):
        return executor(*args, **kwargs)


@contextmanager
def _fused(transformer: nn.Module, work: BlockKernels) -> Iterator[None]:
    """The transformer's blocks with our forward where they are as we know them, for the duration of one call."""
    before: list[tuple[nn.Module, Callable[..., Tensor] | None]] = []
    try:
        for module in transformer.modules():
            forward = _forward(module, work) if isinstance(module, _KNOWN) else None
            if callable(forward):
                before.append((module, vars(module).get("forward")))
                module.forward = forward
        yield
    finally:
        for module, forward in before:
            if forward is None:
                del module.forward
            else:
                module.forward = forward


_KNOWN = (wan.WanAttentionBlock, wan.WanSelfAttention)


def _forward(module: nn.Module, work: BlockKernels) -> Callable[..., Tensor] | Rejection:
    """Our forward for a block or a self attention, or why it keeps its own."""
    kind = type(module)
    known, arguments, ours = {
        True: (wan.WanAttentionBlock, _BLOCK_ARGUMENTS, _block),
        False: (wan.WanSelfAttention, _ATTENTION_ARGUMENTS, _self_attention),
    }[isinstance(module, wan.WanAttentionBlock)]
    own = vars(module).get("forward")
    reason = None
    if kind is not known:
        reason = "of another kind than we know"
    elif own is not None and getattr(own, "__func__", None) is not kind.forward:
        # What the host puts back after an object patch is the bound method, which is the module's own.
        reason = "replaced by another node"
    elif tuple(inspect.signature(kind.forward).parameters) != arguments:
        reason = "its forward takes other arguments in this version of ComfyUI"
    elif known is wan.WanAttentionBlock and not _is_bare_norm(module.norm1, module.norm2):
        reason = "its norms have weights"
    elif known is wan.WanSelfAttention and not _is_rms_norm(module.norm_q, module.norm_k):
        reason = "queries and keys are not normed as we know it"
    return partial(ours, module, work) if reason is None else Rejection(name=kind.__name__, reason=reason)


def _is_bare_norm(*norms: nn.Module) -> bool:
    return all(isinstance(norm, nn.LayerNorm) and norm.weight is None for norm in norms)


def _is_rms_norm(*norms: nn.Module) -> bool:
    return all(isinstance(norm, comfy.ops.disable_weight_init.RMSNorm) and norm.weight is not None for norm in norms)


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
    if e.ndim != 4 or e.shape[1] not in (1, x.shape[1]) or "attn2_patch" in options.get("patches", {}):
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
    if tables is None or "attn1_patch" in options.get("patches", {}):
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


def _tables(freqs: Tensor, x: Tensor) -> Tables | None:
    """Cosines and sines (L, 1, D / 2) of the host's matrices; `None` where they are not one for each token of x."""
    if freqs.ndim != 6 or freqs.shape[:3] != (1, x.shape[1], 1) or freqs.dtype != torch.float32:
        return None
    return freqs[0, ..., 0, 0].contiguous(), freqs[0, ..., 1, 0].contiguous()
