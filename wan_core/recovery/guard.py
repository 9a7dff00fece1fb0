"""Steps under guard: a value that is not finite is seen in the step where it appears, without waiting for the device.

After each step one reduction over its latent runs on the device, and its answer is copied to the host behind it. It is
read when the next step has been queued; by then it has long arrived, so reading costs nothing. A step counts as
finished only then. From a bad one, everything after the last finished step is thrown away, and `redo` does it again.
"""

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..sampling.loop import SolverStep
from .state import Position

StepsFrom = Callable[[Position], Iterator[SolverStep]]


def guarded_steps(
    steps_from: StepsFrom,
    position: Position,
    *,
    keep: Callable[[Position], None],
    redo: Callable[[Position], SolverStep],
) -> Iterator[SolverStep]:
    """Every step as soon as it is queued; `keep` gets each position once it is known to be finite.

    redo: does the one step from a position in a way that gives finite numbers, or raises. Closing the iterator, or an
    error in it, waits for what is queued and keeps that too.
    """
    watched: deque[tuple[SolverStep, _Verdict]] = deque()

    def settle(*, behind: int) -> bool:
        """Read all answers but the newest `behind`; false at the first bad one."""
        nonlocal position
        while len(watched) > behind:
            step, verdict = watched.popleft()
            if not verdict.is_finite():
                watched.clear()
                return False
            position = Position.after(step)
            keep(position)
        return True

    try:
        while True:
            sound = True
            for step in steps_from(position):
                watched.append((step, _Verdict(step.latent)))
                if not (sound := settle(behind=1)):
                    break
                yield step
            if sound and settle(behind=0):
                return
            step = redo(position)
            position = Position.after(step)
            keep(position)
            yield step
    finally:
        settle(behind=0)


class _Verdict:
    """Whether a tensor is finite, on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        finite = tensor.isfinite().all()
        self._arrived: torch.cuda.Event | None = None
        self._finite = finite
        if finite.is_cuda:
            self._finite = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def is_finite(self) -> bool:
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._finite)
