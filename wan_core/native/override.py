"""Our attention as a host's override: `override(function, q, k, v, heads, ..., **options)` in place of `function`.

q, k, v come as (B, L, N D), the result has that form. An override that was there before stays in front: it is handed
our attention as the function that it replaces, so what it passes on is computed by our kernel, and what it keeps is
its own. Whatever our kernels do not do (masks, scales, other layouts, options that are not known here) goes on to the
host's function untouched, with every option that came.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from einops import rearrange
from torch import Tensor

from .kernels import AttentionKernels

AttentionFunction = Callable[..., Tensor]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Options that ask for nothing when they have one of these values; any value will do where there is `None` for a tuple.
_ASKS_NOTHING: Mapping[str, tuple[object, ...] | None] = MappingProxyType(
    {
        "mask": (None,),
        "attn_precision": (None,),
        "skip_reshape": (False,),
        "skip_output_reshape": (False,),
        "scale": (None,),
        "enable_gqa": (False,),
        "low_precision_attention": (True,),
        "preferred_attention": (None,),
        "transformer_options": None,
        "_inside_attn_wrapper": None,
    }
)


class AttentionOverride:
    """The override of one accelerated model.

    kernels: what runs. device: where they run; tensors elsewhere are the host's. previous: the override before this.
    """

    def __init__(
        self, kernels: AttentionKernels, device: torch.device, previous: AttentionFunction | None = None
    ) -> None:
        self._kernels = kernels
        self._device = device
        self.previous = previous

    def __call__(self, function: AttentionFunction, *args: object, **options: object) -> Tensor:
        if self.previous is None:
            return self._attend(function, *args, **options)
        return self.previous(partial(self._attend, function), *args, **options)

    def _attend(
        self, function: AttentionFunction, q: Tensor, k: Tensor, v: Tensor, heads: int, *more: object, **options: object
    ) -> Tensor:
        if more or not asks_nothing(options) or not self._is_plain(q, k, v):
            return function(q, k, v, heads, *more, **options)
        queries = (q.shape[0], q.shape[1], heads, q.shape[2] // heads)
        attend = self._kernels.attend(queries, k.shape[1], q.dtype)
        split = (rearrange(tensor, "B L (N D) -> B L N D", N=heads) for tensor in (q, k, v))
        return rearrange(attend(*split), "B L N D -> B L (N D)")

    def _is_plain(self, *tensors: Tensor) -> bool:
        """Three tensors of one width and one dtype on our device, of which nobody wants a gradient."""
        q = tensors[0]
        return q.dtype in _DTYPES and all(
            tensor.ndim == 3
            and tensor.shape[0] == q.shape[0]
            and tensor.shape[2] == q.shape[2]
            and tensor.dtype == q.dtype
            and tensor.device == self._device
            and not (tensor.requires_grad and torch.is_grad_enabled())
            for tensor in tensors
        )


def asks_nothing(options: Mapping[str, object]) -> bool:
    """Whether attention with these options is plain attention."""
    return all(
        name in _ASKS_NOTHING
        and (_ASKS_NOTHING[name] is None or any(value is neutral for neutral in _ASKS_NOTHING[name]))
        for name, value in options.items()
    )


def without_ours(override: AttentionFunction | None) -> AttentionFunction | None:
    """What was there before us, where we have been applied to a model already."""
    while isinstance(override, AttentionOverride):
        override = override.previous
    return override
