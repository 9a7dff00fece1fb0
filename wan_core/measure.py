"""Clocks and memory peaks of a run, written into its report."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from .report import Report, StepTiming


def used_bytes(device: str) -> int:
    """Allocated device memory now; on a CPU what the process holds."""
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def peak_bytes(device: str) -> int:
    """Peak of allocated device memory since the last reset; on a CPU the peak of the process so far."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def measured_peak(report: Report, name: str, device: str) -> Iterator[None]:
    """Record the memory peak of a phase that is timed elsewhere."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    try:
        yield
    finally:
        report.peak_bytes[name] = max(report.peak_bytes.get(name, 0), peak_bytes(device))


@contextmanager
def measured_phase(report: Report, name: str, device: str) -> Iterator[None]:
    """Time a phase and record its memory peak; the device is waited for at the end, also when the phase fails."""
    with measured_peak(report, name, device), report.phase(name):
        try:
            yield
        finally:
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)


class StepClock:
    """Times steps on the device without waiting for it: events on CUDA, the wall clock elsewhere."""

    def __init__(self, device: str) -> None:
        self._is_cuda = device.startswith("cuda")
        self._marks: list[torch.cuda.Event] = []
        self._steps: list[tuple[int, str, float]] = []
        self._walls: list[float] = []

    def mark(self, wall: float) -> None:
        """The start of the run, then the end of each step; `wall` is the host clock in seconds."""
        self._walls.append(wall)
        if self._is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)

    def step(self, index: int, expert: str, timestep: float, wall: float) -> float:
        """End of a step; returns the host seconds since the last mark, near enough for a progress bar."""
        self._steps.append((index, expert, timestep))
        self.mark(wall)
        return self._walls[-1] - self._walls[-2]

    def timings(self) -> list[StepTiming]:
        """Seconds of every step; the device must be idle (call after the run's phase has ended)."""
        clocks = self._marks if self._is_cuda else self._walls
        pairs = zip(self._steps, clocks, clocks[1:], strict=False)
        return [
            StepTiming(
                index=index,
                expert=expert,
                timestep=timestep,
                seconds=begin.elapsed_time(end) / 1e3 if self._is_cuda else end - begin,
            )
            for (index, expert, timestep), begin, end in pairs
        ]
