"""Trajectories of the solvers against diffusers' flow schedulers: relative error <= 1e-5 after every step.

A nonlinear velocity that depends on latent and timestep stands for the model. Both sides run the same sigmas: once
diffusers' own schedule, once the reference's, which is written into the diffusers scheduler.
"""

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from wan_core.sampling.loop import denoise
from wan_core.sampling.noise import draw_noise
from wan_core.sampling.schedule import Schedule, from_sigmas, make_schedule
from wan_core.sampling.solvers import SOLVERS

TOLERANCE = 1e-5
NOISE = draw_noise((1, 16, 3, 8, 8), 0, "cpu")
WEIGHT = 0.3 * torch.randn(16, 16, generator=torch.Generator().manual_seed(1))


def velocity(latent: Tensor, timestep: float) -> Tensor:
    mixed = torch.einsum("dc,bcthw->bdthw", WEIGHT, latent)
    return latent - (1 + 0.5 * np.sin(timestep / 150)) * torch.tanh(mixed + timestep / 1000)


def make_scheduler(solver: str, num_steps: int, shift: float) -> SchedulerMixin:
    if solver == "euler":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(sigmas=np.linspace(1, 0, num_steps + 1)[:-1])
        return scheduler
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    if solver == "unipc":
        scheduler = UniPCMultistepScheduler(**flow, solver_order=2, solver_type="bh2")
    else:
        scheduler = DPMSolverMultistepScheduler(**flow, algorithm_type="dpmsolver++", solver_type="midpoint")
    scheduler.set_timesteps(num_steps)
    return scheduler


def their_trajectory(scheduler: SchedulerMixin, timesteps: tuple[float, ...]) -> list[Tensor]:
    """`timesteps` are what the velocity is shown; the scheduler steps through its own sigmas by index."""
    scheduler.set_begin_index(0)
    latent, latents = NOISE, []
    for own, shown in zip(scheduler.timesteps, timesteps, strict=True):
        latent = scheduler.step(velocity(latent, shown), own, latent, return_dict=False)[0]
        latents.append(latent)
    return latents


def largest_error(scheduler: SchedulerMixin, solver: str, schedule: Schedule) -> float:
    theirs = their_trajectory(scheduler, schedule.timesteps)
    ours = denoise(lambda x, i: velocity(x, schedule.timesteps[i]), NOISE, schedule, SOLVERS[solver])
    pairs = zip(ours, theirs, strict=True)
    return max(((step.latent - latent).norm() / latent.norm()).item() for step, latent in pairs)


@pytest.mark.parametrize("shift", [3.0, 5.0, 12.0])
@pytest.mark.parametrize("num_steps", [4, 20, 40])
@pytest.mark.parametrize("solver", SOLVERS)
def test_trajectory_on_diffusers_schedule(solver: str, num_steps: int, shift: float) -> None:
    scheduler = make_scheduler(solver, num_steps, shift)
    schedule = from_sigmas(scheduler.sigmas.tolist())
    assert largest_error(scheduler, solver, schedule) <= TOLERANCE


@pytest.mark.parametrize("shift", [3.0, 5.0, 12.0])
@pytest.mark.parametrize("num_steps", [1, 4, 20, 40])
@pytest.mark.parametrize("solver", SOLVERS)
def test_trajectory_on_the_reference_schedule(solver: str, num_steps: int, shift: float) -> None:
    scheduler = make_scheduler(solver, num_steps, shift)
    schedule = make_schedule(solver, num_steps, shift)
    scheduler.sigmas = torch.tensor(schedule.sigmas)
    scheduler.timesteps = torch.tensor(schedule.timesteps)
    assert largest_error(scheduler, solver, schedule) <= TOLERANCE
