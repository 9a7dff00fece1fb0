"""What a watcher of a run sees: one frozen value, complete at every moment, so that it can be drawn without a past.

`LiveRun` is a set of run hooks that keeps this value up to date and hands it on, at most ten times a second except
where something changes that people look for. It holds no tensors and never waits for the device.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from time import perf_counter
from types import TracebackType

from .countdown import Countdown
from .errors import Interrupted
from .estimate import RunEstimate
from .hooks import PlanEvent, StepEvent
from .specs import Expert

# Loading reports every tensor; nobody reads faster than this.
_SHORTEST_PAUSE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on the computing device: now, at the peak so far, in all."""

    used: int
    peak: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """Bytes of a checkpoint that are in place; the rate is their mean, `None` while there is no time to divide by."""

    what: str
    done: int
    total: int
    bytes_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveState:
    """A run at one moment.

    phase: "prepare", "load", "compile" (the first step, where blocks are compiled), "sample", "switch" (the other
    expert is loaded), "finish", and at the end "done", "stopped" or "failed". expert: the one that runs the next step.
    seconds: since the run began; seconds_left: until it is over, an estimate; seconds_per_step: of that expert.
    """

    phase: str
    plan: PlanEvent | None = None
    num_done: int = 0
    expert: Expert | None = None
    loading: Loading | None = None
    memory: Memory | None = None
    seconds: float = 0.0
    seconds_per_step: float | None = None
    seconds_left: float | None = None
    warnings: tuple[str, ...] = field(default=())

    @property
    def is_over(self) -> bool:
        return self.phase in ("done", "stopped", "failed")

    def to_dict(self) -> dict[str, object]:
        """As JSON takes it; reasons stay in the report, since whoever watches gets this many times."""
        return {
            "phase": self.phase,
            "plan": None if self.plan is None else _plan_dict(self.plan),
            "num_done": self.num_done,
            "expert": None if self.expert is None else self.expert.value,
            "loading": None if self.loading is None else asdict(self.loading),
            "memory": None if self.memory is None else asdict(self.memory),
            "seconds": self.seconds,
            "seconds_per_step": self.seconds_per_step,
            "seconds_left": self.seconds_left,
            "warnings": list(self.warnings),
        }


def _plan_dict(plan: PlanEvent) -> dict[str, object]:
    return {
        "sigmas": list(plan.sigmas),
        "split": [expert.value for expert in plan.split],
        "boundary": plan.boundary,
        "kernels": [
            {"topic": each.topic, "chosen": each.chosen, "quality": each.quality, "degraded": each.degraded}
            for each in plan.decisions
        ],
    }


class LiveRun:
    """Run hooks that show a run. A context manager: leaving it says how the run ended."""

    def __init__(
        self,
        show: Callable[[LiveState], None],
        memory: Callable[[], Memory | None] = lambda: None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.state = LiveState(phase="prepare")
        self._show = show
        self._memory = memory
        self._clock = clock
        self._begun = clock()
        self._shown = float("-inf")
        self._countdown: Countdown | None = None
        self._load_begun = 0.0
        self._load_first = 0
        self._load_seconds = 0.0
        self._seconds: dict[Expert, list[float]] = {}

    def __enter__(self) -> "LiveRun":
        self._advance("prepare")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A host's own interrupt is no Exception, so that nothing on its way takes it for an error.
        stopped = kind is not None and (issubclass(kind, Interrupted) or not issubclass(kind, Exception))
        self._advance("stopped" if stopped else "failed" if kind else "done", loading=None)

    def expect(self, estimate: RunEstimate) -> None:
        """How long the run should take; before that, no time left is shown."""
        self._countdown = Countdown(estimate, self._clock)

    def on_plan(self, plan: PlanEvent) -> None:
        if self._countdown:
            self._countdown.on_plan(plan)
        known = (*self.state.warnings, *plan.warnings, *(str(each) for each in plan.decisions if each.degraded))
        first = plan.first_step
        self._advance(
            self.state.phase, plan=plan, num_done=first, expert=plan.split[first], warnings=tuple(dict.fromkeys(known))
        )

    def on_warning(self, text: str) -> None:
        self._advance(self.state.phase, warnings=tuple(dict.fromkeys((*self.state.warnings, text))))

    def on_phase(self, name: str) -> None:
        if self._countdown:
            self._countdown.on_phase(name)
        self._load_seconds = 0.0
        self._advance(self._sampling if name == "sample" else name, loading=None)

    def on_load(self, what: str, done: int, total: int) -> None:
        now, first = self._clock(), self.state.loading is None or self.state.loading.what != what
        if first:
            self._load_begun, self._load_first = now, done
        if done >= total:
            self._load_seconds += now - self._load_begun
        phase = "switch" if self.state.phase in ("sample", "compile") else self.state.phase
        if first or done >= total or now - self._shown >= _SHORTEST_PAUSE:
            seconds = now - self._load_begun
            rate = (done - self._load_first) / seconds if seconds > 0 else None
            self._advance(phase, loading=Loading(what=what, done=done, total=total, bytes_per_second=rate))

    def on_step(self, event: StepEvent) -> None:
        if self._countdown:
            self._countdown.on_step(event)
        # The seconds of the first step after a switch hold the switch.
        self._seconds.setdefault(event.expert, []).append(max(event.seconds - self._load_seconds, 0.0))
        self._load_seconds, done = 0.0, event.index + 1
        phase = "sample" if done < event.num_steps else "finish"
        self._advance(phase, num_done=done, expert=self._next_expert(done), loading=None)

    def on_chunk(self, done: int, total: int) -> None:
        """Nothing: a sampler decodes nothing."""

    def should_stop(self) -> bool:
        return False

    @property
    def _sampling(self) -> str:
        decisions = self.state.plan.decisions if self.state.plan else ()
        return "compile" if any(each.topic == "compile" and each.chosen != "off" for each in decisions) else "sample"

    def _next_expert(self, num_done: int) -> Expert | None:
        split = self.state.plan.split if self.state.plan else ()
        return split[min(num_done, len(split) - 1)] if split else None

    def _advance(self, phase: str, **changes: object) -> None:
        """The next state, shown."""
        now = self._clock()
        state = replace(self.state, phase=phase, seconds=now - self._begun, memory=self._memory(), **changes)
        left = self._countdown.seconds_left() if self._countdown and not state.is_over else None
        self.state = replace(state, seconds_per_step=self._pace(state.expert), seconds_left=left)
        self._shown = now
        self._show(self.state)

    def _pace(self, expert: Expert | None) -> float | None:
        """Mean seconds of an expert's steps, its first one left out, which also pays for compiling and warming up."""
        timed = self._seconds.get(expert, [])
        return fmean(timed[1:] or timed) if timed else None
