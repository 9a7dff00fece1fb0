"""Contestants in turns: as many as fit beside the first one wait on the device together and run A B C A B C.

A card grows slower as it grows hot and as others use its host, so only times from the same turns are compared. The
first contestant stays where it is and leads every group; whoever does not fit beside it runs alone at the end. What
fails is a row with its reason: the others' figures are not lost for it.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ..errors import InputError, OutOfMemoryError
from .breakdown import break_down
from .clock import allocated, capacity, finished, peak, timed, watch_peak
from .result import PartResult, Row
from .task import Candidate, Part, Prepared, Task
from .torch_settings import TorchSettings
from .traces import keep_trace, memory_history, trace_path

Say = Callable[[str], None]
Outcome = Literal["done", "no room", "failed"]
T = TypeVar("T")

# What other people's code may raise: whatever it is, it is their row and not the end of the bench.
_PEER_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
# The allocator cannot use all memory: free pieces lie between others.
_USABLE = 0.97


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How a part is measured: timed runs of each contestant, and what is kept of one more run that is profiled.

    memory: a snapshot of the first contestant's run.
    """

    repeats: int = 3
    breakdown: bool = True
    trace: Path | None = None
    memory: Path | None = None

    @property
    def profiles(self) -> bool:
        return self.breakdown or self.trace is not None or self.memory is not None

    def without_profile(self) -> "Conduct":
        return Conduct(repeats=self.repeats, breakdown=False)


@dataclass(slots=True, kw_only=True, eq=False)
class _Entry:
    """A contestant whose weights are on the device, and its times in the turns of its present group."""

    candidate: Candidate
    row: Row
    prepared: Prepared
    seconds: list[float] = field(default_factory=list)


