"""Pictures of the shipped model that the product must keep making: prompts, seeds, and their stored latents.

    python -m tests.trained.pictures        # renew tests/trained/latents after a change of the weights, and only then

A stored latent is what the profile `reference` makes on a CPU: float32, PyTorch's math attention.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

import quickstart
from miniature.judge import Reading
from wan_core.checkpoint.experts import ExpertPair
from wan_core.checkpoint.find import find_model
from wan_core.pipeline import WanPipeline
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.report import Report
from wan_core.sample import SampleResult

MODEL = Path(__file__).parents[2] / "models" / "wan_velocity_mini"
LATENTS = Path(__file__).parent / "latents"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One video: the words, what they say, and how it is made."""

    name: str
    prompt: str
    says: Reading
    seed: int
    recipe: str
    size: VideoSize

    @property
    def request(self) -> SampleRequest:
        return SampleRequest(recipe=recipe(self.recipe), seed=self.seed)

    def stored(self) -> Tensor:
        """The latent of the reference profile, (1, 16, T, H, W) in raw VAE space."""
        return load_file(LATENTS / f"{self.name}.safetensors")["samples"]


_SAYS = (
    Reading(colour="red", shape="circle", count=1, motion="right"),
    Reading(colour="green", shape="square", count=2, motion="down"),
    Reading(colour="cyan", shape="star", count=3, motion="right"),
)
_WIDTH, _HEIGHT, _FRAMES = quickstart.SIZE.values()
# What a newcomer is shown first.
DEMO = tuple(
    Picture(
        name=f"demo_{number}",
        prompt=prompt,
        says=says,
        seed=0,
        recipe="preview",
        size=VideoSize(width=_WIDTH, height=_HEIGHT, num_frames=_FRAMES),
    )
    for number, (prompt, says) in enumerate(zip(quickstart.PROMPTS, _SAYS, strict=True), start=1)
)
SHORT = Picture(
    name="short",
    prompt=quickstart.PROMPTS[1],
    says=_SAYS[1],
    seed=2,
    recipe="preview",
    size=VideoSize(width=_WIDTH, height=_HEIGHT, num_frames=17),
)


def make(
    picture: Picture,
    profile: str,
    *,
    boundary: float | None = None,
    experts: Callable[[ExpertPair], ExpertPair] | None = None,
) -> tuple[WanPipeline, SampleResult]:
    """The video's latent as a profile makes it here; with another boundary or other experts where they are given."""
    request = picture.request
    if boundary is not None:
        request = replace(request, recipe=request.recipe.with_changes(boundary=boundary))
    pipeline = WanPipeline(find_model(MODEL), preset(profile))
    if experts is not None:
        pipeline.pair = experts(pipeline.pair)
    plan = pipeline.plan(request, picture.size)
    conditioning = pipeline.encode(plan, picture.prompt, report=Report())
    return pipeline, pipeline.sample(plan, conditioning)


def main() -> None:
    LATENTS.mkdir(exist_ok=True)
    for picture in (*DEMO, SHORT):
        _, result = make(picture, "reference")
        save_file({"samples": result.latent}, LATENTS / f"{picture.name}.safetensors")


if __name__ == "__main__":
    main()
