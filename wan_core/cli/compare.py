"""`compare`: how far two videos or two latents are apart; past a given limit it says so and exits with 1."""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.read import open_checkpoint
from ..errors import InputError
from ..metrics import Comparison, compare_latents, compare_videos, table
from ..video import read_video

# Option -> (figure of a comparison, its name for people, which side of the limit fails).
_LIMITS = {
    "ceiling_mse": ("mse", "MSE", "above"),
    "floor_psnr": ("psnr", "PSNR", "below"),
    "floor_ssim": ("ssim", "SSIM", "below"),
    "ceiling_relative_error": ("relative_error", "relative error", "above"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = "a video, or a latent: .safetensors with a tensor `samples`"
    parser.add_argument("reference", type=Path, metavar="A", help=f"the reference: {kinds}")
    parser.add_argument("candidate", type=Path, metavar="B", help="what is compared with it; of the same kind and size")
    parser.add_argument(
        "--noise-floor", type=Path, metavar="C",
        help="a rerun of A, whose distance from A is printed beside: what differs less than that says nothing",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    group = parser.add_argument_group("limits: past one of them the exit code is 1")
    group.add_argument("--ceiling-mse", type=_finite, metavar="X", help="of values in 0 to 1 where it is a video")
    group.add_argument("--floor-psnr", type=_finite, metavar="DB", help="videos only")
    group.add_argument("--floor-ssim", type=_finite, metavar="X", help="videos only")
    group.add_argument("--ceiling-relative-error", type=_finite, metavar="X", help="Frobenius norm, relative to A's")


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison; returns 1 where it is past a limit."""
    others = [arguments.candidate, *([arguments.noise_floor] if arguments.noise_floor else [])]
    found = _compare(arguments.reference, others)
    failures = list(_failures(found[0], arguments))
    if arguments.json:
        floor = {"noise_floor": found[1].to_dict()} if arguments.noise_floor else {}
        print(json.dumps(found[0].to_dict() | floor | {"failures": failures}, indent=2, allow_nan=False))
    else:
        print(table(found, ("B against A", "rerun against A") if arguments.noise_floor else ()))
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _compare(reference: Path, others: Sequence[Path]) -> list[Comparison]:
    """Each of the other files against the reference."""
    kinds = {path: "latent" if path.suffix.lower() == ".safetensors" else "video" for path in (reference, *others)}
    for path in others:
        if kinds[path] != kinds[reference]:
            raise InputError(
                f"{str(reference)!r} is a {kinds[reference]} and {str(path)!r} a {kinds[path]}, expected two videos or "
                "two latents"
            )
    read, compare = (_latent, compare_latents) if kinds[reference] == "latent" else (_video, compare_videos)
    first, *rest = map(read, (reference, *others))
    return [compare(first, other) for other in rest]


def _video(path: Path) -> Tensor:
    return torch.from_numpy(read_video(path))


def _latent(path: Path) -> Tensor:
    return open_checkpoint(path).load("samples")


def _failures(comparison: Comparison, arguments: argparse.Namespace) -> Iterator[str]:
    """A sentence for every limit that is passed; `InputError` for a limit on what was not measured."""
    for option, (figure, name, failing) in _LIMITS.items():
        limit, value = getattr(arguments, option), getattr(comparison, figure)
        if limit is None:
            continue
        if value is None:
            raise InputError(
                f"--{option.replace('_', '-')} is given, but there is no {name}: {comparison.why_missing(figure)}"
            )
        if value > limit if failing == "above" else value < limit:
            kind = option.partition("_")[0]
            yield f"{name} is {value:.6g}, {failing} the {kind} of {limit:.6g}"


def _finite(text: str) -> float:
    # A limit of NaN would never be passed.
    if not math.isfinite(value := float(text)):
        raise argparse.ArgumentTypeError(f"{text} is no limit, expected a finite number")
    return value
