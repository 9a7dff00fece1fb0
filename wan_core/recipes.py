"""What to make: recipes (steps, shift, solver, guidance, boundary) with their provenance, and the request of one run.

A recipe never says how to run (that is a profile, `profiles.py`). The two share no field.
"""

from dataclasses import dataclass, replace
from math import isfinite
from types import MappingProxyType
from typing import Literal, get_args

from .errors import InputError
from .profiles import Checked, changed_name, check_choice
from .specs import Expert, latent_frames

SolverName = Literal["unipc", "dpm++", "euler"]
SOLVERS: tuple[str, ...] = get_args(SolverName)

SIZE_STEP = 16
FRAME_STEP = 4
MAX_SIDE = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Checked):
    """Settings of the sampler. `boundary` is a fraction in [0, 1]; guidance 1 means no unconditional pass."""

    name: str
    num_steps: int
    shift: float
    solver: SolverName
    guidance_high: float
    guidance_low: float
    boundary: float
    provenance: str

    def __post_init__(self) -> None:
        # Zero-argument super() does not survive dataclass(slots=True), which makes the class anew.
        Checked.__post_init__(self)
        if self.num_steps < 1:
            raise InputError(f"steps is {self.num_steps}, expected at least 1")
        if not 0.0 <= self.boundary <= 1.0:
            near = 1.0 if self.boundary > 1.0 else 0.0
            raise InputError(f"boundary is {self.boundary}, expected a fraction from 0 to 1; the nearest is {near:g}")
        if not (self.shift > 0.0 and isfinite(self.shift)):
            raise InputError(f"shift is {self.shift}, expected a number above 0 (official: 12)")
        for expert in Expert:
            if not isfinite(self.guidance(expert)):
                raise InputError(f"{expert.value}-noise guidance is {self.guidance(expert)}, expected a finite number")

    def guidance(self, expert: Expert) -> float:
        return self.guidance_high if expert is Expert.HIGH else self.guidance_low

    def with_changes(self, **changes: object) -> "Recipe":
        """A copy with the given fields replaced; `None` keeps the recipe's own value."""
        given = {name: value for name, value in changes.items() if value is not None and value != getattr(self, name)}
        return replace(self, **given, name=changed_name(self.name)) if given else self


def _recipe(name: str, num_steps: int, shift: float, provenance: str) -> Recipe:
    return Recipe(
        name=name, num_steps=num_steps, shift=shift, solver="unipc", guidance_high=4.0, guidance_low=3.0,
        boundary=0.875, provenance=provenance,
    )  # fmt: skip


_OWN = "this project's choice, not the reference's"
RECIPES = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            _recipe("official", 40, 12.0, "Wan-Video/Wan2.2, wan/configs/wan_t2v_A14B.py"),
            _recipe("official-20", 20, 12.0, "the official recipe at half its steps; " + _OWN),
            _recipe("draft", 8, 5.0, "eight steps, four for each expert; " + _OWN),
            _recipe("preview", 12, 8.0, "for judging composition and motion; " + _OWN),
            _recipe("production", 30, 12.0, "the official schedule at three quarters of its steps; " + _OWN),
            _recipe("cinema", 50, 12.0, "the official schedule at 50 steps; " + _OWN),
            Recipe(
                name="lightning-4",
                num_steps=4,
                shift=5.0,
                solver="euler",
                guidance_high=1.0,
                guidance_low=1.0,
                boundary=0.875,
                provenance="lightx2v/Wan2.2-Lightning; needs its pair of 4-step LoRAs",
            ),
        )
    }
)


