"""Schedules against a transcription of the reference's arithmetic, and Euler's against diffusers'.

diffusers' own flow schedules of UniPC and DPM++ start elsewhere than the reference's, so they are no yardstick here.
"""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from wan_core.sampling.schedule import make_schedule

SHIFTS = [1.0, 3.0, 5.0, 8.0, 12.0, 6.3]


def reference_unipc(num_steps: int, shift: float) -> tuple[list[float], list[int]]:
    alphas = np.linspace(1, 1 / 1000, 1000)[::-1].copy()
    training = torch.from_numpy(1.0 - alphas).to(torch.float32)
    sigmas = np.linspace(training[0].item(), training[-1].item(), num_steps + 1).copy()[:-1]
    return finish(shift * sigmas / (1 + (shift - 1) * sigmas))


def reference_dpmpp(num_steps: int, shift: float) -> tuple[list[float], list[int]]:
    sigmas = np.linspace(1, 0, num_steps + 1)[:num_steps]
    return finish(shift * sigmas / (1 + (shift - 1) * sigmas))


def finish(sigmas: np.ndarray) -> tuple[list[float], list[int]]:
    timesteps = torch.from_numpy(sigmas * 1000).to(torch.int64).tolist()
    return np.concatenate([sigmas, [0]]).astype(np.float32).tolist(), timesteps


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(("solver", "reference"), [("unipc", reference_unipc), ("dpm++", reference_dpmpp)])
def test_sigmas_and_timesteps_are_the_references(solver: str, reference: object, shift: float) -> None:
    for num_steps in range(1, 101):
        schedule = make_schedule(solver, num_steps, shift)
        assert (list(schedule.sigmas), list(schedule.timesteps)) == reference(num_steps, shift)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("num_steps", [1, 4, 20, 40])
def test_euler_is_diffusers(num_steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, num_steps + 1)[:-1])
    schedule = make_schedule("euler", num_steps, shift)
    assert schedule.sigmas == pytest.approx(scheduler.sigmas.tolist(), rel=5e-7)
    assert schedule.timesteps == pytest.approx(scheduler.timesteps.tolist(), rel=5e-7)
