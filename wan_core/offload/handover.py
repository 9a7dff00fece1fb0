"""The switch between two modules, hidden in the last forward of the first one.

As soon as a block has been used for the last time, its memory is the next module's: the same block of that one is
copied there while the rest of the forward computes. It takes no memory, and only the last block and what belongs to no
block are left to be copied when the forward is over.
"""

from torch.utils.hooks import RemovableHandle

from .lane import CopyLane
from .layout import Unit
from .weights import Weights


class Handover:
    """One switch: from its creation on, calls of `giver` are counted; with the last one the memory changes hands."""

    def __init__(self, giver: Weights, taker: Weights, num_forwards: int, lane: CopyLane) -> None:
        self._giver = giver
        self._taker = taker
        self._lane = lane
        self._handles: list[RemovableHandle] = []
        for mine, its in zip(_resident_blocks(giver), _resident_blocks(taker), strict=True):
            self._handles.append(self._hooked(mine, its, num_forwards))

    def end(self) -> None:
        """Give nothing more; what has changed hands stays where it is."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hooked(self, mine: Unit, its: Unit, num_forwards: int) -> RemovableHandle:
        left = num_forwards

        def after(block: object, inputs: object, answer: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._pass_on(mine, its)

        return self._giver.block(mine).register_forward_hook(after)

    def _pass_on(self, mine: Unit, its: Unit) -> None:
        memory = self._giver.give(mine)
        if memory is not None and not self._taker.is_on_device(its):
            assert memory.nbytes >= its.nbytes, "blocks of both modules have one layout"
            self._lane.send(lambda: self._taker.receive(its, memory), in_thread=self._taker.reads_in_thread(its))


def _resident_blocks(weights: Weights) -> list[Unit]:
    return [unit for unit in weights.resident if unit.block is not None]
