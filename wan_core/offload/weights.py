"""The weights of one module: in the file, on the host, on the device, or in parts here and there.

A module is built on the meta device. Its tensors get their memory unit by unit (`layout.py`) and their values from a
function, straight to where they are needed. Weights are only read: they leave the device by being forgotten. What has a
copy on the host comes back in one copy per unit, anything else is read from its file again. Copies are made where they
will be needed again and again (`residency.TakeTurns`), never on the way out.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum

import torch
from torch import Tensor, nn

from .host_memory import DriverPinning, HostMemory, free_bytes
from .layout import Unit, units_of

OnBytes = Callable[[int, int], None]
# Writes the values of a module's tensors, by name, into memory of their shape and dtype. What is beside is also pointed
# to by the module already.
Fill = Callable[[Mapping[str, Tensor], OnBytes], None]


class Place(Enum):
    """Where a module's weights are: on the device as soon as a part is, in the file only where no part is in memory."""

    FILE = "file"
    HOST = "host"
    DEVICE = "device"


class Weights:
    """The weights of one module and their place.

    module: on the meta device, every tensor in the dtype that it will have. fill: see `Fill`; where it raises, the
    weights are back in the file. dtype: of inputs and matrix products. streamed_blocks: so many of the last blocks
    never stay on the device. is_beside: by name, tensors that the file does not hold. may_read_in_thread: `fill`
    changes no settings of the process, so that it may run while others compute.
    """

    def __init__(
        self,
        module: nn.Module,
        fill: Fill,
        *,
        device: str,
        dtype: torch.dtype,
        streamed_blocks: int = 0,
        is_beside: Callable[[str], bool] = lambda name: False,
        may_read_in_thread: bool = True,
    ) -> None:
        self.module = module
        self.device = torch.device(device)
        self.dtype = dtype
        self.units = units_of(module, is_beside)
        blocks = [unit for unit in self.units if unit.block is not None]
        assert streamed_blocks <= len(blocks), f"{streamed_blocks} streamed blocks of {len(blocks)}"
        self.streamed = tuple(blocks[len(blocks) - streamed_blocks :])
        self.resident = tuple(unit for unit in self.units if unit not in self.streamed)
        self.pinning = DriverPinning() if self.device.type == "cuda" else None
        self.host_room: Callable[[], int] = free_bytes
        self._fill = fill
        self._may_read_in_thread = may_read_in_thread
        self._on_device: dict[Unit, Tensor] = {}
        self._on_host: dict[Unit, HostMemory] = {}
        self._places = _places(module)
        self._meta = {name: owner[leaf] for name, (owner, leaf) in self._places.items()}

    @property
    def nbytes(self) -> int:
        """Size of all weights."""
        return sum(unit.nbytes for unit in self.units)

    @property
    def resident_bytes(self) -> int:
        """Size of what stays on the device while the module is in use."""
        return sum(unit.nbytes for unit in self.resident)

    @property
    def bytes_on_device(self) -> int:
        # A thread may be adding to it.
        return sum(unit.nbytes for unit in tuple(self._on_device))

    @property
    def bytes_on_host(self) -> int:
        return sum(memory.nbytes for memory in self._on_host.values())

    @property
    def bytes_pinned(self) -> int:
        return sum(memory.nbytes for memory in self._on_host.values() if memory.is_pinned)

    @property
    def place(self) -> Place:
        return Place.DEVICE if self._on_device else Place.HOST if self._on_host else Place.FILE

    def is_in_memory(self, name: str) -> bool:
        """Whether the module holds this tensor now; otherwise it is read when it is needed."""
        owner, leaf = self._places[name]
        return not owner[leaf].is_meta

    def is_on_device(self, unit: Unit) -> bool:
        return unit in self._on_device

    def reads_in_thread(self, unit: Unit) -> bool:
        """Whether bringing a unit keeps the host busy, and may do so in a thread of its own."""
        return unit not in self._on_host and self._may_read_in_thread

    @property
    def lacks_room_for_streaming(self) -> bool:
        """Whether streamed blocks have to be read from the file in every forward, because copies find no room."""
        missing = sum(unit.nbytes for unit in self.streamed if unit not in self._on_host)
        return missing > 0 and missing > self.host_room()

    def block(self, unit: Unit) -> nn.Module:
        return self.module.blocks[unit.block]

    def to_device(self, on_bytes: OnBytes | None = None) -> None:
        """Bring what is to stay there to the device, from the host where it is there, else straight from the file."""
        missing = [unit for unit in self.resident if unit not in self._on_device]
        unread = [unit for unit in missing if unit not in self._on_host]
        with self._whole_or_not_at_all():
            for unit in missing:
                self._take_place(unit, device_memory(unit.nbytes, self.device))
                if unit in self._on_host:
                    self._on_device[unit].copy_(self._on_host[unit].data, non_blocking=True)
            self._read(unread, on_bytes)

    def copy_to_host(self, units: Iterable[Unit], on_bytes: OnBytes | None = None) -> None:
        """Give units a copy on the host, the first ones, if there is no room for all."""
        absent = [unit for unit in units if unit not in self._on_host]
        chosen = self._that_fit(absent)
        unread = [unit for unit in chosen if unit not in self._on_device]
        with self._whole_or_not_at_all():
            for unit in chosen:
                self._on_host[unit] = memory = HostMemory(unit.nbytes, self.pinning)
                if unit in self._on_device:
                    memory.data.copy_(self._on_device[unit])
                else:
                    self._point(unit, unit.views(memory.data))
            self._read(unread, on_bytes)

    def to_host(self) -> None:
        """Leave the device for a while; what finds no room for a copy on the host is read again from the file."""
        self.copy_to_host(tuple(self._on_device))
        self.leave_device()

    def leave_device(self) -> None:
        """Leave the device; copies on the host stay, and what has none is read from its file when it is needed.

        No copy is made now: that of both experts took 22 to 26 s on one H200, a run that read their files again (from a
        file system in memory) took 16 and one that found copies 12. The system keeps files in memory that is free.
        """
        for unit in tuple(self._on_device):
            self.give(unit)

    def forget_copies(self) -> None:
        """Give back what the host holds of that which is on the device."""
        for unit in self._on_device:
            self._on_host.pop(unit, None)

    def drop(self) -> None:
        """Give all memory back; the next use reads the file again."""
        for unit in self.units:
            self._point(unit, self._meta)
        self._on_device.clear()
        self._on_host.clear()

    def give(self, unit: Unit) -> Tensor | None:
        """Take a unit off the device; returns the memory that it had there."""
        memory = self._on_device.pop(unit, None)
        self.leave_buffer(unit)
        return memory

    def receive(self, unit: Unit, memory: Tensor) -> None:
        """Bring a unit to a piece of device memory, where it stays."""
        self._bring(unit, memory)
        self._take_place(unit, memory)

    def fill_buffer(self, unit: Unit, buffer: Tensor) -> None:
        """Bring a unit to a buffer on the device."""
        self._bring(unit, buffer)

    def use_buffer(self, unit: Unit, buffer: Tensor) -> None:
        """The module's tensors of a unit are those in a buffer, until `leave_buffer`."""
        self._point(unit, unit.views(buffer))

    def leave_buffer(self, unit: Unit) -> None:
        """The module's tensors of a unit are those on the host again, or none."""
        host = self._on_host.get(unit)
        self._point(unit, self._meta if host is None else unit.views(host.data))

    def lend(self, part: Unit) -> dict[str, Tensor]:
        """Bring a part of a unit to the device, for one use; returns what stood in its place, for `put_back`."""
        before = {name: self._tensor(name) for name in part.names}
        lent = part.views(device_memory(part.nbytes, self.device))
        unit = next(unit for unit in self.units if unit.block == part.block and not unit.is_beside)
        if (host := self._on_host.get(unit)) is None:
            self._fill(lent, _silent)
        else:
            copies = unit.views(host.data)
            for name, tensor in lent.items():
                tensor.copy_(copies[name], non_blocking=True)
        self._point(part, lent)
        return before

    def put_back(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo `lend`."""
        for name, tensor in tensors.items():
            self._set(name, tensor)

    def mirror(self, names: Iterable[str]) -> None:
        """Bring copies on the host up to date with tensors that were changed in place on the device."""
        changed = set(names)
        for unit, memory in self._on_host.items():
            if unit in self._on_device:
                for name, copy in unit.views(memory.data).items():
                    if name in changed:
                        copy.copy_(self._tensor(name))

    def take_over(self, other: "Weights") -> None:
        """Hold what `other` holds, where it holds it, and leave it without.

        Its units have the same layouts, but for what is beside: that gets memory of its own, uninitialised.
        """
        theirs = {unit.slots: unit for unit in other.units if not unit.is_beside}
        is_on_device, is_on_host = bool(other._on_device), bool(other._on_host)
        for unit in self.units:
            source = None if unit.is_beside else theirs[unit.slots]
            on_host = HostMemory(unit.nbytes, self.pinning) if source is None and is_on_host else None
            if on_host := on_host or other._on_host.get(source):
                self._on_host[unit] = on_host
                self.leave_buffer(unit)
            memory = device_memory(unit.nbytes, self.device) if source is None and is_on_device else None
            memory = other._on_device.get(source) if memory is None else memory
            if memory is not None and unit in self.resident:
                self._take_place(unit, memory)
        other.drop()

    def _that_fit(self, units: Collection[Unit]) -> list[Unit]:
        room, chosen = self.host_room() if units else 0, []
        for unit in units:
            if unit.nbytes <= room:
                chosen.append(unit)
                room -= unit.nbytes
        return chosen

    def _bring(self, unit: Unit, memory: Tensor) -> None:
        if unit in self._on_host:
            memory[: unit.nbytes].copy_(self._on_host[unit].data, non_blocking=True)
        else:
            self._fill(unit.views(memory), _silent)

    def _read(self, units: Collection[Unit], on_bytes: OnBytes | None) -> None:
        if units:
            # All at once: files are fast in their own order, which is not that of the units.
            self._fill({name: self._tensor(name) for unit in units for name in unit.names}, on_bytes or _silent)

    def _take_place(self, unit: Unit, memory: Tensor) -> None:
        self._on_device[unit] = memory
        self._point(unit, unit.views(memory))

    def _point(self, unit: Unit, tensors: Mapping[str, Tensor]) -> None:
        for name in unit.names:
            self._set(name, tensors[name])

    def _set(self, name: str, tensor: Tensor) -> None:
        owner, leaf = self._places[name]
        owner[leaf] = tensor

    def _tensor(self, name: str) -> Tensor:
        owner, leaf = self._places[name]
        return owner[leaf]

    def _whole_or_not_at_all(self) -> "_DropOnError":
        return _DropOnError(self)


class _DropOnError:
    """Whatever ends a load early (a damaged file, no memory, an interrupt) leaves nothing half loaded."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if kind is not None:
            self._weights.drop()


def _places(module: nn.Module) -> dict[str, tuple[dict[str, Tensor], str]]:
    """The dictionary of its owner and its key in there, by tensor.

    Written directly: the same parameters come and go thousands of times in a run.
    """
    places = {}
    for path, owner in module.named_modules():
        prefix = f"{path}." if path else ""
        for held in (owner._parameters, owner._buffers):
            places |= {f"{prefix}{leaf}": (held, leaf) for leaf, tensor in held.items() if tensor is not None}
    return places


def device_memory(nbytes: int, device: torch.device) -> Tensor:
    """A piece of a device's memory (nbytes,) uint8, uninitialised."""
    with torch.inference_mode(mode=False):
        return torch.empty(nbytes, dtype=torch.uint8, device=device)


def _silent(done: int, total: int) -> None: ...
