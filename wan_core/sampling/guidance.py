"""Classifier-free guidance (arXiv:2207.12598): uncond + scale * (cond - uncond), in float32.

Both predictions come from one forward with the batch doubled, from two forwards one after the other, or from two that
take turns block by block, each on a CUDA stream of its own, so that one fills what the other leaves idle. The numbers
are the same up to the order of additions inside the kernels. At scale 1 the unconditional prediction cancels and is not
computed. The context of the prompts is the velocity's own business: it is only joined here.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import torch
from einops import repeat
from torch import Tensor

if TYPE_CHECKING:
    from ..models.transformer import TextContext

Execution = Literal["batched", "sequential", "two-stream"]
# (latent (B, C, T, H, W), timestep (B,) or (B, L), context of B prompts) -> velocity (B, C, T, H, W)
Velocity = Callable[[Tensor, Tensor, "TextContext"], Tensor]


def combine(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """The guided velocity, float32, for predictions of any float dtype."""
    uncond = uncond.float()
    return uncond + scale * (cond.float() - uncond)


class Passes(Protocol):
    """A velocity that can also be computed block by block (`models.transformer.WanTransformer`)."""

    def __call__(self, latent: Tensor, timestep: Tensor, context: "TextContext") -> Tensor: ...

    def in_turns(self, latent: Tensor, timestep: Tensor, context: "TextContext") -> Iterator[Tensor]:
        """Pauses before the first block and after each; what comes last is the velocity."""


class GuidedVelocity:
    """A velocity bound to a prompt and its opposite; made once per run and expert, since joining contexts costs memory.

    positive, negative: contexts of B prompts each. Without a negative one only scale 1 can be asked for.
    execution: "batched" runs B positive and B negative samples as one batch, "sequential" one after the other, and
    "two-stream" both at once; the last needs `Passes`.
    """

    def __init__(
        self,
        velocity: Velocity | Passes,
        positive: "TextContext",
        negative: "TextContext | None",
        *,
        execution: Execution,
    ) -> None:
        assert execution in get_args(Execution), execution
        self._velocity = velocity
        self._positive = positive
        self._negative = negative
        self._joined: TextContext | None = None
        self._is_two_stream = execution == "two-stream"
        self._beside: torch.cuda.Stream | None = None
        if execution == "batched" and negative is not None:
            self._joined, self._negative = positive.concatenate(negative), None

    def num_forwards(self, scale: float) -> int:
        """How often a call at this scale runs the transformer."""
        return 1 if scale == 1.0 or self._joined is not None else 2

    def __call__(self, latent: Tensor, timestep: Tensor, scale: float) -> Tensor:
        """Velocity (B, C, T, H, W) float32 for a latent (B, C, T, H, W) and timesteps (B,) or (B, L)."""
        if scale == 1.0:
            return self._velocity(latent, timestep, self._positive).float()
        if self._joined is not None:
            both = self._velocity(_twice(latent), _twice(timestep), self._joined)
            cond, uncond = both.chunk(2)
        elif self._is_two_stream:
            cond, uncond = self._side_by_side(latent, timestep)
        else:
            assert self._negative is not None, f"guidance {scale} without a negative context"
            cond = self._velocity(latent, timestep, self._positive)
            uncond = self._velocity(latent, timestep, self._negative)
        return combine(uncond, cond, scale)

    def _side_by_side(self, latent: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Both velocities, (conditional, unconditional); the second runs on a stream of its own where there are any."""
        assert self._negative is not None, "guidance without a negative context"
        cond_turns = self._velocity.in_turns(latent, timestep, self._positive)
        uncond_turns = self._velocity.in_turns(latent, timestep, self._negative)
        # What both share and the first to need it makes (the tables of the rotation) is made before the streams part.
        cond = next(cond_turns)
        beside = self._stream_beside(latent)
        with torch.cuda.stream(beside):
            uncond = next(uncond_turns)
        for turn in cond_turns:
            cond = turn
            with torch.cuda.stream(beside):
                uncond = next(uncond_turns)
        if beside is not None:
            here = torch.cuda.current_stream(latent.device)
            here.wait_stream(beside)
            uncond.record_stream(here)
        return cond, uncond

    def _stream_beside(self, latent: Tensor) -> "torch.cuda.Stream | None":
        """The second stream, up to date with the current one; `None` on a CPU, where turns are taken all the same."""
        if not latent.is_cuda:
            return None
        if self._beside is None:
            self._beside = torch.cuda.Stream(latent.device)
        self._beside.wait_stream(torch.cuda.current_stream(latent.device))
        return self._beside


class PartByPart:
    """The guided velocity of a batch, some of its videos at a time where all at once would not fit.

    Every video gets what it would get in the whole batch, up to the order of additions inside the kernels.
    """

    def __init__(
        self,
        velocity: Velocity | Passes,
        positive: "TextContext",
        negative: "TextContext | None",
        *,
        execution: Execution,
        at_once: int,
    ) -> None:
        self._at_once = at_once
        self._parts = []
        for start in range(0, positive.batch, at_once):
            some = positive.videos(start, start + at_once)
            opposite = None if negative is None else negative.videos(start, start + at_once)
            self._parts.append(GuidedVelocity(velocity, some, opposite, execution=execution))

    def num_forwards(self, scale: float) -> int:
        """How often a call at this scale runs the transformer."""
        return sum(part.num_forwards(scale) for part in self._parts)

    def __call__(self, latent: Tensor, timestep: Tensor, scale: float) -> Tensor:
        """Velocity (B, C, T, H, W) float32 for a latent (B, C, T, H, W) and timesteps (B,) or (B, L)."""
        if len(self._parts) == 1:
            return self._parts[0](latent, timestep, scale)
        parts = zip(self._parts, latent.split(self._at_once), timestep.split(self._at_once), strict=True)
        return torch.cat([part(some, at, scale) for part, some, at in parts])


def _twice(tensor: Tensor) -> Tensor:
    return repeat(tensor, "B ... -> (passes B) ...", passes=2)
