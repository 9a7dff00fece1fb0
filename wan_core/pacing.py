"""Keeping the host close to the device, so that a run can be stopped within a block and progress tells the truth.

Kernels are only queued: without a brake the host runs a whole step ahead (20 s at 1280x720x81 on one H200), and an
interrupt or a time estimate would lag by as much. `Pacer` puts a hook before every transformer block that asks whether
to stop and waits while more than `depth` blocks are queued; with two queued the device never runs dry.
"""

from collections import deque
from collections.abc import Callable, Iterable
from time import sleep
from types import TracebackType

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .errors import Interrupted

_POLL_SECONDS = 0.0005


class Pacer:
    """Context manager that paces and interrupts the given blocks while it is open."""

    def __init__(self, blocks: Iterable[nn.Module], should_stop: Callable[[], bool], *, depth: int = 2) -> None:
        self._blocks = tuple(blocks)
        self._should_stop = should_stop
        self._depth = depth
        self._queued: deque[torch.cuda.Event] = deque()
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "Pacer":
        self._handles = [block.register_forward_pre_hook(self._before_block) for block in self._blocks]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._queued.clear()

    def _before_block(self, block: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._check()
        if not inputs[0].is_cuda:
            return
        event = torch.cuda.Event()
        event.record()
        self._queued.append(event)
        while len(self._queued) > self._depth:
            if self._queued[0].query():
                self._queued.popleft()
            else:
                sleep(_POLL_SECONDS)
                self._check()

    def _check(self) -> None:
        if self._should_stop():
            raise Interrupted("stopped between two transformer blocks")
