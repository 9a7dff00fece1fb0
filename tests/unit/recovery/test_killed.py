"""Runs whose process is killed, at moments that nobody chose: the next process goes on from what they left."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.recovery.conftest import NUM_STEPS, StepRecorder
from wan_core.pipeline import RunPlan, WanPipeline
from wan_core.recovery.journal import Journal
from wan_core.recovery.state import read_state
from wan_core.sample import Conditioning

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks the process")


class Tell(StepRecorder):
    """Sends one byte for every finished step."""

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self._pipe = pipe

    def on_step(self, event: object) -> None:
        os.write(self._pipe, b".")


def killed_run(run: Callable[[Tell], object], seconds: float) -> int:
    """Do `run` in a process of its own and kill that after some seconds; how many steps it told of."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # never returns into pytest
        try:
            run(Tell(writing))
        finally:
            os._exit(0)
    os.close(writing)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as told:
        return len(told.read())


@pytest.mark.parametrize("shared", ["cpu"], indirect=True)  # CUDA does not live through a fork
def test_killed_at_random_moments_and_resumed(
    shared: WanPipeline, plan: RunPlan, prompts: Conditioning, whole: Tensor, journal: Callable, tmp_path: Path
) -> None:
    start = time.monotonic()
    shared.sample(plan, prompts)
    whole_seconds, dice, resumed = time.monotonic() - start, random.Random(0), 0
    for number in range(10):
        kept = journal(tmp_path / f"{number}.safetensors")
        seconds = dice.uniform(0.1, 1.2) * whole_seconds
        told = killed_run(lambda tell, kept=kept: shared.sample(plan, prompts, hooks=tell, journal=kept), seconds)
        path = kept.file.path
        # One step may not have been looked at yet, and one may have been on its way to the disk.
        assert path.exists() or told <= 2
        if path.exists():
            state, hooks = read_state(path), StepRecorder()
            assert state.position.next_step >= told - 2
            latent = shared.sample(plan, prompts, hooks=hooks, journal=Journal(position=state.position)).latent
            assert torch.equal(latent, whole)
            assert hooks.steps == list(range(state.position.next_step, NUM_STEPS))
            resumed += 1
    assert resumed >= 5
