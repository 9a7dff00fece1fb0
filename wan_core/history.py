"""How long things took on this machine: one JSON file in the cache folder, by machine, then by what was done.

Kept are the last few times of each task, so that the time of a run can be told before it starts (`estimate.py`).
Nothing that says what was made is kept: no prompt, no path.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from statistics import median
from types import MappingProxyType

from .hardware import Hardware
from .machine_file import MachineFile

FILE = MachineFile(name="history.json", method=1)

# The file stays below some hundred kilobytes: the oldest go first.
MAX_RUNS, MAX_SIZES, MAX_KINDS = 5, 32, 64
# The median of this many of the last runs counts: one run beside a busy neighbour does not spoil the next estimate.
COUNTED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Something whose time is worth remembering.

    kind: what is done, with which model and under which plan. size: on how much. work: how much that is, in any unit
    that means the same for all tasks of a kind (operations, bytes), so that one size says something about another.
    """

    kind: str
    size: str
    work: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """The last times of one task in seconds, oldest first, and its work."""

    work: float
    seconds: tuple[float, ...]

    @property
    def expected(self) -> float:
        """The median of the last three; of two the last, since a first run fills caches that later ones find full."""
        return median(self.seconds[-COUNTED:]) if len(self.seconds) >= COUNTED else self.seconds[-1]

    def with_run(self, seconds: float) -> "Past":
        return Past(work=self.work, seconds=(*self.seconds, seconds)[-MAX_RUNS:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a history says about a task; `runs` is 0 where it comes from another size of the same kind."""

    seconds: float
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Everything that is known of one machine: past times by kind and size, and what its owner should know."""

    kinds: Mapping[str, Mapping[str, Past]] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()

    def expect(self, task: Task) -> Expectation | None:
        """The time of a task from its own past, else in proportion from the size nearest to it; `None` if unknown."""
        sizes = self.kinds.get(task.kind, {})
        if past := sizes.get(task.size):
            return Expectation(seconds=past.expected, runs=len(past.seconds))
        if not sizes:
            return None
        # Of several that are equally near the one that was used last: its times are the ones of today.
        near = min(reversed(sizes.values()), key=lambda past: max(past.work, task.work) / min(past.work, task.work))
        return Expectation(seconds=near.expected * task.work / near.work, runs=0)

    def with_runs(self, observed: Iterable[tuple[Task, float]]) -> "History":
        """This history and some more times; what was used last comes last, and the oldest go."""
        kinds = {kind: dict(sizes) for kind, sizes in self.kinds.items()}
        for task, seconds in observed:
            sizes = kinds.pop(task.kind, {})
            past = sizes.pop(task.size, Past(work=task.work, seconds=()))
            sizes[task.size] = past.with_run(seconds)
            kinds[task.kind] = _newest(sizes, MAX_SIZES)
        return History(kinds=_newest(kinds, MAX_KINDS), notes=self.notes)


NOTHING_KNOWN = History()


def read(hardware: Hardware) -> History:
    """What is known of this machine; nothing, and a note, where the file is damaged."""
    kinds, note = FILE.read(hardware, _parse)
    return History(kinds=kinds, notes=(note,) if note else ())


def keep(observed: Iterable[tuple[Task, float]], hardware: Hardware) -> str | None:
    """Add times of this machine to the file; returns a note where that is not possible."""
    sound = [(task, seconds) for task, seconds in observed if isfinite(seconds) and seconds >= 0.0 and task.work > 0.0]
    if not sound:
        return None
    # What another process kept in the meantime is read once more.
    return FILE.keep(_plain(read(hardware).with_runs(sound)), hardware, "the times of this run")


def _newest(entries: Mapping, count: int) -> dict:
    return dict(list(entries.items())[-count:])


def _plain(history: History) -> dict[str, dict[str, dict]]:
    return {
        kind: {size: {"work": past.work, "seconds": list(past.seconds)} for size, past in sizes.items()}
        for kind, sizes in history.kinds.items()
    }


def _parse(kinds: Mapping[str, Mapping[str, Mapping]]) -> dict[str, dict[str, Past]]:
    """Past times from JSON; raises `KeyError`, `TypeError`, `ValueError` or `AttributeError` for anything else."""
    return {kind: {size: _past(data) for size, data in sizes.items()} for kind, sizes in kinds.items()}


def _past(data: Mapping[str, object]) -> Past:
    past = Past(work=float(data["work"]), seconds=tuple(map(float, data["seconds"])))
    if not past.seconds or not all(isfinite(number) for number in (past.work, *past.seconds)) or past.work <= 0.0:
        raise ValueError(data)
    return past
