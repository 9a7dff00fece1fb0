"""Noise levels and timesteps of a run: uniform spacing, then shift, then a final 0 (rectified flow, arXiv:2403.03206).

x = (1 - sigma) * x0 + sigma * noise, timestep = 1000 * sigma, sigma' = shift * sigma / (1 + (shift - 1) * sigma).
The spacing belongs to the solver, as in the reference: UniPC starts at 0.999, the others at 1, and UniPC and DPM++ show
the model whole timesteps (1000 * sigma cut to an integer) while their formulas use the sigma itself.

Sigmas are host floats that hold float32 values, because the schedules of the reference and of ComfyUI are float32:
close to sigma = 1 the rounding is visible in 1 - sigma, and so in every multistep coefficient. Timesteps are cut before
that rounding, which is also the reference's order. Nothing here is a tensor, so no step ever waits for the device.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import InputError
from ..profiles import check_choice
from ..recipes import SampleRequest
from ..specs import NUM_TRAIN_TIMESTEPS

# ComfyUI's own limit: above it the whole schedule runs.
_WHOLE_SCHEDULE = 0.9999


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the solver and the model see of a run.

    sigmas: n + 1 noise levels, descending within 1 to 0. timesteps: the n timesteps given to the model, one per step.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.sigmas) == len(self.timesteps) + 1, f"{len(self.sigmas)} sigmas, {len(self.timesteps)} steps"

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spacing:
    """First unshifted sigma, and whether the model is shown whole timesteps."""

    first: float
    whole_timesteps: bool


def _float32(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(array("f", values))


def _levels(values: Iterable[float]) -> tuple[float, ...]:
    """Sigmas in float32; steps that this makes empty would divide by zero in every multistep solver."""
    levels = _float32(values)
    for sigma, following in zip(levels, levels[1:], strict=False):
        if sigma <= following:
            raise InputError(
                f"two steps in a row start at the same noise level, sigma {sigma:g} in float32; expected descending "
                "sigmas (fewer steps, or a shift nearer to 1)"
            )
    return levels


_SPACINGS = MappingProxyType(
    {
        # The largest sigma of the 1000 training levels; the reference keeps it in float32.
        "unipc": _Spacing(first=_float32([1.0 - 1.0 / NUM_TRAIN_TIMESTEPS])[0], whole_timesteps=True),
        "dpm++": _Spacing(first=1.0, whole_timesteps=True),
        "euler": _Spacing(first=1.0, whole_timesteps=False),
    }
)


def make_schedule(solver: str, num_steps: int, shift: float) -> Schedule:
    """The reference's schedule of `num_steps` >= 1 steps; `InputError` for a solver that does not exist."""
    check_choice("solver", solver, tuple(_SPACINGS))
    assert num_steps >= 1, f"{num_steps} steps"
    spacing = _SPACINGS[solver]
    # The arithmetic of numpy.linspace, operation by operation: a last bit off would cut a timestep to its neighbour.
    stride = (0.0 - spacing.first) / num_steps
    shifted = [shift_sigma(index * stride + spacing.first, shift) for index in range(num_steps)]
    sigmas = _levels([*shifted, 0.0])
    if not spacing.whole_timesteps:
        return from_sigmas(sigmas)
    return Schedule(sigmas, tuple(float(int(sigma * NUM_TRAIN_TIMESTEPS)) for sigma in shifted))


def shift_sigma(sigma: float, shift: float) -> float:
    """More of the run at high noise for a shift above 1; 0 and 1 stay where they are."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def from_sigmas(sigmas: Sequence[float]) -> Schedule:
    """A schedule of given noise levels, descending within 1 to 0; the timesteps are 1000 * sigma, not cut."""
    levels = _levels(sigmas)
    return Schedule(levels, tuple(NUM_TRAIN_TIMESTEPS * sigma for sigma in levels[:-1]))


def for_request(request: SampleRequest) -> Schedule:
    """The steps that a request runs, with ComfyUI's meaning of denoise, of start and end step, and of leftover noise.

    denoise below 1: the last `num_steps` steps of a schedule of num_steps / denoise. An end step past the end means
    all steps. Where the end step cuts the schedule and the leftover noise is to be removed, the last step goes to
    sigma 0; given sigmas that end above 0 are run as given.
    Raises `InputError` for a start step past the end, and for denoise beside given sigmas.
    """
    schedule = _before_cut(request)
    num_steps = schedule.num_steps
    if request.start_step >= num_steps:
        raise InputError(
            f"start step is {request.start_step}, but the schedule has {num_steps} steps; expected 0 to {num_steps - 1}"
        )
    end_step = num_steps if request.end_step is None else min(request.end_step, num_steps)
    sigmas = schedule.sigmas[request.start_step : end_step + 1]
    if end_step < num_steps and request.leftover_noise == "remove":
        sigmas = (*sigmas[:-1], 0.0)
    return Schedule(sigmas, schedule.timesteps[request.start_step : end_step])


def _before_cut(request: SampleRequest) -> Schedule:
    recipe = request.recipe
    if request.sigmas is not None:
        if request.denoise != 1.0:
            raise InputError(
                f"denoise is {request.denoise:g} beside given sigmas, which already say where to start; "
                "expected denoise 1, or no sigmas"
            )
        return from_sigmas(request.sigmas)
    if request.denoise > _WHOLE_SCHEDULE:
        return make_schedule(recipe.solver, recipe.num_steps, recipe.shift)
    longer = make_schedule(recipe.solver, int(recipe.num_steps / request.denoise), recipe.shift)
    first = longer.num_steps - recipe.num_steps
    return Schedule(longer.sigmas[first:], longer.timesteps[first:])
