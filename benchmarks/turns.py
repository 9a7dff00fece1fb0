"""Contestants timed in turns, each long enough at a stretch that the card's power limit counts.

A card at its power limit lowers its clock within milliseconds, so a kernel that is called once between others runs at
a clock that those others left it. What is asked here is what a kernel reaches among its like.
"""

from collections.abc import Callable, Mapping
from statistics import median

import torch

Work = Callable[[], object]


def seconds_of(work: Work, repeats: int) -> float:
    """Seconds of one call, of so many in a row."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def warmed_up(contestants: Mapping[str, Work], refuse: Callable[[str, str], None]) -> dict[str, Work]:
    """Those that run, after their first two calls; `refuse(name, reason)` hears of the others."""
    alive = {}
    for name, work in contestants.items():
        try:
            work(), work()
            torch.cuda.synchronize()
        except Exception as error:  # noqa: BLE001 (whatever a variant fails with is its result)
            refuse(name, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")
        else:
            alive[name] = work
    return alive


def take_turns(contestants: Mapping[str, Work], *, rounds: int, stretch: float) -> dict[str, float]:
    """Median seconds of a call by name, from `rounds` turns of about `stretch` seconds each."""
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    once = {name: seconds_of(work, 1) for name, work in contestants.items()}
    for _ in range(rounds):
        for name, work in contestants.items():
            samples[name].append(seconds_of(work, max(1, round(stretch / once[name]))))
    return {name: median(taken) for name, taken in samples.items()}
