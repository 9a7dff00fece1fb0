"""What was asked, what runs and why: decisions travel with their reasons, and a run returns its report.

The report is one object with three readers: the node's text output, the JSON of the command line and bug reports.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from statistics import median
from time import perf_counter


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An option that was not chosen, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One choice: what it concerns, what was asked for, what runs and why.

    `degraded` is true where the user named something else than what runs.
    """

    topic: str
    asked: str
    chosen: str
    reason: str = ""
    quality: str = "exact"
    rejected: tuple[Rejection, ...] = ()

    @property
    def degraded(self) -> bool:
        return self.asked not in ("auto", self.chosen)

    def __str__(self) -> str:
        text = f"{self.topic}: {self.chosen}"
        if self.degraded:
            text += f" instead of {self.asked}"
        if self.quality != "exact":
            text += f" [{self.quality}]"
        if self.reason:
            text += f" ({self.reason})"
        for reason, items in groupby(self.rejected, key=lambda item: item.reason):
            text += f"; not {', '.join(item.name for item in items)}: {reason}"
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTiming:
    """One solver step: which expert ran, at which timestep, and how many seconds it took on the device."""

    index: int
    expert: str
    timestep: float
    seconds: float


@dataclass(slots=True, kw_only=True)
class Report:
    """What one run did. Filled while it runs and returned with its result. predicted_bytes: by the plan, for a GPU."""

    decisions: list[Decision] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    settings: dict[str, object] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    predicted_bytes: dict[str, int] = field(default_factory=dict)
    steps: list[StepTiming] = field(default_factory=list)
    flops_per_step: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the wall time of a phase; phases of the same name add up, also when one fails."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

    def seconds_per_step(self, expert: str) -> float | None:
        """Median seconds of the steps of one expert.

        Its first step, which compiles or holds the switch, is left out where there are others.
        """
        timed = [step.seconds for step in self.steps if step.expert == expert]
        timed = timed[1:] or timed
        return sorted(timed)[len(timed) // 2] if timed else None

    @property
    def switch_cost(self) -> float | None:
        """Seconds that the two steps around the switch between the experts took beyond others of their expert.

        `None` where there was no switch, or no other step on one of its sides (the first step of a run compiles).
        """
        experts = [step.expert for step in self.steps]
        switch = next((index for index in range(1, len(experts)) if experts[index] != experts[index - 1]), 0)
        before, after = self.steps[1 : max(switch - 1, 1)], self.steps[switch + 1 :]
        if not switch or not before or not after:
            return None
        around = self.steps[switch - 1].seconds + self.steps[switch].seconds
        return around - sum(median(step.seconds for step in steps) for steps in (before, after))

    def to_dict(self) -> dict[str, object]:
        data = asdict(self)
        data["switch_cost"] = self.switch_cost
        for decision, entry in zip(self.decisions, data["decisions"], strict=True):
            entry["degraded"] = decision.degraded
        data["speed"] = {
            expert: {"seconds_per_step": seconds, "tflops": self.flops_per_step[expert] / seconds / 1e12}
            for expert in self.flops_per_step
            if (seconds := self.seconds_per_step(expert))
        }
        return data

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def to_text(self) -> str:
        """The report for people: warnings first, then choices, speed, time and memory."""
        lines = [f"! {warning}" for warning in self.warnings]
        lines += [f"{'! ' if decision.degraded else ''}{decision}" for decision in self.decisions]
        for expert, flops in self.flops_per_step.items():
            if seconds := self.seconds_per_step(expert):
                count = sum(step.expert == expert for step in self.steps)
                lines.append(
                    f"{expert} noise: {count} steps, {seconds:.3g} s/step, {flops / seconds / 1e12:.3g} TFLOP/s"
                )
        if (cost := self.switch_cost) is not None:
            lines.append(f"expert switch: {cost:+.2f} s beyond normal steps")
        lines += [f"{name}: {value:.2f} s" for name, value in self.seconds.items()]
        lines += [self._memory(name, value) for name, value in self.peak_bytes.items()]
        return "\n".join(lines)

    def _memory(self, phase: str, measured: int) -> str:
        predicted = self.predicted_bytes.get(phase)
        planned = "" if predicted is None else f", {predicted / 2**30:.2f} predicted"
        return f"peak memory, {phase}: {measured / 2**30:.2f} GiB{planned}"


def gib(num_bytes: int) -> str:
    """Bytes as people read memory: "53.7 GiB"."""
    return f"{num_bytes / 2**30:.1f} GiB"
