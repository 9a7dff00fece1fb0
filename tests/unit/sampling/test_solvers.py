"""Solvers as mathematics: order of convergence on a flow that is known, exactness at both ends, purity of the steps."""

from itertools import pairwise
from math import expm1, log, log2, sqrt
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wan_core.recipes import SolverName
from wan_core.sampling.loop import denoise
from wan_core.sampling.schedule import from_sigmas, make_schedule
from wan_core.sampling.solvers import SOLVERS, History, unipc

# Data distributed as N(MEAN, STD^2) has a probability flow in closed form: x(sigma) = (1 - sigma) MEAN + spread * z.
MEAN, STD = 0.7, 0.4


def spread(sigma: float) -> float:
    return sqrt(((1 - sigma) * STD) ** 2 + sigma**2)


def exact(z: Tensor, sigma: float) -> Tensor:
    return (1 - sigma) * MEAN + spread(sigma) * z


def exact_velocity(latent: Tensor, sigma: float) -> Tensor:
    expected = MEAN + (1 - sigma) * (STD / spread(sigma)) ** 2 * (latent - (1 - sigma) * MEAN)
    return (latent - expected) / sigma


def final_latent(name: str, sigmas: tuple[float, ...], latent: Tensor) -> Tensor:
    schedule = from_sigmas(sigmas)
    steps = denoise(lambda x, i: exact_velocity(x, schedule.sigmas[i]), latent, schedule, SOLVERS[name])
    return list(steps)[-1].latent


def error(name: str, num_steps: int, first: float, last: float) -> float:
    """Largest error at `last` after evenly spaced steps from `first`, in float64."""
    # Multiples of 1/2048 are exact in float32, so that the schedule adds no error of its own.
    sigmas = tuple(first + (last - first) * i / num_steps for i in range(num_steps + 1))
    z = torch.tensor([-1.5, -0.3, 0.8, 2.0], dtype=torch.float64)
    return (final_latent(name, sigmas, exact(z, first)) - exact(z, last)).abs().max().item()


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("dpm++", 2), ("unipc", 3)])
@pytest.mark.parametrize("first", [0.875, 1.0])
def test_order_of_convergence(name: str, order: int, first: float) -> None:
    # UniPC-2: a predictor of order 2 whose corrector adds one (theorem of arXiv:2302.04867).
    errors = [error(name, num_steps, first, 0.125) for num_steps in (64, 128, 256)]
    rates = [log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(abs(rate - order) < 0.15 for rate in rates), rates


@pytest.mark.parametrize(("name", "bound"), [("euler", 2.2e-2), ("dpm++", 7e-3), ("unipc", 4e-3)])
def test_whole_runs_come_close_to_the_flow(name: str, bound: float) -> None:
    assert error(name, 64, 1.0, 0.0) < bound < error("euler", 16, 1.0, 0.0)


@given(
    name=st.sampled_from(sorted(SOLVERS)),
    sigmas=st.lists(st.integers(0, 1000), min_size=2, max_size=12, unique=True),
)
def test_a_constant_prediction_is_followed_exactly(name: str, sigmas: list[int]) -> None:
    # Straight paths to one clean latent: every solver is exact whatever its steps, from pure noise and to sigma 0 too.
    schedule = from_sigmas([level / 1000 for level in sorted(sigmas, reverse=True)])
    clean, noise = torch.randn(2, 1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = torch.lerp(clean, noise, schedule.sigmas[0])
    for step in denoise(lambda latent, index: noise - clean, start, schedule, SOLVERS[name]):
        torch.testing.assert_close(step.latent, torch.lerp(clean, noise, schedule.sigmas[step.index + 1]))
        torch.testing.assert_close(step.denoised, clean)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_last_step_returns_the_prediction_itself(name: str) -> None:
    schedule = make_schedule(name, 6, 5.0)
    latent = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    *_, last = denoise(lambda x, i: torch.tanh(x + i), latent, schedule, SOLVERS[name])
    assert torch.equal(last.latent, last.denoised)


@pytest.mark.parametrize("name", SOLVERS)
def test_pure_noise_is_the_limit_of_almost_pure_noise(name: str) -> None:
    # lambda is infinite at sigma 1; nothing jumps there.
    latent = torch.tensor([0.3, -1.2], dtype=torch.float64)
    rest = (0.9, 0.7, 0.4, 0.1, 0.0)
    at_one, near_one = (final_latent(name, (first, *rest), latent) for first in (1.0, 1.0 - 2**-23))
    torch.testing.assert_close(at_one, near_one, rtol=0, atol=0.02)
    assert at_one.isfinite().all()


def test_the_corrector_solves_the_equations_of_the_paper() -> None:
    sigmas, index = (0.95, 0.8, 0.55, 0.3), 2
    older, start, end, origin, predicted = torch.randn(
        5, 1, 2, 1, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    _, history = unipc(predicted, end, sigmas, index, History((start, older), origin))

    lambdas = [log((1 - sigma) / sigma) for sigma in sigmas]
    h = lambdas[2] - lambdas[1]
    nodes = np.array([(lambdas[0] - lambdas[1]) / h, 1.0])
    b_h = expm1(-h)
    phi_1 = b_h / -h - 1
    phi_2 = phi_1 / -h - 1 / 2
    weights = np.linalg.solve(np.stack([nodes**0, nodes]), np.array([phi_1 / b_h, 2 * phi_2 / b_h]))
    differences = weights[0] * (older - start) / nodes[0] + weights[1] * (end - start)
    alpha = 1 - sigmas[2]
    expected = sigmas[2] / sigmas[1] * origin - alpha * b_h * start - alpha * b_h * differences
    torch.testing.assert_close(history.origin, expected, rtol=1e-12, atol=1e-12)
    assert history.denoised[0] is end and history.denoised[1] is start


@pytest.mark.parametrize("name", SOLVERS)
def test_steps_change_nothing_they_are_given(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    schedule = make_schedule(name, 5, 5.0)
    latent, history = torch.randn(1, 2, 1, 2, 2, generator=generator), History()
    for index in range(schedule.num_steps):
        denoised = torch.randn(latent.shape, generator=generator)
        given = {"latent": latent, "prediction": denoised, **history.tensors()}
        before = {key: tensor.clone() for key, tensor in given.items()}
        latent, history = SOLVERS[name](latent, denoised, schedule.sigmas, index, history)
        assert all(torch.equal(given[key], before[key]) for key in given)


@pytest.mark.parametrize(("name", "num_kept"), [("euler", 0), ("dpm++", 1), ("unipc", 3)])
def test_a_history_is_rebuilt_from_its_tensors(name: str, num_kept: int) -> None:
    schedule = make_schedule(name, 5, 5.0)
    latent = torch.randn(1, 2, 1, 2, 2, generator=torch.Generator().manual_seed(4))
    history = list(denoise(lambda x, i: torch.sin(x), latent, schedule, SOLVERS[name]))[3].history
    named = history.tensors()
    assert len(named) == num_kept
    rebuilt = History.from_tensors(named)
    assert len(rebuilt.denoised) == len(history.denoised) and rebuilt.origin is history.origin
    assert all(mine is its for mine, its in zip(rebuilt.denoised, history.denoised, strict=True))


def test_every_solver_of_the_recipes_exists() -> None:
    assert set(SOLVERS) == set(get_args(SolverName))
