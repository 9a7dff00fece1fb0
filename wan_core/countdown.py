"""The time left of a run, corrected by what happens: an estimate on a clock, told what the hooks are told.

Steps that were seen replace the ones that were expected, and what they were off by goes for the other expert too. It
knows nothing of where it is shown.
"""

from collections import Counter
from collections.abc import Callable
from statistics import fmean
from time import perf_counter

from .estimate import RunEstimate
from .hooks import PlanEvent, StepEvent


class Countdown:
    """Seconds left of one run. The methods are those of `RunHooks` with the same names."""

    def __init__(self, estimate: RunEstimate, clock: Callable[[], float] = perf_counter) -> None:
        self.estimate = estimate
        self._clock = clock
        self._stages = list(dict.fromkeys(part.stage for part in estimate.parts))
        self._stage: str | None = None
        self._since = clock()
        self._fraction = 0.0
        self._last: str | None = None
        self._done: dict[str, int] = {}
        self._seen: dict[str, list[float]] = {}

    @property
    def num_steps(self) -> int:
        return sum(part.count for part in self.estimate.parts if part.name.endswith("noise step"))

    def on_plan(self, plan: PlanEvent) -> None:
        """Steps that an earlier run or attempt has done are not left."""
        done = Counter(plan.split[: plan.first_step])
        self._done, self._last = {f"{expert.value} noise step": count for expert, count in done.items()}, None

    def on_phase(self, name: str) -> None:
        if name in self._stages:
            self._stage, self._since, self._fraction = name, self._clock(), 0.0

    def on_step(self, event: StepEvent) -> None:
        name = f"{event.expert.value} noise step"
        self._done[name] = self._done.get(name, 0) + 1
        if self._last == name:  # the first step of an expert also pays for compilation or the switch
            self._seen.setdefault(name, []).append(event.seconds)
        self._last, self._since = name, self._clock()

    def on_chunk(self, done: int, total: int) -> None:
        self._fraction = done / total

    def seconds_left(self) -> float:
        """The time left from now to the end of the last stage of the estimate."""
        current = self._stages.index(self._stage) if self._stage else -1
        later = sum(part.total for part in self.estimate.parts if part.stage in self._stages[current + 1 :])
        elapsed = self._clock() - self._since
        if current < 0:
            return max(later - elapsed, 0.0)
        if self._stage == "sample":
            return later + self._sampling_left(elapsed)
        total = sum(part.total for part in self.estimate.parts if part.stage == self._stage)
        if self._fraction:
            # What was seen counts the more, the more was seen.
            unseen = 1.0 - self._fraction
            return later + unseen * (elapsed + unseen * total)
        return later + max(total - elapsed, 0.0)

    def _sampling_left(self, elapsed: float) -> float:
        parts = {part.name: part for part in self.estimate.parts if part.stage == "sample"}
        steps = {name: part for name, part in parts.items() if name.endswith("noise step")}
        left, running = 0.0, None
        for name, part in steps.items():
            num_left = max(part.count - self._done.get(name, 0), 0)
            left += num_left * self._per_step(name, parts)
            running = running or (self._per_step(name, parts) if num_left else None)
        if not self._done and "first step" in parts:
            left, running = left + parts["first step"].seconds, (running or 0.0) + parts["first step"].seconds
        if "switch" in parts and not self._done.get([*steps][-1]):
            left += parts["switch"].seconds
        # A step that takes longer than expected is about to end, not to eat into those after it.
        return left - min(elapsed, running or 0.0)

    def _per_step(self, name: str, parts: dict) -> float:
        if seen := self._seen.get(name):
            return fmean(seen)
        known = {each: fmean(times) / parts[each].seconds for each, times in self._seen.items() if parts[each].seconds}
        return parts[name].seconds * (fmean(known.values()) if known else 1.0)
