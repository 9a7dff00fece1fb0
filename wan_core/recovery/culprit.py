"""Finding where numbers stop being finite: one forward again, with a look at what each part gets and gives.

Blocks are looked at as they run, compiled or not; then the first bad one is taken apart, uncompiled. Slow on purpose
(it waits for the device after every part) and rare. Blocks are counted from 0, as in the names of their weights.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .safe import eager

_ATTENTION = {"self_attn": "self attention", "cross_attn": "cross attention"}


def find_culprit(transformer: nn.Module, forward: Callable[[], object]) -> str:
    """The first part of `transformer` out of which `forward` gets what is not finite, in words; "" where all are.

    forward: runs the transformer once, in the way in which it failed.
    """
    parts = dict(transformer.named_children())
    parts |= {f"blocks.{index}": block for index, block in enumerate(parts.pop("blocks"))}
    if (first := _first_bad(parts, forward)) is None:
        return ""
    name, module = first.name, parts[first.name]
    where = name.replace("blocks.", "block ").replace("_", " ")
    leaves = {inner: each for inner, each in module.named_modules() if inner and not list(each.children())}
    bad_weights: list[str] = []
    with eager(), _weights_checked(module, bad_weights):
        found = _first_bad(leaves | {"": module}, forward)
    if bad_weights:
        return f"{where}, whose weight {f'{name}.{bad_weights[0]}'!r} is not finite (a broken file or LoRA)"
    if found is None:
        return f"{where}, and only when it is compiled"
    return f"{where}, {_in_words(found)}" if found.name else where


@dataclass(frozen=True, slots=True)
class _Found:
    name: str
    inputs_are_finite: bool


def _first_bad(parts: Mapping[str, nn.Module], forward: Callable[[], object]) -> _Found | None:
    """The first of these modules to give what is not finite."""
    found: list[_Found] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            if not found and not _is_finite(output):
                found.append(_Found(name, _is_finite(inputs)))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in parts.items()]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


@contextmanager
def _weights_checked(module: nn.Module, bad: list[str]) -> Iterator[None]:
    """Look at the weights right after the forward, when those of a streamed block are where they can be read."""

    def check(module: nn.Module, inputs: object, output: object) -> None:
        if not bad:
            bad.extend(name for name, each in module.named_parameters() if not _is_finite(each))

    handle = module.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _is_finite(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_finite(each) for each in value)
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.is_meta:
        return True
    # The 8-bit dtypes know no isfinite.
    return bool(torch.isfinite(value.float() if value.element_size() == 1 else value).all())


def _in_words(found: _Found) -> str:
    """For example "self attention kernel": between the layers of attention there is nothing but the kernel."""
    owner, _, leaf = found.name.partition(".")
    if owner in _ATTENTION and leaf == "o" and not found.inputs_are_finite:
        return f"{_ATTENTION[owner]} kernel"
    return f"layer {found.name!r}" if found.inputs_are_finite else f"what goes into layer {found.name!r}"
