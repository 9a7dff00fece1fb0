"""The guard on a velocity made up for it: what it keeps, what it throws away, what it has done again."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from wan_core.recovery.guard import guarded_steps
from wan_core.recovery.state import Position
from wan_core.sampling.loop import SolverStep, denoise
from wan_core.sampling.schedule import make_schedule
from wan_core.sampling.solvers import SOLVERS

SCHEDULE = make_schedule("unipc", 6, 5.0)
START = Position(next_step=0, latent=torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0)))


def velocity(latent: Tensor, index: int) -> Tensor:
    return latent - torch.tanh(latent.roll(1, dims=1) + SCHEDULE.timesteps[index] / 500)


class Run:
    """Guarded steps with a velocity that is NaN at some steps, or raises at one; remembers everything."""

    def __init__(self, *, bad: tuple[int, ...] = (), raises: int | None = None) -> None:
        self.bad, self.raises = bad, raises
        self.kept: list[Position] = []
        self.redone: list[int] = []
        self.asked: list[int] = []

    def __iter__(self) -> Iterator[SolverStep]:
        return guarded_steps(self._steps, START, keep=self.kept.append, redo=self._redo)

    def _predict(self, latent: Tensor, index: int) -> Tensor:
        self.asked.append(index)
        if index == self.raises:
            raise RuntimeError("lost")
        return velocity(latent, index) * (float("nan") if index in self.bad else 1.0)

    def _steps(self, at: Position) -> Iterator[SolverStep]:
        return denoise(self._predict, at.latent, SCHEDULE, SOLVERS["unipc"], start=at.next_step, history=at.history)

    def _redo(self, at: Position) -> SolverStep:
        self.redone.append(at.next_step)
        steps = denoise(velocity, at.latent, SCHEDULE, SOLVERS["unipc"], start=at.next_step, history=at.history)
        return next(steps)


@pytest.fixture(scope="module")
def whole() -> Tensor:
    *_, last = denoise(velocity, START.latent, SCHEDULE, SOLVERS["unipc"])
    return last.latent


def test_sound_steps_pass_and_each_is_asked_once(whole: Tensor) -> None:
    run = Run()
    steps = list(run)
    assert torch.equal(steps[-1].latent, whole) and torch.equal(run.kept[-1].latent, whole)
    assert run.asked == list(range(6)) and [each.next_step for each in run.kept] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("bad", [(0,), (3,), (5,), (2, 3), (0, 5)])
def test_a_bad_step_is_done_again_and_nothing_after_it_survives(bad: tuple[int, ...], whole: Tensor) -> None:
    run = Run(bad=bad)
    steps = list(run)
    assert run.redone == list(bad)
    assert torch.equal(steps[-1].latent, whole)
    assert [each.next_step for each in run.kept] == [1, 2, 3, 4, 5, 6]
    assert all(each.latent.isfinite().all() for each in run.kept)


def test_a_step_is_kept_only_when_the_next_is_queued() -> None:
    run = Run()
    steps = iter(run)
    next(steps)
    assert not run.kept
    next(steps)
    assert [each.next_step for each in run.kept] == [1]
    steps.close()
    assert [each.next_step for each in run.kept] == [1, 2]  # closing waits for what is queued


def test_an_error_keeps_what_was_queued_before_it() -> None:
    run = Run(raises=4)
    with pytest.raises(RuntimeError, match="lost"):
        list(run)
    assert [each.next_step for each in run.kept] == [1, 2, 3, 4]


def test_an_error_after_a_bad_step_keeps_nothing_bad() -> None:
    run = Run(bad=(3,), raises=4)
    with pytest.raises(RuntimeError, match="lost"):
        list(run)
    assert run.kept[-1].next_step == 3 and run.kept[-1].latent.isfinite().all()