def recipe(name: str) -> Recipe:
    """The recipe called `name`; raises `InputError` with the nearest name otherwise."""
    check_choice("recipe", name, tuple(RECIPES))
    return RECIPES[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSize:
    """Size of a video: width and height in pixels (multiples of 16), `num_frames` = 4n + 1."""

    width: int
    height: int
    num_frames: int

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("height", self.height)):
            if value < SIZE_STEP or value > MAX_SIDE or value % SIZE_STEP:
                near = min(max(round(value / SIZE_STEP), 1) * SIZE_STEP, MAX_SIDE)
                raise InputError(
                    f"{name} is {value}, expected a multiple of {SIZE_STEP} up to {MAX_SIDE}; the nearest is {near}"
                )
        if self.num_frames < 1 or (self.num_frames - 1) % FRAME_STEP:
            near = max(round((self.num_frames - 1) / FRAME_STEP), 0) * FRAME_STEP + 1
            raise InputError(f"frames is {self.num_frames}, expected 4n + 1; the nearest is {near}")

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """(T, H, W) of the latent, for the Wan 2.1 VAE's stride (4, 8, 8)."""
        return latent_frames(self.num_frames), self.height // 8, self.width // 8

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.num_frames}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest(Checked):
    """One run of the sampler, apart from its conditioning and its latent.

    seed: noise seed, 0 to 2**64 - 1.
    noise_device: where the noise is drawn: "device" as the reference does, "cpu" as ComfyUI does.
    denoise: fraction of the schedule that is run on a given latent, in (0, 1].
    start_step, end_step: half-open range of steps to run, for chained samplers; `None` means to the end.
    add_noise: "off" where the latent already carries the noise of its step (second of two chained samplers).
    leftover_noise: "keep" returns the latent at the noise level of `end_step`; "remove" denoises it fully.
    sigmas: noise levels that replace the recipe's schedule: descending, in [0, 1], one more than the steps.
    """

    recipe: Recipe
    seed: int = 0
    noise_device: Literal["device", "cpu"] = "device"
    denoise: float = 1.0
    start_step: int = 0
    end_step: int | None = None
    add_noise: Literal["on", "off"] = "on"
    leftover_noise: Literal["keep", "remove"] = "remove"
    sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if not 0.0 < self.denoise <= 1.0:
            raise InputError(f"denoise is {self.denoise}, expected a fraction above 0 and up to 1")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"seed is {self.seed}, expected 0 to {2**64 - 1}")
        if self.start_step < 0 or (self.end_step is not None and self.end_step <= self.start_step):
            raise InputError(
                f"steps {self.start_step} to {self.end_step} are an empty range; expected 0 <= start step < end step"
            )
        if self.sigmas is not None:
            levels = self.sigmas
            descending = all(a > b for a, b in zip(levels, levels[1:], strict=False))
            if len(levels) < 2 or not descending or levels[0] > 1.0 or levels[-1] < 0.0:
                shown = ", ".join(f"{level:g}" for level in levels[:8]) + (", ..." if len(levels) > 8 else "")
                raise InputError(f"sigmas is ({shown}), expected two or more noise levels, descending, from 1 to 0")


def disagreements(chosen: Recipe) -> list[str]:
    """What does not fit together in a recipe, each with what to change. Empty when nothing does."""
    notes = []
    if chosen.num_steps <= 8 and max(chosen.guidance_high, chosen.guidance_low) <= 1.0 and chosen.shift > 6.0:
        notes.append(f"shift {chosen.shift:g} at {chosen.num_steps} distilled steps; the 4-step LoRAs expect shift 5")
    if chosen.num_steps <= 6 and max(chosen.guidance_high, chosen.guidance_low) > 1.0:
        notes.append(
            f"{chosen.num_steps} steps with guidance {chosen.guidance_high:g}/{chosen.guidance_low:g}: few steps need "
            "a distilled LoRA, and that needs guidance 1; use recipe lightning-4 or at least 8 steps"
        )
    if chosen.num_steps >= 16 and max(chosen.guidance_high, chosen.guidance_low) <= 1.0:
        notes.append(f"{chosen.num_steps} steps at guidance 1 ignore the negative prompt; the official guidance is 4/3")
    return notes
