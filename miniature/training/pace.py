"""How far a phase of training has come, what its learning rate is, and when to stop and save."""

import math
import time
from dataclasses import dataclass, field

# Steps that compile and search for algorithms after a start or a change of shapes: the log leaves their time out.
_UNTIMED_STEPS = 6
_LEAST_RATE = 0.01


@dataclass(slots=True)
class Pace:
    """Progress of a phase by steps, and the seconds that they took, compiling left out."""

    num_steps: int
    step: int = 0
    spent: float = 0.0
    _began: float | None = field(default=None, repr=False)
    _base: float = field(default=0.0, repr=False)
    _steps_here: int = field(default=0, repr=False)

    @property
    def progress(self) -> float:
        """Share of the phase that is done, 0 to 1."""
        return min(self.step / self.num_steps, 1.0)

    @property
    def finished(self) -> bool:
        return self.progress >= 1.0

    def tick(self) -> None:
        """Count one step, and its time once the first steps of this process are over."""
        self.step += 1
        self._steps_here += 1
        if self._steps_here == _UNTIMED_STEPS:
            self._began, self._base = time.perf_counter(), self.spent
        elif self._began is not None:
            self.spent = self._base + time.perf_counter() - self._began

    def expect_compilation(self) -> None:
        """What comes next has other shapes: the time of its first steps is left out, too."""
        self._steps_here, self._began = 0, None

    def rate(self, warmup_steps: int) -> float:
        """Factor of the learning rate: linear warm-up, then half a cosine down to 1%."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress))
        return min((self.step + 1) / warmup_steps, 1.0) * (_LEAST_RATE + (1 - _LEAST_RATE) * cosine)

    def state(self) -> dict[str, float]:
        return {"step": self.step, "spent": self.spent}

    def restore(self, state: dict[str, float]) -> None:
        self.step, self.spent = int(state["step"]), float(state["spent"])


class Deadline:
    """The end of this process's time; `None` seconds means there is none."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.perf_counter() + seconds

    def passed(self, reserve: float = 0.0) -> bool:
        """Whether fewer than `reserve` seconds are left."""
        return self._end is not None and time.perf_counter() > self._end - reserve
