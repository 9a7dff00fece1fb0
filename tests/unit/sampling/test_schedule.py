"""Schedules: their form, the distilled timesteps, and ComfyUI's denoise, start step, end step and leftover noise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_core.errors import InputError
from wan_core.recipes import Recipe, SampleRequest, recipe
from wan_core.sampling.schedule import Schedule, for_request, from_sigmas, make_schedule
from wan_core.sampling.solvers import SOLVERS

OFFICIAL = recipe("official")


def request_of(chosen: Recipe = OFFICIAL, **changes: object) -> SampleRequest:
    return SampleRequest(recipe=chosen, **changes)


def full(chosen: Recipe = OFFICIAL) -> Schedule:
    return make_schedule(chosen.solver, chosen.num_steps, chosen.shift)


@given(solver=st.sampled_from(sorted(SOLVERS)), num_steps=st.integers(1, 100), shift=st.floats(0.5, 16.0))
def test_schedules_descend_to_zero(solver: str, num_steps: int, shift: float) -> None:
    schedule = make_schedule(solver, num_steps, shift)
    assert schedule.num_steps == num_steps == len(schedule.sigmas) - 1
    assert all(sigma > following for sigma, following in zip(schedule.sigmas, schedule.sigmas[1:], strict=False))
    assert schedule.sigmas[0] <= 1.0 and schedule.sigmas[-1] == 0.0
    for sigma, timestep in zip(schedule.sigmas, schedule.timesteps, strict=False):
        cut = 0.0 if solver == "euler" else 1.0
        assert -1e-4 <= 1000 * sigma - timestep <= cut + 1e-4


@pytest.mark.parametrize(("solver", "whole"), [("unipc", True), ("dpm++", True), ("euler", False)])
def test_only_the_reference_solvers_show_the_model_whole_timesteps(solver: str, whole: bool) -> None:
    timesteps = make_schedule(solver, 40, 12.0).timesteps
    assert all(timestep.is_integer() for timestep in timesteps) is whole


def test_first_sigma_belongs_to_the_solver() -> None:
    assert make_schedule("unipc", 40, 1.0).sigmas[0] == pytest.approx(0.999)
    assert make_schedule("unipc", 40, 12.0).timesteps[0] == 999.0
    assert make_schedule("dpm++", 40, 12.0).sigmas[0] == 1.0
    assert make_schedule("euler", 40, 12.0).timesteps[0] == 1000.0


def test_lightning_timesteps() -> None:
    timesteps = for_request(request_of(recipe("lightning-4"))).timesteps
    assert timesteps == pytest.approx((1000.0, 937.5, 2500 / 3, 625.0), rel=1e-7)


def test_a_timestep_at_the_boundary_is_exact() -> None:
    # 12 steps at shift 5 pass through sigma = 0.875 itself, the boundary: a last bit below would run the other expert.
    assert 875.0 in make_schedule("euler", 12, 5.0).timesteps


def test_unknown_solver_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'unipc'"):
        make_schedule("uni_pc", 20, 5.0)


def test_steps_that_float32_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(InputError, match="same noise level, sigma 1 in float32"):
        make_schedule("euler", 20, 1e9)
    with pytest.raises(InputError, match="same noise level"):
        from_sigmas((1.0, 0.5, 0.5 - 1e-12, 0.0))


def test_given_sigmas_keep_their_values_and_exact_timesteps() -> None:
    schedule = for_request(request_of(sigmas=(1.0, 0.9375, 0.3125, 0.0)))
    assert schedule == Schedule((1.0, 0.9375, 0.3125, 0.0), (1000.0, 937.5, 312.5))


def test_given_sigmas_may_end_above_zero() -> None:
    # The first half of ComfyUI's SplitSigmas: the noise that is left is the next sampler's.
    assert for_request(request_of(sigmas=(1.0, 0.75, 0.5))).sigmas[-1] == 0.5


def test_denoise_beside_given_sigmas_is_refused() -> None:
    with pytest.raises(InputError, match=r"denoise is 0\.5 beside given sigmas.*expected denoise 1"):
        for_request(request_of(sigmas=(1.0, 0.5, 0.0), denoise=0.5))


@pytest.mark.parametrize(("denoise", "longer"), [(0.5, 80), (0.3, 133), (0.99, 40), (0.9, 44)])
def test_denoise_is_the_end_of_a_longer_schedule(denoise: float, longer: int) -> None:
    schedule, whole = for_request(request_of(denoise=denoise)), make_schedule("unipc", longer, 12.0)
    assert schedule.sigmas == whole.sigmas[-41:]
    assert schedule.timesteps == whole.timesteps[-40:]


def test_denoise_next_to_one_is_the_whole_schedule() -> None:
    assert for_request(request_of(denoise=0.99995)) == full()


def test_leftover_noise_is_kept_or_removed_where_the_end_step_cuts() -> None:
    kept = for_request(request_of(end_step=26, leftover_noise="keep"))
    removed = for_request(request_of(end_step=26, leftover_noise="remove"))
    assert kept.sigmas == full().sigmas[:27]
    assert removed.sigmas == (*full().sigmas[:26], 0.0)
    assert kept.timesteps == removed.timesteps == full().timesteps[:26]


@given(cut=st.integers(1, 39))
def test_two_chained_requests_make_the_whole_schedule(cut: int) -> None:
    first = for_request(request_of(end_step=cut, leftover_noise="keep"))
    second = for_request(request_of(start_step=cut))
    assert first.timesteps + second.timesteps == full().timesteps
    assert first.sigmas + second.sigmas[1:] == full().sigmas
    assert first.sigmas[-1] == second.sigmas[0]


def test_an_end_step_past_the_end_means_all_steps() -> None:
    # The default of ComfyUI's KSamplerAdvanced is 10000.
    assert for_request(request_of(end_step=10000)) == full()


@pytest.mark.parametrize("start_step", [40, 41])
def test_a_start_step_past_the_end_is_refused(start_step: int) -> None:
    with pytest.raises(InputError, match=f"start step is {start_step}, .* 40 steps; expected 0 to 39"):
        for_request(request_of(start_step=start_step))


def test_start_and_end_step_cut_given_sigmas_too() -> None:
    schedule = for_request(request_of(sigmas=(1.0, 0.75, 0.5, 0.25, 0.0), start_step=1, end_step=3))
    assert schedule == Schedule((0.75, 0.5, 0.0), (750.0, 500.0))
