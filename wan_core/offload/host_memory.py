"""Memory of the host that a GPU copies from by itself: page-locked pieces that hold what waits there.

PyTorch's own pinned allocator rounds every piece up to a power of two (a block of 702 MB would take 1 GiB) and keeps
what is given back. Ordinary memory that is registered with the driver costs what it holds and is free once it is freed.
Where the driver refuses, the piece stays ordinary memory: copies from it are slower and the host waits for them.
"""

import weakref
from typing import Protocol

import torch
from torch import Tensor

from ..host_ram import host_ram

# Left to the rest of the system when weights wait in the host's memory.
HEADROOM_BYTES = 4 << 30


class Pinning(Protocol):
    """Page-locks tensors; where a host program counts page-locked memory, it does this in its stead."""

    def pin(self, piece: Tensor) -> bool:
        """Whether the piece (n,) uint8 is page-locked now."""

    def unpin(self, piece: Tensor) -> None:
        """Undo `pin` where it succeeded."""


class DriverPinning:
    """Registers memory with the CUDA driver."""

    def pin(self, piece: Tensor) -> bool:
        if int(torch.cuda.cudart().cudaHostRegister(piece.data_ptr(), piece.nbytes, 0)) == 0:
            return True
        _forget_error()
        return False

    def unpin(self, piece: Tensor) -> None:
        if int(torch.cuda.cudart().cudaHostUnregister(piece.data_ptr())) != 0:
            _forget_error()


class HostMemory:
    """A piece of the host's memory (nbytes,) uint8, page-locked where that is possible."""

    def __init__(self, nbytes: int, pinning: Pinning | None) -> None:
        with torch.inference_mode(mode=False):
            self.data = torch.empty(nbytes, dtype=torch.uint8)
        self.is_pinned = pinning is not None and nbytes > 0 and pinning.pin(self.data)
        if self.is_pinned:
            # The driver must not keep a registration of memory that is somebody else's by then.
            weakref.finalize(self, _unpin, pinning, self.data).atexit = False

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


def _unpin(pinning: Pinning, piece: Tensor) -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()  # the device may be copying from it still
    pinning.unpin(piece)


def free_bytes() -> int:
    """What weights may take of the host's memory now."""
    return max(host_ram().free - HEADROOM_BYTES, 0)


def _forget_error() -> None:
    # The driver reports its refusal a second time, to whichever kernel is launched next.
    try:
        torch.zeros(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    except RuntimeError:
        pass
