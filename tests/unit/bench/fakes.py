"""Contestants that are no models: what they do is written down, and they fail where they are told to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from wan_core.bench.task import PARTS, TINY_TRANSFORMER, Facts, Part, Prepared, Task
from wan_core.bench.torch_settings import TorchSettings
from wan_core.recipes import VideoSize

TASK = Task(size=VideoSize(width=64, height=64, num_frames=5), device="cpu", transformer=TINY_TRANSFORMER)


@dataclass
class Fake:
    """builds, runs: what to do (and how to fail) at each build and each run, in order; nothing once they are used up.

    value: of every number in its output. log: who did what, shared by all.
    """

    name: str
    log: list[str] = field(default_factory=list)
    is_peer: bool = True
    parts: tuple[Part, ...] = PARTS
    value: float = 1.0
    builds: Sequence[Callable[[], None] | None] = ()
    runs: Sequence[Callable[[], None] | None] = ()
    settings: TorchSettings | None = None

    def __post_init__(self) -> None:
        self._builds, self._runs = iter(self.builds), iter(self.runs)

    def prepare(self, part: Part, task: Task) -> Prepared:
        self.log.append(f"build {self.name}")
        _act(next(self._builds, None))
        facts = Facts(summary="a fake", dtype="float32")
        return Prepared(run=self._run, module=nn.Identity(), facts=facts, settings=self.settings)

    def _run(self) -> Tensor:
        self.log.append(f"run {self.name}")
        _act(next(self._runs, None))
        return torch.full((2, 2), self.value)


def _act(action: Callable[[], None] | None) -> None:
    if action is not None:
        action()


def failing(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def out_of_memory() -> Callable[[], None]:
    return failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 57.00 GiB.\nSee the manual."))
