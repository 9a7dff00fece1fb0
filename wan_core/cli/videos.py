"""Several videos from one command: every prompt with every seed, one run after the other on the same weights.

They are not one batch, which would be no faster at the sizes of videos (`choices.BATCHED_GUIDANCE_TOKENS`) and would
show nothing before its end: each video is written when it is done, and each can be resumed by itself.
"""

import argparse
from itertools import product
from pathlib import Path

from ..errors import InputError

# Options that name a file of each video.
_OUTPUTS = ("out", "latent_out", "report", "contact_sheet")


def add_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--prompts", type=Path, metavar="FILE", help="a text file with a prompt on every line, in place of --prompt"
    )
    group.add_argument(
        "--seeds", type=int, nargs="+", metavar="SEED", help="in place of --seed: every prompt with each of them"
    )


def videos(arguments: argparse.Namespace) -> list[argparse.Namespace]:
    """The options of every single video; where there are several, the names of their files are numbered from 1.

    Raises `InputError` where there is no prompt, or two ways to name one.
    """
    prompts, seeds = _prompts(arguments), arguments.seeds or [arguments.seed]
    total = len(prompts) * len(seeds)
    return [
        _single(arguments, prompt, seed, f"-{number:0{len(str(total))}}" if total > 1 else "")
        for number, (prompt, seed) in enumerate(product(prompts, seeds), start=1)
    ]


def _single(arguments: argparse.Namespace, prompt: str, seed: int, number: str) -> argparse.Namespace:
    options = vars(arguments) | {"prompt": prompt, "seed": seed, "prompts": None, "seeds": None}
    named = {name: path.with_stem(path.stem + number) for name in _OUTPUTS if (path := options[name]) is not None}
    return argparse.Namespace(**(options | named))


def _prompts(arguments: argparse.Namespace) -> list[str]:
    if arguments.prompts is None:
        if arguments.prompt is None:
            raise InputError(
                "--prompt is missing, expected --prompt TEXT, --prompts FILE, or --resume FILE for a run that did not "
                "end"
            )
        return [arguments.prompt]
    if arguments.prompt is not None:
        raise InputError("--prompt and --prompts were both given, expected one or the other")
    try:
        lines = arguments.prompts.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts {str(arguments.prompts)!r} cannot be read as text: {error}") from error
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise InputError(f"--prompts {str(arguments.prompts)!r} has no line with a prompt")
    return prompts
