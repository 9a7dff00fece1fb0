"""Solvers of the sampling ODE as pure step functions: Euler, DPM-Solver++ 2M (arXiv:2211.01095), UniPC (2302.04867).

One formula carries all three. With alpha = 1 - sigma, lambda = log(alpha / sigma) and h = lambda' - lambda, the
exponential integrator in data prediction is x' = sigma'/sigma * x + alpha' * (1 - exp(-h)) * D, and for a rectified
flow alpha' * (1 - exp(-h)) = 1 - sigma'/sigma. So every step is lerp(D, x, sigma'/sigma), finite at sigma = 1 and exact
at sigma' = 0, and the solvers differ only in D, their estimate of the clean latent over the step:
  Euler            D = denoised
  DPM-Solver++ 2M  D = denoised + h / (2 h_before) * (denoised - denoised before)     (midpoint)
  UniPC, bh2       the same predictor; first it redoes the step that led here, now that this end of it has been seen.

Coefficients are host floats in float64: nothing is read back from the device. Latents are float32, of any shape. A step
to sigma = 0 is of first order, since lambda is infinite there; so is a first step, which has no history. In the
schedules of the reference these are its "lower order final" and its warm-up.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import expm1, inf, log, log1p
from types import MappingProxyType

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """What a multistep solver keeps between steps; empty before the first.

    denoised: predictions of the clean latent at the steps before, newest first, at most two.
    origin: the (corrected) latent from which the last step started, where the solver has a corrector.
    """

    denoised: tuple[Tensor, ...] = ()
    origin: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Everything there is to save, by name."""
        named = {f"denoised.{age}": tensor for age, tensor in enumerate(self.denoised)}
        return named if self.origin is None else {**named, "origin": self.origin}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "History":
        """The history whose `tensors()` these are."""
        ages = range(sum(name.startswith("denoised.") for name in tensors))
        return cls(tuple(tensors[f"denoised.{age}"] for age in ages), tensors.get("origin"))


# (latent, denoised, sigmas, index, history) -> (latent, history): the step from sigmas[index] to sigmas[index + 1] for
# a latent and its prediction of the clean one, both (B, C, T, H, W). Nothing that is passed in is changed.
Solver = Callable[[Tensor, Tensor, Sequence[float], int, History], tuple[Tensor, History]]


def euler(
    latent: Tensor, denoised: Tensor, sigmas: Sequence[float], index: int, history: History
) -> tuple[Tensor, History]:
    """First order: x' = x + (sigma' - sigma) * velocity."""
    return _integrate(latent, denoised, sigmas, index), history


def dpmpp_2m(
    latent: Tensor, denoised: Tensor, sigmas: Sequence[float], index: int, history: History
) -> tuple[Tensor, History]:
    """Second order, one evaluation per step: DPM-Solver++(2M), midpoint, algorithm 2 of arXiv:2211.01095."""
    estimate = _extrapolate(denoised, sigmas, index, history)
    return _integrate(latent, estimate, sigmas, index), History((denoised,))


def unipc(
    latent: Tensor, denoised: Tensor, sigmas: Sequence[float], index: int, history: History
) -> tuple[Tensor, History]:
    """Third order, one evaluation per step: UniPC-2, data prediction, B(h) = exp(-h) - 1 ("bh2"), arXiv:2302.04867."""
    if history.origin is not None:
        latent = _integrate(history.origin, _correct(denoised, sigmas, index, history), sigmas, index - 1)
    estimate = _extrapolate(denoised, sigmas, index, history)
    return _integrate(latent, estimate, sigmas, index), History((denoised, *history.denoised[:1]), latent)


SOLVERS: Mapping[str, Solver] = MappingProxyType({"unipc": unipc, "dpm++": dpmpp_2m, "euler": euler})


def _integrate(latent: Tensor, estimate: Tensor, sigmas: Sequence[float], index: int) -> Tensor:
    """The step from sigmas[index] to sigmas[index + 1] with `estimate` as the clean latent."""
    return torch.lerp(estimate, latent, sigmas[index + 1] / sigmas[index])


def _extrapolate(denoised: Tensor, sigmas: Sequence[float], index: int, history: History) -> Tensor:
    """The clean latent in the middle of the coming step, on the line through the last two predictions."""
    if not history.denoised or sigmas[index + 1] == 0.0:
        return denoised
    weight = 0.5 * _interval(sigmas, index) / _interval(sigmas, index - 1)
    return denoised + weight * (denoised - history.denoised[0])


def _correct(denoised: Tensor, sigmas: Sequence[float], index: int, history: History) -> Tensor:
    """UniC: the clean latent over the step that ended here, from the predictions at both its ends and the one before.

    With B(h) = exp(-h) - 1 the weights w solve sum_k w_k r_k^(n-1) = b_n, n = 1, 2, for r = (-h_before / h, 1), where
    b_1 = 1 / (1 - exp(-h)) - 1 / h and b_2 = 1 / (1 - exp(-h)) - 2 b_1 / h: two equations, solved by hand. After a
    first step there is one equation, w = b_1; there the paper's code and the reference take its limit for h to 0, 1/2.
    """
    start, *older = history.denoised
    if not older:
        return torch.lerp(start, denoised, 0.5)
    h = _interval(sigmas, index - 1)
    ratio = _interval(sigmas, index - 2) / h
    inverse = -1.0 / expm1(-h)
    b1 = inverse - 1.0 / h
    b2 = inverse - 2.0 * b1 / h
    weight_before = (b1 - b2) / (1.0 + ratio)
    weight_end = b1 - weight_before
    return start + (weight_before / ratio) * (start - older[0]) + weight_end * (denoised - start)


def _interval(sigmas: Sequence[float], index: int) -> float:
    """h of the step from sigmas[index] to sigmas[index + 1]; infinite for a step from 1 or to 0."""
    return _lambda(sigmas[index + 1]) - _lambda(sigmas[index])


def _lambda(sigma: float) -> float:
    """Half the logarithm of the signal-to-noise ratio, log((1 - sigma) / sigma)."""
    if sigma <= 0.0:
        return inf
    return -inf if sigma >= 1.0 else log1p(-sigma) - log(sigma)
