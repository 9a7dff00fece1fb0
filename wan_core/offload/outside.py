"""Layers of streamed blocks that are called outside of their block's forward.

A block's hooks see only its forward. Where a layer in it is called from elsewhere (the keys and values of a text are
projected once per run), that layer's matrix is brought for the call, and no other. All that is no matrix (norms,
biases) is small and may be used without any call, so it is there for the whole time.
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
    with ExitStack() as ending:
        for unit in weights.streamed:
            matrices = {slot.name for slot in unit.slots if len(slot.shape) == 2}
            small = unit.part(set(unit.names) - matrices)
            ending.callback(weights.put_back, weights.lend(small))
            for layer, part in _layers(weights, unit, matrices):
                for handle in _hooked(weights, layer, part):
                    ending.callback(handle.remove)
        yield


def _layers(weights: Weights, unit: Unit, matrices: set[str]) -> Iterator[tuple[nn.Module, Unit]]:
    """Every layer in a block that holds a matrix by itself, with this."""
    for path, layer in weights.block(unit).named_modules(prefix=f"blocks.{unit.block}"):
        names = {name for name in matrices if name.rpartition(".")[0] == path}
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
