"""Options that several verbs share, and what they stand for: the files, the profile, the request."""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..checkpoint.find import ModelFiles, find_model
from ..checkpoint.lora_pair import LoraChoice, choose_lora, lora_for
from ..errors import InputError
from ..profiles import PRESETS, OptimizationProfile, preset
from ..recipes import RECIPES, SOLVERS, SampleRequest, VideoSize, recipe
from ..specs import T2V_A14B, Expert, TransformerSpec

_FILES = ("high", "low", "text_encoder", "vae")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The model: a folder, or its files one by one."""
    group = parser.add_argument_group("model: a folder, or its four files")
    group.add_argument("--model", type=Path, metavar="DIR", help="folder in the official or the ComfyUI layout")
    group.add_argument("--high", type=Path, metavar="FILE", help="high-noise expert: a file or a sharded folder")
    group.add_argument("--low", type=Path, metavar="FILE", help="low-noise expert: a file or a sharded folder")
    group.add_argument("--text-encoder", type=Path, metavar="FILE", help="UMT5 encoder")
    group.add_argument("--tokenizer", type=Path, metavar="PATH", help="tokenizer folder, where the encoder has none")
    group.add_argument("--vae", type=Path, metavar="FILE", help="Wan 2.1 VAE")


def add_lora_options(parser: argparse.ArgumentParser) -> None:
    """LoRAs, in the order in which they are given."""
    group = parser.add_argument_group("LoRAs (repeatable; strength 1 unless given)")
    for option, summary in (
        ("--lora", "on both experts; the file for the other expert is found by name"),
        ("--lora-high", "on the high-noise expert only"),
        ("--lora-low", "on the low-noise expert only"),
    ):
        # One list for all three, because their order counts.
        group.add_argument(
            option, action="append", default=[], dest="loras", metavar="FILE[:STRENGTH]", help=summary,
            type=partial(LoraOption, option),
        )  # fmt: skip


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """What to make, apart from the prompts."""
    group = parser.add_argument_group("video")
    group.add_argument("--width", type=int, default=1280, help="multiple of 16 (default %(default)s)")
    group.add_argument("--height", type=int, default=720, help="multiple of 16 (default %(default)s)")
    group.add_argument("--frames", type=int, default=T2V_A14B.num_frames, help="4n + 1 (default %(default)s)")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument(
        "--noise-device", choices=("cpu", "gpu"), default="gpu",
        help="where the noise is drawn: cpu as ComfyUI does, gpu (the device that samples) as the reference does",
    )  # fmt: skip
    group = parser.add_argument_group("recipe: its own values unless given here")
    group.add_argument("--recipe", default="official", metavar="NAME", help=", ".join(RECIPES))
    group.add_argument("--steps", type=int)
    group.add_argument("--shift", type=float)
    group.add_argument("--guidance-high", type=float)
    group.add_argument("--guidance-low", type=float)
    group.add_argument("--boundary", type=float, help="fraction of the noise schedule at which the experts switch")
    group.add_argument("--solver", choices=SOLVERS)


def add_profile_options(parser: argparse.ArgumentParser) -> None:
    """How to run."""
    group = parser.add_argument_group("profile")
    group.add_argument("--profile", default="auto", metavar="NAME", help=", ".join(PRESETS))
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="change one setting of the profile, for example attention.backend=flash (repeatable)",
    )  # fmt: skip
    group.add_argument("--device", help="torch device (default: the first NVIDIA GPU, else cpu)")


def model_files(arguments: argparse.Namespace) -> ModelFiles:
    """The files that the options name; raises `InputError` where they name too few, or both a folder and files."""
    given = [name for name in _FILES if getattr(arguments, name)]
    if arguments.model:
        if given:
            raise InputError(f"--model and --{given[0].replace('_', '-')} were both given, expected one or the other")
        return find_model(arguments.model)
    if missing := [name for name in _FILES if name not in given]:
        raise InputError(
            f"--{missing[0].replace('_', '-')} is missing, expected --model DIR or all of --high --low --text-encoder "
            "--vae"
        )
    return ModelFiles(
        high=arguments.high,
        low=arguments.low,
        text_encoder=arguments.text_encoder,
        tokenizer=arguments.tokenizer,
        vae=arguments.vae,
    )


def loras(arguments: argparse.Namespace, spec: TransformerSpec) -> tuple[LoraChoice, ...]:
    """The LoRAs, opened for experts of these dimensions."""
    return tuple(option.open(spec) for option in arguments.loras)


@dataclass(frozen=True, slots=True)
class LoraOption:
    """One of the three options, and what was given with it."""

    option: str
    given: str

    def open(self, spec: TransformerSpec) -> LoraChoice:
        file, strength = self._split()
        if self.option == "--lora":
            return choose_lora(file, spec, strength_high=strength, strength_low=strength)
        return lora_for(Expert(self.option.removeprefix("--lora-")), file, spec, strength)

    def absolute(self) -> "LoraOption":
        """The same from wherever the command is given."""
        file, strength = self._split()
        return LoraOption(self.option, f"{file.absolute()}:{strength:g}")

    def _split(self) -> tuple[Path, float]:
        # A drive letter has a colon too, so what follows the last one must be a number.
        file, _, tail = self.given.rpartition(":")
        try:
            return (Path(file), float(tail)) if file else (Path(tail), 1.0)
        except ValueError:
            return Path(self.given), 1.0

    def __str__(self) -> str:
        return f"{self.option} {Path(self.given).name}"


def profile(arguments: argparse.Namespace) -> OptimizationProfile:
    """The preset with the settings that were changed."""
    settings = {}
    for entry in arguments.settings:
        key, equals, value = entry.partition("=")
        if not equals:
            raise InputError(f"--set {entry!r} has no value, expected KEY=VALUE")
        settings[key] = value
    return preset(arguments.profile).with_settings(settings)


def request(arguments: argparse.Namespace) -> tuple[SampleRequest, VideoSize]:
    """The request and the size of the video; raises `InputError` for the first value that is out of range."""
    chosen = recipe(arguments.recipe).with_changes(
        num_steps=arguments.steps,
        shift=arguments.shift,
        guidance_high=arguments.guidance_high,
        guidance_low=arguments.guidance_low,
        boundary=arguments.boundary,
        solver=arguments.solver,
    )
    noise_device = "cpu" if arguments.noise_device == "cpu" else "device"
    size = VideoSize(width=arguments.width, height=arguments.height, num_frames=arguments.frames)
    return SampleRequest(recipe=chosen, seed=arguments.seed, noise_device=noise_device), size
