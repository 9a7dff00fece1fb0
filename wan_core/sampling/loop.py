"""The sampling loop as a generator: one solver step per turn, so that previews, progress and interruption live outside.

It knows tensors, a schedule, a solver and a function that predicts; which expert predicts, on what device, and who
watches is the caller's. It never waits for the device. Every step carries what is needed to go on from it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from .schedule import Schedule
from .solvers import History, Solver

# (latent at the noise level of a step, index of the step) -> velocity, both (B, C, T, H, W) float32
Predict = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SolverStep:
    """One finished step, all tensors (B, C, T, H, W) in model space.

    latent: at sigmas[index + 1]. denoised: the prediction of the clean latent that the step was made with.
    history: with `latent` and `start=index + 1`, what `denoise` needs to continue bit for bit.
    """

    index: int
    latent: Tensor
    denoised: Tensor
    history: History


def denoise(
    predict: Predict,
    latent: Tensor,
    schedule: Schedule,
    solver: Solver,
    *,
    start: int = 0,
    history: History | None = None,
) -> Iterator[SolverStep]:
    """Run steps `start` to the end of the schedule on a latent at sigmas[start], yielding after each."""
    history = history or History()
    for index in range(start, schedule.num_steps):
        denoised = latent - schedule.sigmas[index] * predict(latent, index)
        latent, history = solver(latent, denoised, schedule.sigmas, index, history)
        yield SolverStep(index=index, latent=latent, denoised=denoised, history=history)
