"""Where weights are: the place of one module's weights, and the policy that decides which module has the device.

A module is built on the meta device and gets its weights from a loader (a file, mostly), straight to where they are
needed. `Weights` knows that place; a `Residency` is asked to `activate` one of several modules and says nothing about
which one runs next. The ComfyUI host has a residency of its own, so that its memory manager counts and evicts us.
"""

from collections.abc import Callable, Hashable, Mapping
from enum import Enum
from typing import Protocol

import torch
from torch import nn

OnBytes = Callable[[int, int], None]
Load = Callable[[nn.Module, torch.device, OnBytes], None]


class Place(Enum):
    """Where a module's weights are."""

    FILE = "file"
    HOST = "host"
    DEVICE = "device"


class Weights:
    """The weights of one module and their place.

    load(module, device, on_bytes): gives the meta parameters of `module` their values on `device`; where it fails it
    raises and leaves them meta. dtype: of inputs and matrix products. nbytes: size of the weights once loaded.
    """

    def __init__(self, module: nn.Module, load: Load, *, device: str, dtype: torch.dtype, nbytes: int) -> None:
        self.module = module
        self.device = torch.device(device)
        self.dtype = dtype
        self.nbytes = nbytes
        self.place = Place.FILE
        self._load = load

    @property
    def bytes_on_device(self) -> int:
        return self.nbytes if self.place is Place.DEVICE else 0

    def to_device(self, on_bytes: OnBytes | None = None) -> None:
        """Bring the weights to the device, from the host copy if there is one, else straight from the file."""
        self._bring(Place.DEVICE, self.device, on_bytes)

    def to_host(self, on_bytes: OnBytes | None = None) -> None:
        """Bring the weights to host memory."""
        self._bring(Place.HOST, torch.device("cpu"), on_bytes)

    def drop(self) -> None:
        """Give the memory back; the next use reads the file again."""
        self.module.to("meta")
        self.place = Place.FILE

    def take_over(self, other: "Weights") -> None:
        """Hold the parameters that `other` holds, where it holds them, and leave it without.

        Its module has parameters of the same names; buffers stay what they are.
        """
        for name, parameter in other.module.named_parameters():
            owner, _, leaf = name.rpartition(".")
            # A parameter of our own: moving a module may move the data of its parameters in place.
            mine = nn.Parameter(parameter.data, requires_grad=False)
            setattr(self.module.get_submodule(owner), leaf, mine)
        self.place = other.place
        other.drop()

    def _bring(self, place: Place, device: torch.device, on_bytes: OnBytes | None) -> None:
        if self.place is place:
            return
        if self.place is Place.FILE:
            self._load(self.module, device, on_bytes or (lambda done, total: None))
        else:
            self.module.to(device)
        self.place = place


class Residency(Protocol):
    """Decides which modules have the device. Created once per built model, asked at every switch."""

    def activate(self, name: Hashable, on_load: Callable[[str, int, int], None]) -> None:
        """When this returns, the weights of `name` are on the device."""

    def release(self) -> None:
        """The run is over, however it ended."""


class KeepResident:
    """Every module stays on the device once it is there."""

    def __init__(self, weights: Mapping[Hashable, Weights]) -> None:
        self._weights = weights

    def activate(self, name: Hashable, on_load: Callable[[str, int, int], None]) -> None:
        # All at once: what a later switch needs must not have to be loaded in the middle of a run.
        for each, weights in self._weights.items():
            weights.to_device(lambda done, total, each=each: on_load(str(each), done, total))

    def release(self) -> None: ...


class SwapModules:
    """One module on the device at a time; the others wait in host memory."""

    def __init__(self, weights: Mapping[Hashable, Weights]) -> None:
        self._weights = weights

    def activate(self, name: Hashable, on_load: Callable[[str, int, int], None]) -> None:
        for other, weights in self._weights.items():
            if other != name and weights.place is Place.DEVICE:
                weights.to_host()
        self._weights[name].to_device(lambda done, total: on_load(str(name), done, total))

    def release(self) -> None: ...
