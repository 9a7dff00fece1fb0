"""Where the time of one run goes, by operation, so that the parts add up to the whole.

One run is profiled after the timed ones. On CUDA a part is the time of its kernels on the device; what no kernel fills
is shown as idle, and what belongs to no operation as other. On a CPU it is the own time of its operators, which the
profiler itself makes longer. A compiled contestant has no modules left to go by, so its kernels are told apart by name.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent, Kernel
from torch.profiler import ProfilerActivity, profile, record_function

from .clock import timed
from .operations import ORDER, PREFIX, by_place, place_of, without_places
from .task import Prepared

_IS_DRIVER_CALL = re.compile(r"cu(da)?[A-Z]\w+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Seconds by operation of one profiled run that took `whole` seconds. grouped_by: "place" or "kernel"."""

    seconds: dict[str, float]
    whole: float
    grouped_by: str

    @property
    def idle(self) -> float:
        """What no operation fills; below zero where streams run beside each other."""
        return self.whole - sum(self.seconds.values())

    def to_dict(self) -> dict[str, object]:
        return {
            "grouped_by": self.grouped_by,
            "seconds": {**self.seconds, "idle": self.idle},
            "whole": self.whole,
            "busy": 1 - self.idle / self.whole,
        }


@dataclass(frozen=True, slots=True)
class Work:
    """A piece of time: its kernel (on a CPU its operator), and the names around it from the inside out."""

    seconds: float
    kernel: str
    around: tuple[str, ...]


def break_down(prepared: Prepared, device: str) -> tuple[Breakdown, profile]:
    """Profile one run; also returns the profiler, whose trace may be kept."""
    is_cuda = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    hooked = nullcontext() if prepared.is_compiled else places(prepared.module)
    with hooked, profile(activities=activities, acc_events=True) as profiler:
        whole, _ = timed(prepared.run, device)
    found = list(works(profiler.events(), is_cuda=is_cuda))
    return add_up(found, whole, is_compiled=prepared.is_compiled), profiler


def add_up(found: Iterable[Work], whole: float, *, is_compiled: bool) -> Breakdown:
    """Seconds by operation, in the order of rows."""
    seconds: Counter[str] = Counter()
    for work in found:
        operation = without_places if is_compiled else by_place
        seconds[operation(work.around, work.kernel)] += work.seconds
    return Breakdown(
        seconds={name: seconds[name] for name in ORDER if name in seconds},
        whole=whole,
        grouped_by="kernel" if is_compiled else "place",
    )


def place(name: str) -> record_function:
    """A range for what runs in no module: guidance, the solver."""
    return record_function(PREFIX + name)


@contextmanager
def places(module: nn.Module) -> Iterator[None]:
    """While it is open, modules that are a place (`operations.place_of`) open and close their range."""
    opened: list[record_function] = []
    handles = []
    for name, child in module.named_modules():
        if (label := place_of(name)) is not None:
            handles.append(child.register_forward_pre_hook(_opening(opened, label)))
            handles.append(child.register_forward_hook(_closing(opened), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _opening(opened: list[record_function], label: str) -> Callable[..., None]:
    def open_range(module: nn.Module, inputs: object) -> None:
        opened.append(place(label))
        opened[-1].__enter__()

    return open_range


def _closing(opened: list[record_function]) -> Callable[..., None]:
    def close_range(module: nn.Module, inputs: object, output: object) -> None:
        opened.pop().__exit__(None, None, None)

    return close_range


def works(events: Iterable[FunctionEvent], *, is_cuda: bool) -> Iterator[Work]:
    """Every piece of time in a profile, once."""
    events = list(events)
    if not is_cuda:
        for event in events:
            if event.self_cpu_time_total > 0:
                yield Work(event.self_cpu_time_total / 1e6, event.name, _around(event))
        return
    on_device = _on_device(events)
    linked = [(kernel, event) for event in events for kernel in _kernels(event)]
    known: Counter[str] = Counter()
    for kernel, _ in linked:
        known[kernel.name] += kernel.duration
    for kernel, event in linked:
        # Where two events share an id the profiler links a kernel to both; its time is on the device once.
        share = min(on_device.get(kernel.name, known[kernel.name]) / known[kernel.name], 1.0)
        yield Work(share * kernel.duration / 1e6, kernel.name, _around(event))
    for name, microseconds in (on_device - known).items():
        yield Work(microseconds / 1e6, name, ())


def _kernels(event: FunctionEvent) -> list[Kernel]:
    """Kernels that an operator launched, not those that hang on the driver's calls beneath it."""
    if _IS_DRIVER_CALL.match(event.name):
        return []
    # A range has an event on the device too, of its own name: it is no kernel.
    return [kernel for kernel in event.kernels if kernel.name != event.name and kernel.duration > 0]


def _on_device(events: Iterable[FunctionEvent]) -> Counter[str]:
    """Microseconds of all kernels by name, also of those that no operator is known to have launched."""
    events = list(events)
    ranges = {event.name for event in events if event.is_user_annotation}
    total: Counter[str] = Counter()
    for event in events:
        if event.device_type == DeviceType.CUDA and event.name not in ranges:
            total[event.name] += event.time_range.end - event.time_range.start
    return total


def _around(event: FunctionEvent | None) -> tuple[str, ...]:
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return tuple(names)
