"""Seconds of one run, and the memory that it takes: events on CUDA, the wall clock elsewhere."""

from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor


def timed(run: Callable[[], Tensor], device: str) -> tuple[float, Tensor]:
    """Seconds of one run on the device, from an idle device to an idle device, and what it returned."""
    if not device.startswith("cuda"):
        start = perf_counter()
        output = run()
        return perf_counter() - start, output
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    output = run()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3, output


def finished(device: str) -> float:
    """The wall clock once the device has nothing left to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return perf_counter()


def allocated(device: str) -> int:
    """Bytes in use on the device; 0 on a CPU, where nobody counts by contestant."""
    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else 0


def capacity(device: str) -> float:
    """Bytes that this process can have on the device; no limit on a CPU, where nobody counts."""
    if not device.startswith("cuda"):
        return float("inf")
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def watch_peak(device: str) -> None:
    """The peak is counted from here."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: str) -> int:
    """Most bytes in use on the device since `watch_peak`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0