class Contest:
    """One part of a run, measured for several contestants."""

    def __init__(self, part: Part, task: Task, conduct: Conduct, say: Say) -> None:
        self.result = PartResult(part=part, flops=task.step_flops if part == "step" else None)
        self._part = part
        self._task = task
        self._conduct = conduct
        self._say = say
        self._settings = TorchSettings.current()
        self._lead: Row | None = None
        self._yardstick: Tensor | None = None

    def run(self, candidates: Sequence[Candidate]) -> Iterator[None]:
        """Measure all that take part; comes back whenever there is something new in `result`."""
        contestants = [(each, Row(name=each.name)) for each in candidates if self._part in each.parts]
        self.result.rows = [row for _, row in contestants]
        try:
            yield from self._run(contestants)
        finally:
            self._settings.apply()

    def _run(self, contestants: Sequence[tuple[Candidate, Row]]) -> Iterator[None]:
        group: list[_Entry] = []
        alone: list[tuple[Candidate, Row]] = []
        for candidate, row in contestants:
            outcome = self._enter(candidate, row, group)
            yield
            if outcome == "no room" and len(group) > 1:
                self._say(
                    f"{self._part}: {row.name} waits until {_names(group[1:])} has made room beside {_names(group[:1])}"
                )
                self._take_turns(group)
                yield
                del group[1:]
                outcome = self._enter(candidate, row, group)
            if outcome == "no room" and group:
                alone.append((candidate, row))
        self._take_turns(group)
        yield
        for candidate, row in alone:
            group.clear()
            self._enter(candidate, row, group)
            self._take_turns(group)
            yield

    def _enter(self, candidate: Candidate, row: Row, group: list[_Entry]) -> Outcome:
        """Build a contestant, run it once, and put it into the group; where that fails its row has the reason."""
        self._say(f"{self._part}: {row.name} is built and runs for the first time")
        row.problem = None
        self._free()
        return self._guarded(candidate, row, partial(self._build, candidate, row, group))

    def _build(self, candidate: Candidate, row: Row, group: list[_Entry]) -> None:
        device, before = self._task.device, allocated(self._task.device)
        start = finished(device)
        prepared = candidate.prepare(self._part, self._task)
        row.facts, row.build_seconds = prepared.facts, finished(device) - start
        row.weight_bytes = allocated(device) - before or None
        _check_room([entry.row for entry in group], device)
        entry = _Entry(candidate=candidate, row=row, prepared=prepared)
        start = finished(device)
        output = self._watched(entry, prepared.run)
        row.cold_seconds = finished(device) - start
        row.difference = self._difference(row, output)
        group.append(entry)

    def _take_turns(self, group: Sequence[_Entry]) -> None:
        """Time everybody in the group round by round, then profile each."""
        for entry in group:
            entry.seconds.clear()
            entry.row.beside = tuple(other.row.name for other in group if other is not entry)
        for turn in range(1, self._conduct.repeats + 1):
            for entry in group:
                if entry.row.problem is None:
                    self._guarded(entry.candidate, entry.row, partial(self._time, entry))
                    last = entry.row.problem or f"{entry.seconds[-1]:.3f} s"
                    self._say(f"{self._part}: {entry.row.name}, {turn} of {self._conduct.repeats}: {last}")
        for entry in group:
            self._compare(entry, group[0])
        for entry in group:
            if self._conduct.profiles and entry.row.problem is None and entry.row.breakdown is None:
                self._say(f"{self._part}: {entry.row.name} is profiled")
                self._guarded(entry.candidate, entry.row, partial(self._profile, entry))

    def _time(self, entry: _Entry) -> None:
        seconds, _ = self._watched(entry, lambda: timed(entry.prepared.run, self._task.device))
        entry.seconds.append(seconds)
        entry.row.seconds.append(seconds)

    def _profile(self, entry: _Entry) -> None:
        is_lead, conduct = entry.row is self._lead, self._conduct
        with memory_history(conduct.memory if is_lead else None):
            entry.row.breakdown, profiler = break_down(entry.prepared, self._task.device)
        if conduct.trace is not None:
            keep_trace(profiler, trace_path(conduct.trace, None if is_lead else entry.row.name))

    def _compare(self, entry: _Entry, first: _Entry) -> None:
        """The slowdown against the lead: in the same turns, else against all of its times."""
        theirs = first.seconds if first.row is self._lead else self._lead.seconds if self._lead else []
        if entry.seconds and theirs:
            entry.row.slowdown = median(entry.seconds) / median(theirs)

    def _difference(self, row: Row, output: Tensor) -> float | None:
        """Relative Frobenius norm against the first contestant's output, which is `None` of itself."""
        output = output.detach().cpu().float()
        if not bool(output.isfinite().all()):
            raise RuntimeError("its output has numbers that are not finite")
        if self._yardstick is None:
            self._lead, self._yardstick = row, output
            return None
        if output.shape != self._yardstick.shape:
            raise RuntimeError(f"its output is {tuple(output.shape)}, the first one's {tuple(self._yardstick.shape)}")
        return float((output - self._yardstick).norm() / self._yardstick.norm())

    def _watched(self, entry: _Entry, action: Callable[[], T]) -> T:
        """Run under the contestant's own switches of PyTorch, and note the peak of its memory."""
        device = self._task.device
        (entry.prepared.settings or self._settings).apply()
        others = allocated(device) - (entry.row.weight_bytes or 0)
        watch_peak(device)
        try:
            return action()
        finally:
            entry.row.peak_bytes = max(entry.row.peak_bytes or 0, peak(device) - others) or None

    def _guarded(self, candidate: Candidate, row: Row, action: Callable[[], None]) -> Outcome:
        """Do it; what a contestant may fail with becomes the problem of its row. Ours that breaks is our defect."""
        outcome: Outcome = "failed"
        try:
            action()
        except (torch.OutOfMemoryError, OutOfMemoryError) as error:
            outcome, row.problem = "no room", f"does not fit: {_first_line(error)}"
        except InputError as error:
            row.problem = str(error)
        except _PEER_ERRORS as error:
            if not candidate.is_peer:
                raise
            row.problem = f"{type(error).__name__}: {_first_line(error)}"
        else:
            return "done"
        self._say(f"{self._part}: {row.name}: {row.problem}")
        self._free()
        return outcome

    def _free(self) -> None:
        """Give back what nobody holds any more."""
        self._settings.apply()
        if self._task.device.startswith("cuda"):
            gc.collect()
            torch.cuda.empty_cache()


def _check_room(others: Sequence[Row], device: str) -> None:
    """Raise `OutOfMemoryError` where the others, who are on the device, could not run any more."""
    needed = max(((row.peak_bytes or 0) - (row.weight_bytes or 0) for row in others), default=0)
    short = allocated(device) + needed - _USABLE * capacity(device)
    if short > 0:
        raise OutOfMemoryError(f"{short / 2**30:.1f} GiB too little for the others to run beside its weights")


def _names(group: Sequence[_Entry]) -> str:
    return " and ".join(entry.row.name for entry in group)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
