"""The loop: one step per turn, stoppable, and resumable bit for bit from a saved step."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wan_core.sampling.loop import denoise
from wan_core.sampling.noise import draw_noise
from wan_core.sampling.schedule import Schedule, make_schedule
from wan_core.sampling.solvers import SOLVERS, History

NOISE = draw_noise((1, 16, 2, 4, 4), 0, "cpu")


class Velocity:
    """A velocity that depends on latent and timestep; keeps the steps at which it was asked."""

    def __init__(self, schedule: Schedule) -> None:
        self._timesteps = schedule.timesteps
        self.asked: list[int] = []

    def __call__(self, latent: Tensor, index: int) -> Tensor:
        self.asked.append(index)
        return latent - torch.tanh(latent.roll(1, dims=1) + self._timesteps[index] / 500)


def test_one_prediction_and_one_step_per_turn() -> None:
    schedule = make_schedule("unipc", 6, 5.0)
    velocity = Velocity(schedule)
    steps = denoise(velocity, NOISE, schedule, SOLVERS["unipc"])
    assert velocity.asked == []
    assert next(steps).index == 0
    assert velocity.asked == [0]
    assert [step.index for step in steps] == [1, 2, 3, 4, 5]
    assert velocity.asked == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", SOLVERS)
def test_steps_carry_the_prediction_they_were_made_with(name: str) -> None:
    schedule = make_schedule(name, 5, 5.0)
    latent = NOISE
    for step in denoise(Velocity(schedule), latent, schedule, SOLVERS[name]):
        velocity = Velocity(schedule)(latent, step.index)
        assert torch.equal(step.denoised, latent - schedule.sigmas[step.index] * velocity)
        latent = step.latent
        assert latent.dtype == torch.float32


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("stopped_after", [0, 1, 4, 8])
def test_a_run_resumed_from_a_file_is_bit_identical(name: str, stopped_after: int, tmp_path: Path) -> None:
    schedule = make_schedule(name, 10, 12.0)
    velocity, solver = Velocity(schedule), SOLVERS[name]
    whole = list(denoise(velocity, NOISE, schedule, solver))

    stopped = list(islice(denoise(velocity, NOISE, schedule, solver), stopped_after + 1))[-1]
    save_file({"latent": stopped.latent, **stopped.history.tensors()}, tmp_path / "step.safetensors")
    saved = load_file(tmp_path / "step.safetensors")
    latent, history = saved.pop("latent"), History.from_tensors(saved)
    resumed = denoise(velocity, latent, schedule, solver, start=stopped_after + 1, history=history)

    for step, expected in zip(resumed, whole[stopped_after + 1 :], strict=True):
        assert step.index == expected.index
        assert torch.equal(step.latent, expected.latent)
        assert torch.equal(step.denoised, expected.denoised)


@pytest.mark.parametrize("name", ["unipc", "dpm++"])
def test_the_history_matters(name: str) -> None:
    # Otherwise the test above would prove nothing.
    schedule = make_schedule(name, 10, 12.0)
    velocity, solver = Velocity(schedule), SOLVERS[name]
    whole = list(denoise(velocity, NOISE, schedule, solver))
    *_, forgetful = denoise(velocity, whole[4].latent, schedule, solver, start=5)
    assert (forgetful.latent - whole[-1].latent).norm() > 5e-5 * whole[-1].latent.norm()


@pytest.mark.parametrize("name", SOLVERS)
def test_nothing_is_read_back_from_the_device(name: str) -> None:
    # Tensors on "meta" hold no numbers: a step that asked for one would raise.
    schedule = make_schedule(name, 5, 5.0)
    *_, last = denoise(Velocity(schedule), NOISE.to("meta"), schedule, SOLVERS[name])
    assert last.latent.is_meta and last.latent.shape == NOISE.shape


def test_a_finished_run_has_no_more_steps() -> None:
    schedule = make_schedule("euler", 3, 5.0)
    assert list(denoise(Velocity(schedule), NOISE, schedule, SOLVERS["euler"], start=3)) == []
