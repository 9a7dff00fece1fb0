"""Which of the two experts runs a step: the high-noise one while timestep >= boundary * 1000 (Wan 2.2, `wan/configs`).

Decided on host floats, and with the timestep that the model is shown: where the solver cuts it to an integer, the cut
value is compared, as in the reference. One solver runs through the switch and keeps its history.
"""

from ..specs import NUM_TRAIN_TIMESTEPS, Expert
from .schedule import Schedule


def expert_for(timestep: float, boundary: float) -> Expert:
    """The expert of a timestep (0 to 1000); boundary is a fraction in [0, 1], 0.875 for T2V-A14B."""
    return Expert.HIGH if timestep >= boundary * NUM_TRAIN_TIMESTEPS else Expert.LOW


def split(schedule: Schedule, boundary: float) -> tuple[Expert, ...]:
    """The expert of every step; the high-noise steps come first, because timesteps descend."""
    return tuple(expert_for(timestep, boundary) for timestep in schedule.timesteps)
