"""Blocks that pass through two buffers on the device: each arrives while the one before it computes.

The blocks are used in a circle, forward after forward, and after the last forward of one module the circle of the next
begins. A buffer is filled again as soon as the block in it has been used. Hooks on the blocks do all of it, outside of
what is compiled; a call out of order (a forward was broken off) starts the circle anew from there.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .lane import Arrival, CopyLane
from .layout import Unit
from .weights import Weights, device_memory

_NUM_BUFFERS = 2


@dataclass(frozen=True, slots=True, eq=False)
class _Ahead:
    """A block on its way to its next use."""

    weights: Weights
    unit: Unit
    buffer: Tensor
    arrival: Arrival


class BlockStream:
    """The streamed blocks of several modules, of which one is in use; all on one device."""

    def __init__(self, modules: Iterable[Weights], lane: CopyLane) -> None:
        self._modules = tuple(modules)
        self._lane = lane
        self._handles: list[RemovableHandle] = []
        self._ahead: deque[_Ahead] = deque()
        self._current: Weights | None = None
        self._position = 0
        self._following: Weights | None = None
        self._until_following = 0

    def start(self, weights: Weights) -> None:
        """Have the first blocks of a module on their way; nothing where they are already."""
        self._following = None
        if not weights.streamed or (self._ahead and self._ahead[0].weights is weights):
            return
        self._hook()
        buffers = [each.buffer for each in self._ahead] or self._allocate()
        self._fill_from(weights, weights.streamed[0], buffers)

    def follow_with(self, weights: Weights, num_forwards: int) -> None:
        """After so many more forwards of the current module the blocks of another one are needed."""
        self._following = weights
        self._until_following = num_forwards * len(weights.streamed) - len(self._ahead)

    def stop(self) -> None:
        """Remove every trace from the modules and give the buffers back; the lane must be waited for before."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for each in self._ahead:
            each.weights.leave_buffer(each.unit)
        self._ahead.clear()
        self._following = None

    def _hook(self) -> None:
        if self._handles:
            return
        for weights in self._modules:
            for unit in weights.streamed:
                self._handles += _hooked(self, weights, unit)

    def _allocate(self) -> list[Tensor]:
        size = _block_bytes(self._modules)
        return [device_memory(size, self._modules[0].device) for _ in range(_num_buffers(self._modules))]

    def _fill_from(self, weights: Weights, unit: Unit, buffers: list[Tensor]) -> None:
        for each in self._ahead:
            each.weights.leave_buffer(each.unit)
        self._ahead.clear()
        self._following = None
        self._current, self._position = weights, weights.streamed.index(unit)
        for buffer in buffers:
            self._send(buffer)

    def _send(self, buffer: Tensor) -> None:
        """Fill a buffer with what is needed next."""
        weights, unit = self._advance()
        arrival = self._lane.send(lambda: weights.fill_buffer(unit, buffer), in_thread=weights.reads_in_thread(unit))
        self._ahead.append(_Ahead(weights, unit, buffer, arrival))

    def _advance(self) -> tuple[Weights, Unit]:
        if self._following is not None:
            if self._until_following == 0:
                self._current, self._position, self._following = self._following, 0, None
            self._until_following -= 1
        weights = self._current
        unit = weights.streamed[self._position]
        self._position = (self._position + 1) % len(weights.streamed)
        return weights, unit

    def before(self, weights: Weights, unit: Unit) -> None:
        """A block is about to be used."""
        if self._ahead[0].unit is not unit:
            self._fill_from(weights, unit, [each.buffer for each in self._ahead])
        self._lane.wait_for(self._ahead[0].arrival)
        weights.use_buffer(unit, self._ahead[0].buffer)

    def after(self, unit: Unit) -> None:
        """A block has been used."""
        used = self._ahead.popleft()
        assert used.unit is unit, "hooks of one block come in pairs"
        used.weights.leave_buffer(unit)
        self._send(used.buffer)


def buffer_bytes(modules: Iterable[Weights]) -> int:
    """Device memory of the buffers that the streamed blocks of these modules pass through."""
    modules = tuple(modules)
    return _num_buffers(modules) * _block_bytes(modules)


def _num_buffers(modules: Iterable[Weights]) -> int:
    return min(_NUM_BUFFERS, max(len(weights.streamed) for weights in modules))


def _block_bytes(modules: Iterable[Weights]) -> int:
    return max((unit.nbytes for weights in modules for unit in weights.streamed), default=0)


def _hooked(stream: BlockStream, weights: Weights, unit: Unit) -> tuple[RemovableHandle, RemovableHandle]:
    def before(block: object, inputs: object) -> None:
        stream.before(weights, unit)

    def after(block: object, inputs: object, answer: object) -> None:
        stream.after(unit)

    block = weights.block(unit)
    return block.register_forward_pre_hook(before), block.register_forward_hook(after)
