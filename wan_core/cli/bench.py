"""`bench`: one profile against others, and against other people's code, in one run on this machine."""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..bench.ceilings import measure_ceilings
from ..bench.chart import draw_chart, why_no_chart
from ..bench.choose import check_names, contestant, own
from ..bench.contest import Conduct, Contest
from ..bench.machine import describe
from ..bench.prompts import vocabulary_size
from ..bench.result import Result
from ..bench.table import to_text
from ..bench.task import PARTS, TINY_TEXT_ENCODER, TINY_TRANSFORMER, TINY_VAE, Candidate, Part, Task
from ..errors import InputError, UnsupportedError
from ..files import check_writable, replacing
from ..hardware import Hardware
from ..profiles import check_choice
from ..recipes import VideoSize
from . import options

_SIZE, _TINY_SIZE = "1280x720x81", "64x64x5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_profile_options(parser)
    group = parser.add_argument_group("against whom (repeatable)")
    group.add_argument(
        "--against", action="append", default=[], metavar="WHOM",
        help="another profile (exact, or auto:attention.backend=cudnn,...), reference[+bf16]=DIR for a checkout of "
        "Wan-Video/Wan2.2, comfyui[+cudnn][+compile]=DIR, diffusers[+cudnn][+compile]",
    )  # fmt: skip
    group = parser.add_argument_group("what is measured")
    group.add_argument("--what", default="step", metavar="LIST", help=f"of {','.join(PARTS)} (default %(default)s)")
    group.add_argument("--size", metavar="WxHxF", help=f"of the video (default {_SIZE})")
    group.add_argument("--layers", type=_positive, metavar="N", help="fewer layers, for a quick look")
    group.add_argument("--tiny", action="store_true", help=f"toy models at {_TINY_SIZE}: seconds on a CPU")
    group.add_argument(
        "--steps", type=_positive, default=3, metavar="N", help="timed runs of each (default %(default)s)"
    )
    group.add_argument("--no-breakdown", action="store_true", help="do not profile a run of each")
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, metavar="FILE.json", help="everything; kept up to date during the run")
    group.add_argument("--chart", type=Path, metavar="FILE.png")
    group.add_argument(
        "--trace", type=Path, metavar="FILE.json",
        help="profiler trace of a step; of others than the first in files with their names",
    )  # fmt: skip
    group.add_argument("--memory", type=Path, metavar="FILE.json", help="memory snapshot of the first one's step")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables, write the files; returns 1 where the first contestant could not be measured."""
    candidates = [own(options.profile(arguments), arguments.settings), *map(contestant, arguments.against)]
    check_names(candidates)
    parts = _parts(arguments.what)
    hardware = Hardware.detect(arguments.device)
    if hardware.is_cuda:
        torch.cuda.set_device(hardware.device)
    task = _task(arguments, hardware.device, parts)
    _check_outputs(arguments, hardware)
    result = Result(
        task=task, command=_command(arguments), machine=describe(hardware), ceilings=measure_ceilings(hardware)
    )
    for _ in _measure(result, candidates, parts, _conduct(arguments)):
        if arguments.out:
            with replacing(arguments.out) as path:
                path.write_text(json.dumps(result.to_dict(), indent=2), encoding="utf-8")
    print(to_text(result))
    if arguments.chart and why_no_chart() is None:
        draw_chart(result, arguments.chart)
    return 1 if any(part.rows[0].median is None for part in result.parts.values()) else 0


def _measure(
    result: Result, candidates: Sequence[Candidate], parts: Sequence[Part], conduct: Conduct
) -> Iterator[None]:
    """Part by part; comes back whenever there is something new in the result."""
    for part in parts:
        # A profile is divided by the places of the transformer.
        contest = Contest(part, result.task, conduct if part == "step" else conduct.without_profile(), _say)
        result.parts[part] = contest.result
        yield from contest.run(candidates)


def _parts(text: str) -> list[Part]:
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        check_choice("--what", part, PARTS)
    return [part for part in PARTS if part in parts]


def _task(arguments: argparse.Namespace, device: str, parts: Sequence[Part]) -> Task:
    size = _size(arguments.size or (_TINY_SIZE if arguments.tiny else _SIZE))
    task = Task(size=size, device=device)
    if arguments.tiny:
        task = replace(task, transformer=TINY_TRANSFORMER, vae=TINY_VAE, text=TINY_TEXT_ENCODER)
    if arguments.layers:
        task = replace(task, transformer=replace(task.transformer, num_layers=arguments.layers))
    if "text" in parts:
        task = replace(task, text=replace(task.text, vocab_size=vocabulary_size()))
    return task


def _size(text: str) -> VideoSize:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if match is None:
        raise InputError(f"--size is {text!r}, expected width, height and frames such as {_SIZE}")
    width, height, num_frames = map(int, match.groups())
    return VideoSize(width=width, height=height, num_frames=num_frames)


def _conduct(arguments: argparse.Namespace) -> Conduct:
    return Conduct(
        repeats=arguments.steps,
        breakdown=not arguments.no_breakdown,
        trace=arguments.trace,
        memory=arguments.memory,
    )


def _check_outputs(arguments: argparse.Namespace, hardware: Hardware) -> None:
    """Whatever is wrong with an output is said before the first run."""
    for path, suffix in (
        (arguments.out, ".json"), (arguments.chart, ".png"), (arguments.trace, ".json"), (arguments.memory, ".json"),
    ):  # fmt: skip
        if path is not None:
            check_writable(path, suffix)
    if arguments.memory and not hardware.is_cuda:
        raise UnsupportedError(f"--memory needs an NVIDIA GPU, this is {hardware.device}")
    if arguments.chart and (reason := why_no_chart()):
        _say(f"no chart will be drawn: {reason}")


def _command(arguments: argparse.Namespace) -> str:
    """What was asked, for the result; folders by their names only, since results are shared."""
    words = ["python", "-m", "wan_core", "bench", "--profile", arguments.profile]
    for option, values in (("--set", arguments.settings), ("--against", map(_without_path, arguments.against))):
        for value in values:
            words += [option, value]
    words += ["--what", arguments.what, "--size", arguments.size or "default", "--steps", str(arguments.steps)]
    words += ["--layers", str(arguments.layers)] if arguments.layers else []
    words += [option for option in ("--tiny", "--no-breakdown") if getattr(arguments, option[2:].replace("-", "_"))]
    return shlex.join(words)


def _without_path(against: str) -> str:
    name, equals, folder = against.partition("=")
    return against if ":" in name or not equals else f"{name}={Path(folder).name}"


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is too few, expected at least 1")
    return value


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
