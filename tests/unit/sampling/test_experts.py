"""The expert split against the table of the reference's schedules, row by row."""

import pytest

from wan_core.sampling.experts import expert_for, split
from wan_core.sampling.schedule import make_schedule
from wan_core.specs import I2V_A14B, T2V_A14B, Expert

# (steps, shift, boundary, high, low) of the reference's loop with its default solver.
TABLE = [
    (40, 12.0, T2V_A14B.boundary, 26, 14),
    (50, 12.0, T2V_A14B.boundary, 32, 18),
    (20, 12.0, T2V_A14B.boundary, 13, 7),
    (20, 8.0, T2V_A14B.boundary, 11, 9),
    (20, 5.0, T2V_A14B.boundary, 9, 11),
    (8, 5.0, T2V_A14B.boundary, 4, 4),
    (6, 5.0, T2V_A14B.boundary, 3, 3),
    (4, 5.0, T2V_A14B.boundary, 2, 2),
    (4, 8.0, T2V_A14B.boundary, 3, 1),
    (40, 5.0, I2V_A14B.boundary, 15, 25),
]


@pytest.mark.parametrize(("num_steps", "shift", "boundary", "num_high", "num_low"), TABLE)
def test_split_of_the_reference(num_steps: int, shift: float, boundary: float, num_high: int, num_low: int) -> None:
    experts = split(make_schedule("unipc", num_steps, shift), boundary)
    assert experts == (Expert.HIGH,) * num_high + (Expert.LOW,) * num_low


def test_lightning_splits_in_half() -> None:
    assert split(make_schedule("euler", 4, 5.0), 0.875).count(Expert.HIGH) == 2


def test_the_boundary_itself_is_high() -> None:
    assert expert_for(875.0, 0.875) is Expert.HIGH
    assert expert_for(900.0, 0.9) is Expert.HIGH
    assert expert_for(874.99994, 0.875) is Expert.LOW


def test_the_timestep_shown_to_the_model_decides() -> None:
    # sigma 0.8754 is above the boundary 0.8752, its whole timestep 875 is not: the reference runs the low expert.
    schedule = make_schedule("dpm++", 19, 12.002)
    index = schedule.timesteps.index(875.0)
    assert schedule.sigmas[index] > 0.87501
    assert split(schedule, 0.87501)[index] is Expert.LOW


@pytest.mark.parametrize(("boundary", "expert"), [(0.0, Expert.HIGH), (1.0, Expert.LOW)])
def test_the_ends_of_the_boundary_use_one_expert(boundary: float, expert: Expert) -> None:
    assert set(split(make_schedule("unipc", 20, 12.0), boundary)) == {expert}
