"""Small modules with blocks, sources that count their reads, and lanes that do the worst that a device may do."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from wan_core.offload.weights import OnBytes, Weights

DIM = 8


class Block(nn.Module):
    """A block with two layers, one of which is called from outside too."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, dim)
        self.outer = nn.Linear(dim, dim)
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        return torch.tanh(self.inner(x) * self.scale + beside)


class Tower(nn.Module):
    """Blocks between two layers; `prepare` uses a layer and a vector of each block outside of its forward."""

    def __init__(self, num_blocks: int, dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(num_blocks))
        self.last = nn.Linear(dim, dim)

    def prepare(self, text: Tensor) -> list[Tensor]:
        return [block.outer(text) * block.scale for block in self.blocks]

    def forward(self, x: Tensor, text: list[Tensor]) -> Tensor:
        x = self.first(x)
        for block, beside in zip(self.blocks, text, strict=True):
            x = block(x, beside)
        return self.last(x)


class Source:
    """Stands for a file: the same numbers for the same seed, counts its reads, and can fail."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.reads: list[str] = []
        self.broken = False

    def fill(self, targets: Mapping[str, Tensor], on_bytes: OnBytes) -> None:
        if self.broken:
            raise OSError("gone")
        for done, (name, target) in enumerate(targets.items(), start=1):
            generator = torch.Generator().manual_seed(self.seed + sum(name.encode()))
            target.data.copy_(torch.randn(target.shape, generator=generator) * target.shape[-1] ** -0.5)
            self.reads.append(name)
            on_bytes(done, len(targets))


def tower(
    num_blocks: int, seed: int, *, streamed: int = 0, room: int = 1 << 30, device: str = "cpu", dim: int = DIM
) -> tuple[Weights, Source]:
    """A tower in its file; room: bytes that its copies may take of the host's memory."""
    with torch.device("meta"):
        module = Tower(num_blocks, dim).requires_grad_(requires_grad=False)
    source = Source(seed)
    weights = Weights(module, source.fill, device=device, dtype=torch.float32, streamed_blocks=streamed)
    weights.host_room = lambda: room - weights.bytes_on_host
    return weights, source


class LateLane:
    """A device that copies at the last moment: what nobody waits for never arrives."""

    def __init__(self, device: torch.device) -> None:
        self.waiting: list[Callable[[], object]] = []
        self.done = 0

    def send(self, copy: Callable[[], None], *, in_thread: bool = False) -> int:
        with _CopiesQueued(self.waiting):
            copy()
        return self.done + len(self.waiting)

    def wait_for(self, arrival: int) -> None:
        while self.done < arrival:
            self.done += 1
            self.waiting.pop(0)()

    def wait(self) -> None:
        self.wait_for(self.done + len(self.waiting))

    def close(self) -> None:
        self.wait()


class _CopiesQueued(TorchDispatchMode):
    """Puts copies off, as a stream does, while everything on the host happens at once."""

    def __init__(self, queue: list[Callable[[], object]]) -> None:
        super().__init__()
        self._queue = queue

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func is not torch.ops.aten.copy_.default:
            return func(*args, **kwargs or {})
        self._queue.append(partial(func, *args, **kwargs or {}))
        return args[0]
