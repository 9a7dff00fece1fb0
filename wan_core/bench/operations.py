"""Which operation a piece of work belongs to: by its place in the model, or where a compiler removed places, by kernel.

Places are ranges of the profiler, opened and closed by hooks on modules; what runs directly in one, and in no place
inside it, belongs to that place. Official and diffusers' names of modules are known, so the reference, ComfyUI,
diffusers and our transformer fall into the same rows. Inside a place the operators around a kernel tell attention from
the rotation before it, and a product from the cast in front of it.
"""

import re
from collections.abc import Sequence
from itertools import takewhile

# Before the names of our ranges, to tell them from operators.
PREFIX = "wan: "

SELF_ATTENTION, CROSS_ATTENTION, LINEAR = "self attention", "cross attention", "linear"
NORM, ROPE, ACTIVATION = "norm and modulation", "RoPE", "activation"
CASTS, OUTSIDE = "casts before products", "embeddings and head"
GUIDANCE, SOLVER, OTHER = "guidance", "solver", "other"
ANY_ATTENTION, FUSED, ELEMENTWISE = "attention (self and cross)", "fused elementwise", "elementwise and copies"

# The order of rows; what a contestant has none of is left out.
ORDER = (
    SELF_ATTENTION, CROSS_ATTENTION, ANY_ATTENTION, LINEAR, CASTS, NORM, ROPE, ACTIVATION, FUSED, ELEMENTWISE, OUTSIDE,
    GUIDANCE, SOLVER, OTHER,
)  # fmt: skip

_SELF, _CROSS, _BLOCK, _LINEAR = "self", "cross", "block", "linear"
_PLACES = tuple(
    (re.compile(pattern), place)
    for pattern, place in (
        (r"", OUTSIDE),
        (r"rope", ROPE),
        (r"blocks\.\d+", _BLOCK),
        (r"blocks\.\d+\.(self_attn|attn1)", _SELF),
        (r"blocks\.\d+\.(cross_attn|attn2)", _CROSS),
        (r"blocks\.\d+\.(.+\.)?norm\w*", NORM),
        (r"blocks\.\d+\.ffn", ACTIVATION),
        (r"blocks\.\d+\.(self_attn|cross_attn)\.[qkvo]", _LINEAR),
        (r"blocks\.\d+\.attn[12]\.(to_[qkv]|to_out\.0)", _LINEAR),
        (r"blocks\.\d+\.ffn\.(0|2|net\.0\.proj|net\.2)", _LINEAR),
    )
)
_DEFAULTS = {_SELF: ROPE, _CROSS: NORM, _BLOCK: NORM, _LINEAR: LINEAR}
_IN_BLOCK = frozenset({_SELF, _CROSS, _BLOCK, _LINEAR, NORM, ACTIVATION})

_IS_ATTENTION = re.compile(r"attention|flash_attn|xformers|sage|sdpa|sdp_choice", re.IGNORECASE)
_IS_PRODUCT = re.compile(r"^aten::(linear|addmm|mm|matmul|bmm|baddbmm|_scaled_mm|conv\w*)$")
_IS_ACTIVATION = re.compile(r"^aten::(gelu|silu)$")
_IS_CAST = re.compile(r"^aten::(to|_to_copy|copy_|contiguous|clone)$")

_KERNEL_KINDS = tuple(
    (re.compile(pattern, re.IGNORECASE), kind)
    for pattern, kind in (
        # Attention first: its kernels carry the words of products too ("cutlass", "wgmma").
        (r"attention|flash|fmha|sdpa|sage", ANY_ATTENTION),
        (r"gemm|nvjet|cutlass|cublas|xmma|wgmma|splitk|triton_(mm|tem)|_scaled_mm|addmm|aten::b?mm$", LINEAR),
        (r"^triton_|fused", FUSED),
        (r"elementwise|reduce_kernel|memcpy|memset|catarray|copy", ELEMENTWISE),
    )
)


def place_of(module_name: str) -> str | None:
    """The place that a module opens, `None` for one that belongs to the module around it."""
    return next((place for pattern, place in _PLACES if pattern.fullmatch(module_name)), None)


def by_place(around: Sequence[str], kernel: str) -> str:
    """Operation of a kernel, given the names of the ranges and operators around it, from the inside out."""
    operators = list(takewhile(lambda name: not name.startswith(PREFIX), around))
    place = _innermost(around)
    if place is None:
        return _unplaced(operators, kernel)
    is_product = _any(_IS_PRODUCT, operators)
    # Linear layers are places of their own, so a product right inside an attention module is attention spelled out.
    if _any(_IS_ATTENTION, operators) or (place in (_SELF, _CROSS) and is_product):
        return CROSS_ATTENTION if place == _CROSS else SELF_ATTENTION
    if place in _IN_BLOCK:
        if is_product:
            return LINEAR
        if _any(_IS_ACTIVATION, operators):
            return ACTIVATION
        if place == _LINEAR and _any(_IS_CAST, operators):
            return CASTS
    return _DEFAULTS.get(place, place)


def without_places(around: Sequence[str], kernel: str) -> str:
    """Operation of a kernel where modules open no places: by its name, but for the solver, which is no module."""
    return SOLVER if _innermost(around) == SOLVER else by_kernel(kernel)


def by_kernel(kernel: str) -> str:
    """Operation of a kernel by its own name alone."""
    return next((kind for pattern, kind in _KERNEL_KINDS if pattern.search(kernel)), OTHER)


def _innermost(around: Sequence[str]) -> str | None:
    return next((name.removeprefix(PREFIX) for name in around if name.startswith(PREFIX)), None)


def _unplaced(operators: Sequence[str], kernel: str) -> str:
    """Kernels that were launched past PyTorch's own launcher carry no operators: vendors' attention, and Triton's."""
    kind = by_kernel(kernel)
    return kind if not operators and kind in (ANY_ATTENTION, FUSED) else OTHER


def _any(pattern: re.Pattern[str], names: Sequence[str]) -> bool:
    return any(pattern.search(name) for name in names)
