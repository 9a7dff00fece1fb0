"""Runs whose process is killed, at moments that nobody chose: the next process goes on from what they left."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
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


def killed_run(run: Callable[[Tell], object], steps: int, seconds: float) -> int:
    """Do `run` in a process of its own and kill that some seconds after so many steps; how many it told of in all."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # never returns into pytest
        try:
            run(Tell(writing))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        waited_for = len(told.read(steps))
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return waited_for + len(told.read())


# CUDA does not live through a fork. A disk keeps up with the miniature's steps, and not with those of a smaller model.
@pytest.mark.parametrize("shared", ["miniature"], indirect=True)
def test_killed_at_random_moments_and_resumed(
    shared: WanPipeline, plan: RunPlan, prompts: Conditioning, whole: Tensor, journal: Callable, tmp_path: Path
) -> None:
    start = time.monotonic()
    shared.sample(plan, prompts)
    step_seconds, dice, resumed = (time.monotonic() - start) / NUM_STEPS, random.Random(0), 0
    # Moments by steps, not by the clock: on a busy machine a run takes several times as long as the one before it.
    for number, steps in enumerate(dice.sample(range(NUM_STEPS), 5) * 2):
        kept, seconds = journal(tmp_path / f"{number}.safetensors"), dice.uniform(0, step_seconds)
        sample = partial(shared.sample, plan, prompts, journal=kept)
        told = killed_run(lambda tell, sample=sample: sample(hooks=tell), steps, seconds)
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
