"""Layers of streamed blocks that are called outside of their block's forward.

A block's hooks see only its forward. Where a layer in it is called from elsewhere (the keys and values of a text are
projected once per run), that layer's own weights are brought for the call, and no others.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .layout import Unit
from .weights import Weights


@contextmanager
def single_layers(weights: Weights) -> Iterator[None]:
    """While it is open, the layers of streamed blocks can be called one by one; the blocks themselves cannot."""
    with ExitStack() as hooks:
        for unit in weights.streamed:
            for layer, part in _layers(weights, unit):
                for handle in _hooked(weights, layer, part):
                    hooks.callback(handle.remove)
        yield


def _layers(weights: Weights, unit: Unit) -> Iterator[tuple[nn.Module, Unit]]:
    """Every layer in a block that holds tensors by itself, with these."""
    for path, layer in weights.block(unit).named_modules(prefix=f"blocks.{unit.block}"):
        names = {name for name in unit.names if name.rpartition(".")[0] == path}
        if names and layer is not weights.block(unit):
            yield layer, unit.part(names)


def _hooked(weights: Weights, layer: nn.Module, part: Unit) -> tuple[RemovableHandle, RemovableHandle]:
    replaced: list[dict[str, Tensor]] = []

    def before(layer: object, inputs: object) -> None:
        replaced.append(weights.lend(part))

    def after(layer: object, inputs: object, answer: object) -> None:
        weights.put_back(replaced.pop())

    # Where the call fails, what stands in the place of the weights must still go.
    return layer.register_forward_pre_hook(before), layer.register_forward_hook(after, always_call=True)
