"""Progress of a run in the terminal, with the time left of all of it; one line per event where that is no terminal."""

import sys
from time import perf_counter
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

from ..countdown import Countdown
from ..estimate import RunEstimate, duration
from ..hooks import PlanEvent, StepEvent


class TerminalProgress:
    """Run hooks that write to stderr, so that what a verb prints on stdout stays clean. A context manager."""

    def __init__(self, estimate: RunEstimate, stream: TextIO | None = None) -> None:
        self._countdown = Countdown(estimate)
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._bars: dict[str, tqdm] = {}
        self._loading: dict[str, float] = {}  # start of each load
        self._start = perf_counter()

    def __enter__(self) -> "TerminalProgress":
        self._say(self._countdown.estimate.to_text())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def on_plan(self, plan: PlanEvent) -> None:
        """The report has all of it; only where the run begins says something about the time left."""
        self._countdown.on_plan(plan)

    def on_warning(self, text: str) -> None:
        self._close()
        self._say(f"! {text}")

    def on_phase(self, name: str) -> None:
        self._close()
        self._countdown.on_phase(name)
        if not self._is_terminal:
            self._say(f"{name} (after {perf_counter() - self._start:.1f} s, {self._left()})")
        elif name == "sample":
            # The first step may take minutes: show that it runs.
            self._advance(name, 0, self._countdown.num_steps, "step", self._left())

    def on_load(self, what: str, done: int, total: int) -> None:
        if self._is_terminal:
            self._advance(f"load {what}", done, total, "B")
            return
        start = self._loading.setdefault(what, perf_counter())
        if done >= total:
            rate = total / 1e6 / max(perf_counter() - self._loading.pop(what, start), 1e-3)
            self._say(f"  {what}: {total / 2**20:,.1f} MiB in place, {rate:,.0f} MB/s")

    def on_step(self, event: StepEvent) -> None:
        self._countdown.on_step(event)
        detail = f"{event.expert.value} noise, timestep {event.timestep:.0f}, {event.seconds:.2f} s, {self._left()}"
        if self._is_terminal:
            self._advance("sample", event.index + 1, event.num_steps, "step", detail)
        else:
            self._say(f"  step {event.index + 1}/{event.num_steps}: {detail}")

    def on_chunk(self, done: int, total: int) -> None:
        self._countdown.on_chunk(done, total)
        if self._is_terminal:
            self._advance("VAE", done, total, "latent frame", self._left())
        elif done >= total:
            self._say(f"  {total} latent frames")

    def should_stop(self) -> bool:
        return False  # Ctrl-C raises KeyboardInterrupt by itself

    def _left(self) -> str:
        return f"about {duration(self._countdown.seconds_left())} left"

    def _advance(self, name: str, done: int, total: int, unit: str, detail: str = "") -> None:
        if name not in self._bars:
            is_bytes = unit == "B"
            # leave=None: a bar below another one, such as an expert that loads between two steps, goes when it is full.
            self._bars[name] = tqdm(
                total=total, desc=name, unit=unit, unit_scale=is_bytes, unit_divisor=1024 if is_bytes else 1000,
                file=self._stream, dynamic_ncols=True, leave=None,
            )  # fmt: skip
        bar = self._bars[name]
        bar.set_postfix_str(detail, refresh=False)
        bar.update(done - bar.n)
        if done >= total:
            self._bars.pop(name).close()

    def _close(self) -> None:
        while self._bars:
            self._bars.popitem()[1].close()

    def _say(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


def progress_hooks(estimate: RunEstimate) -> TerminalProgress:
    """Hooks for a run that is expected to take this long; to be used in a `with` statement."""
    return TerminalProgress(estimate)
