"""Progress of a run in the terminal, with the time left; one line per event where the output is no terminal."""

import sys
from time import perf_counter
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

from ..hooks import StepEvent


class TerminalProgress:
    """Run hooks that write to stderr, so that what a verb prints on stdout stays clean. A context manager."""

    def __init__(self, num_steps: int, stream: TextIO | None = None) -> None:
        self._num_steps = num_steps
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._bars: dict[str, tqdm] = {}
        self._loading: dict[str, float] = {}  # start of each load
        self._seconds: list[float] = []
        self._start = perf_counter()

    def __enter__(self) -> "TerminalProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def on_phase(self, name: str) -> None:
        self._close()
        self._seconds.clear()
        if not self._is_terminal:
            self._say(f"{name} (after {perf_counter() - self._start:.1f} s)")
        elif name == "sample":
            self._advance(name, 0, self._num_steps, "step")  # the first step may take minutes: show that it runs

    def on_load(self, what: str, done: int, total: int) -> None:
        if self._is_terminal:
            self._advance(f"load {what}", done, total, "B")
            return
        start = self._loading.setdefault(what, perf_counter())
        if done >= total:
            rate = total / 1e6 / max(perf_counter() - self._loading.pop(what, start), 1e-3)
            self._say(f"  {what}: {total / 2**20:,.1f} MiB in place, {rate:,.0f} MB/s")

    def on_step(self, event: StepEvent) -> None:
        self._seconds.append(event.seconds)
        detail = f"{event.expert.value} noise, timestep {event.timestep:.0f}, {event.seconds:.2f} s"
        if self._is_terminal:
            self._advance("sample", event.index + 1, event.num_steps, "step", detail)
        else:
            left = (event.num_steps - event.index - 1) * sum(self._seconds) / len(self._seconds)
            self._say(f"  step {event.index + 1}/{event.num_steps}: {detail}, about {left:.0f} s left")

    def on_chunk(self, done: int, total: int) -> None:
        if self._is_terminal:
            self._advance("VAE", done, total, "latent frame")
        elif done >= total:
            self._say(f"  {total} latent frames")

    def should_stop(self) -> bool:
        return False  # Ctrl-C raises KeyboardInterrupt by itself

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


def progress_hooks(num_steps: int) -> TerminalProgress:
    """Hooks for a run of `num_steps` steps; to be used in a `with` statement."""
    return TerminalProgress(num_steps)
