"""Classifier-free guidance (arXiv:2207.12598): uncond + scale * (cond - uncond), in float32.

Both predictions come from one forward with the batch doubled, or from two forwards one after the other; the numbers are
the same up to the order of additions inside the kernels. At scale 1 the unconditional prediction cancels and is not
computed. The context of the prompts is the velocity's own business: it is only joined here.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from einops import repeat
from torch import Tensor

if TYPE_CHECKING:
    from ..models.transformer import TextContext

# (latent (B, C, T, H, W), timestep (B,) or (B, L), context of B prompts) -> velocity (B, C, T, H, W)
Velocity = Callable[[Tensor, Tensor, "TextContext"], Tensor]


def combine(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """The guided velocity, float32, for predictions of any float dtype."""
    uncond = uncond.float()
    return uncond + scale * (cond.float() - uncond)


class GuidedVelocity:
    """A velocity bound to a prompt and its opposite; made once per run and expert, since joining contexts costs memory.

    positive, negative: contexts of B prompts each. Without a negative one only scale 1 can be asked for.
    execution: "batched" runs B positive and B negative samples as one batch, "sequential" one after the other.
    """

    def __init__(
        self,
        velocity: Velocity,
        positive: "TextContext",
        negative: "TextContext | None",
        *,
        execution: Literal["batched", "sequential"],
    ) -> None:
        assert execution in ("batched", "sequential"), execution
        self._velocity = velocity
        self._positive = positive
        self._negative = negative
        self._joined: TextContext | None = None
        if execution == "batched" and negative is not None:
            self._joined, self._negative = positive.concatenate(negative), None

    def __call__(self, latent: Tensor, timestep: Tensor, scale: float) -> Tensor:
        """Velocity (B, C, T, H, W) float32 for a latent (B, C, T, H, W) and timesteps (B,) or (B, L)."""
        if scale == 1.0:
            return self._velocity(latent, timestep, self._positive).float()
        if self._joined is not None:
            both = self._velocity(_twice(latent), _twice(timestep), self._joined)
            cond, uncond = both.chunk(2)
        else:
            assert self._negative is not None, f"guidance {scale} without a negative context"
            cond = self._velocity(latent, timestep, self._positive)
            uncond = self._velocity(latent, timestep, self._negative)
        return combine(uncond, cond, scale)


def _twice(tensor: Tensor) -> Tensor:
    return repeat(tensor, "B ... -> (passes B) ...", passes=2)
