"""Which module has the device: the policies of a placement, each asked at every switch.

A residency is created once per built model. It moves weights and says nothing about which module runs next; where it is
told before, it hides the switch. What it does for the time of a run (hooks, buffers) ends with `release`.
"""

from collections.abc import Callable, Collection, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch

from ..placement import Placement
from .handover import Handover
from .lane import CopyLane
from .outside import single_layers
from .stream import BlockStream, buffer_bytes
from .weights import OnBytes, Weights

OnLoad = Callable[[str, int, int], None]


class Residency(Protocol):
    """Decides which modules have the device. Created once per built model, asked at every switch."""

    def activate(self, name: Hashable, on_load: OnLoad, *, later: Collection[Hashable] = ()) -> None:
        """When this returns, the module `name` can be called. later: what will be activated in the same run."""

    def prepare(self, name: Hashable, num_forwards: int) -> None:
        """After so many more forwards of the active module `name` is activated; the active one may be gone by then."""

    def single_layers(self, name: Hashable) -> AbstractContextManager[None]:
        """While it is open, layers in blocks of the active module can be called outside of their block's forward."""

    @property
    def buffer_bytes(self) -> int:
        """Device memory that a run takes beside what stays there of the weights."""

    def release(self) -> None:
        """The run is over, however it ended."""

    def notes(self) -> tuple[str, ...]:
        """What a user should know about where the weights are."""


class KeepResident:
    """Every module stays on the device once it is there."""

    def __init__(self, weights: Mapping[Hashable, Weights]) -> None:
        self._weights = weights

    def activate(self, name: Hashable, on_load: OnLoad, *, later: Collection[Hashable] = ()) -> None:
        for each in _in_order(self._weights, name, later):
            self._weights[each].to_device(_told(on_load, each))
            self._weights[each].forget_copies()  # of a placement before this one

    def prepare(self, name: Hashable, num_forwards: int) -> None: ...

    def single_layers(self, name: Hashable) -> AbstractContextManager[None]:
        return nullcontext()

    @property
    def buffer_bytes(self) -> int:
        return 0

    def release(self) -> None: ...

    def notes(self) -> tuple[str, ...]:
        return ()


class TakeTurns:
    """One module at a time has the device, whole or but for its streamed blocks; the others wait on the host."""

    def __init__(
        self, weights: Mapping[Hashable, Weights], make_lane: Callable[[torch.device], CopyLane] = CopyLane
    ) -> None:
        self._weights = weights
        self._make_lane = make_lane
        self._active: Hashable | None = None
        self._lane: CopyLane | None = None
        self._stream: BlockStream | None = None
        self._handover: Handover | None = None

    def activate(self, name: Hashable, on_load: OnLoad, *, later: Collection[Hashable] = ()) -> None:
        lane = self._copy_lane()
        self._end_handover()
        lane.wait()
        if self._stream is None:
            self._stream = BlockStream(self._weights.values(), lane)
        chosen = self._weights[name]
        self._make_room(chosen)
        if self._active is None:
            for each in _in_order(self._weights, name, later):
                # Those first that are needed in every forward.
                units = (*self._weights[each].streamed, *self._weights[each].resident)
                self._weights[each].copy_to_host(units, _told(on_load, each))
        else:
            chosen.copy_to_host(chosen.streamed, _told(on_load, name))
        chosen.to_device(_told(on_load, name))
        self._stream.start(chosen)
        self._active = name

    def prepare(self, name: Hashable, num_forwards: int) -> None:
        giver, taker = self._weights[self._active], self._weights[name]
        self._end_handover()
        self._handover = Handover(giver, taker, num_forwards, self._copy_lane())
        self._stream.follow_with(taker, num_forwards)

    def single_layers(self, name: Hashable) -> AbstractContextManager[None]:
        return single_layers(self._weights[name])

    @property
    def buffer_bytes(self) -> int:
        return buffer_bytes(self._weights.values())

    def release(self) -> None:
        self._end_handover()
        if self._lane is not None:
            # Nobody may get memory that something is still being copied to.
            self._lane.close()
        if self._stream is not None:
            self._stream.stop()
        self._lane = self._stream = self._active = None

    def notes(self) -> tuple[str, ...]:
        return tuple(note for name, weights in self._weights.items() if (note := _note(str(name), weights)))

    def _make_room(self, chosen: Weights) -> None:
        """Take all others off the device, and off the host where `chosen` would have to be read in every forward."""
        is_short = chosen.lacks_room_for_streaming
        for weights in self._weights.values():
            if weights is not chosen and is_short:
                weights.drop()
            elif weights is not chosen:
                weights.to_host()

    def _copy_lane(self) -> CopyLane:
        if self._lane is None:
            self._lane = self._make_lane(next(iter(self._weights.values())).device)
        return self._lane

    def _end_handover(self) -> None:
        if self._handover is not None:
            self._handover.end()
            self._handover = None


def _in_order(weights: Mapping[Hashable, Weights], name: Hashable, later: Collection[Hashable]) -> list[Hashable]:
    """What a run loads when it begins: what a later switch needs must not have to be read in the middle of it."""
    return [name, *(each for each in weights if each in later and each != name)]


def residency_for(placement: Placement, weights: Mapping[Hashable, Weights]) -> Residency:
    """The residency that carries out a placement; how many blocks are streamed the weights know."""
    return KeepResident(weights) if placement.policy == "resident" else TakeTurns(weights)


def _note(name: str, weights: Weights) -> str | None:
    if weights.device.type != "cuda":
        return None
    if missing := weights.nbytes - weights.bytes_on_host:
        return (
            f"{missing / 2**30:.1f} GiB of the {name} found no room in the host's memory; they are read "
            "from the file whenever they are needed"
        )
    if loose := weights.bytes_on_host - weights.bytes_pinned:
        return (
            f"the system refused to page-lock {loose / 2**30:.1f} GiB of the {name}; copying them to the "
            "device is slower"
        )
    return None


def _told(on_load: OnLoad, name: Hashable) -> OnBytes:
    return lambda done, total: on_load(str(name), done, total)
