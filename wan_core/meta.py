"""Modules without memory or numbers, on the meta device: shapes to be filled from a file, or to be counted.

PyTorch answers most operators there in Python, and the first such answer imports its compiler, sympy and parts of its
distributed package: 800 modules, 2.1 seconds of CPU time (torch 2.13) before anything is planned. The few operators
that models of this pack consist of are answered here: first numbers are not drawn, and what has the shape that its
inputs give is empty memory. Whatever is not known here is left to PyTorch, which is as right and only slower once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

Operator = Callable[..., object]


@contextmanager
def without_numbers() -> Iterator[None]:
    """Whatever is created in here is on the meta device, and no first numbers are drawn for it."""
    with torch.device("meta"), _Shapes():
        yield


class OutsideCompiler(TorchDispatchMode):
    """A mode that no compiled code runs under: PyTorch need not import its compiler to tell it to stay away."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # PyTorch's own question, asked when a subclass is made
        return False


class _Shapes(OutsideCompiler):
    def __torch_dispatch__(self, func: Operator, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        return answer(func, args, kwargs or {})


def answer(func: Operator, args: tuple, kwargs: dict) -> object:
    """What the operator `func` gives; on the meta device where possible without asking Python."""
    if (own := _CREATED.get(func)) is not None:
        return own(func, args, kwargs)
    tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors or not all(tensor.is_meta for tensor in tensors):
        return func(*args, **kwargs)
    if (own := _ANSWERED.get(func)) is not None:
        return own(*args, **kwargs)
    if torch.Tag.pointwise in func.tags:
        if func._schema.name.endswith("_"):
            return args[0]  # changed in place
        if not func._schema.is_mutable:
            return _pointwise(func, args, kwargs, tensors)
    return func(*args, **kwargs)


def _pointwise(func: Operator, args: tuple, kwargs: dict, tensors: Sequence[Tensor]) -> Tensor:
    """The shape that the inputs have together, and the dtype that the CPU's operator gives where it has nothing to do.

    Of the shapes `torch.broadcast_shapes` would say the same, but that is Python as well.
    """
    on_cpu, options = tree_map_only(Tensor, _none_of, (args, kwargs))
    one = torch.empty((), device="cpu")
    shape = torch.broadcast_tensors(*(one.expand(tensor.shape) for tensor in tensors))[0].shape
    return _empty(shape, func(*on_cpu, **options).dtype)


def _none_of(tensor: Tensor) -> Tensor:
    """A tensor on the CPU with no elements (one, where it has no dimensions) that broadcasts and promotes like this."""
    return torch.empty([1 if size == 1 else 0 for size in tensor.shape], dtype=tensor.dtype, device="cpu")


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _counted_out(func: Operator, args: tuple, kwargs: dict) -> Tensor:
    device = kwargs.pop("device", None)
    return func(*args, **kwargs, device="cpu").to(device)  # a row of numbers; it is short


def _new_empty(x: Tensor, shape: Sequence[int], *, dtype: torch.dtype | None = None, **_: object) -> Tensor:
    return _empty(shape, dtype or x.dtype)


def _like_the_first(x: Tensor, *_: object, dtype: torch.dtype | None = None, **__: object) -> Tensor:
    return _empty(x.shape, dtype or x.dtype)


def _linear(x: Tensor, weight: Tensor, _: Tensor | None = None) -> Tensor:
    return _empty((*x.shape[:-1], weight.shape[0]), x.dtype)


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    shape = list(tensors[0].shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return _empty(shape, reduce(torch.promote_types, (tensor.dtype for tensor in tensors)))


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return _cat([tensor.unsqueeze(dim) for tensor in tensors], dim)


_aten = torch.ops.aten
# Those that make a tensor of none.
_CREATED = {
    _aten.randn.default: lambda func, args, kwargs: torch.empty(*args, **kwargs),
    _aten.arange.default: _counted_out,
    _aten.arange.start_step: _counted_out,
}
_ANSWERED = {
    _aten.normal_.default: lambda x, *_, **__: x,
    _aten.uniform_.default: lambda x, *_, **__: x,
    _aten.empty_like.default: _like_the_first,
    _aten.new_empty.default: _new_empty,
    _aten._to_copy.default: _like_the_first,
    _aten.layer_norm.default: _like_the_first,
    _aten.rms_norm.default: _like_the_first,
    _aten.linear.default: _linear,
    _aten.cat.default: _cat,
    _aten.stack.default: _stack,
}
