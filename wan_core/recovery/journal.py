"""The memory of one run: the last position known to be sound, and its file, written while the device goes on.

A position is copied to pinned host memory on the device's own queue (77 MB at 1280x720x81, under 2 ms) and written by a
thread, one at a time: a slow disk makes states rarer, never a step slower. A disk that refuses costs a warning.
Without a file the journal only remembers, which is what stepping down the ladder needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from time import monotonic

import torch
from torch import Tensor

from ..errors import InputError
from .state import Facts, Position, RunState, remove_state, write_state

DEFAULT_SAVE_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StateFile:
    """Where the state of a run is written, and what is written with every position.

    save_seconds: time between two states while the run goes on; 0 writes after every step that the disk keeps up with.
    """

    path: Path
    facts: Facts
    num_steps: int
    prompts: Mapping[str, Tensor]
    save_seconds: float = DEFAULT_SAVE_SECONDS

    def write(self, position: Position) -> None:
        if position.next_step >= self.num_steps:  # no step will ask for its history
            position = Position(next_step=position.next_step, latent=position.latent)
        state = RunState(facts=self.facts, num_steps=self.num_steps, position=position, prompts=self.prompts)
        write_state(self.path, state)


class Journal:
    """Lives from the start of a run to its end, over all attempts of the ladder."""

    def __init__(self, file: StateFile | None = None, position: Position | None = None) -> None:
        self.file = file
        self.position = position
        self.problem: str | None = None
        self._written: int | None = None if position is None else position.next_step
        self._last = monotonic()
        self._thread: Thread | None = None

    def keep(self, position: Position) -> None:
        """Remember a position that is known to be finite; write it where the time has come."""
        self.position = position
        if self.file is None or monotonic() - self._last < self.file.save_seconds:
            return
        if self._thread is None or not self._thread.is_alive():
            self._last = monotonic()
            copy, arrived = _on_host(position)
            self._thread = Thread(target=self._write, args=(copy, arrived), name="wan-velocity-state", daemon=True)
            self._thread.start()

    def flush(self) -> None:
        """The last position is on disk when this returns, unless the disk refuses; to be called however a run ends."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self.file is not None and self.position is not None and self._written != self.position.next_step:
            self._write(*_on_host(self.position))

    def discard(self) -> None:
        """The result is safe elsewhere: remove the file, and what a killed process may have left half written."""
        self.flush()
        if self.file is not None:
            remove_state(self.file.path)

    @property
    def saved(self) -> Path | None:
        """The file, where there is one."""
        return self.file.path if self.file is not None and self._written is not None else None

    def _write(self, position: Position, arrived: torch.cuda.Event | None) -> None:
        if arrived is not None:
            arrived.synchronize()
        try:
            self.file.write(position)
        except InputError as error:
            self.problem = f"the state of this run is not saved: {error}"
        else:
            self._written, self.problem = position.next_step, None


def _on_host(position: Position) -> tuple[Position, torch.cuda.Event | None]:
    """A copy in host memory, and the event at which it has arrived; the position itself where it is there already."""
    tensors = position.tensors()
    if not position.latent.is_cuda:
        return position, None
    copies = {
        name: torch.empty(each.shape, dtype=each.dtype, pin_memory=True).copy_(each, non_blocking=True)
        for name, each in tensors.items()
    }
    arrived = torch.cuda.Event()
    arrived.record()
    return Position.from_tensors(position.next_step, copies), arrived
