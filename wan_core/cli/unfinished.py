"""Runs that did not end: where `generate` keeps their state, how it finds one again, and with which options it goes on.

The state lies beside the video under a name of its own, since it holds what may be hours of work; it goes when the
video is there. The same command finds it by itself; `--resume FILE` needs no other option, because the options are kept
with it, and those given again are for how to run and where to write. What is made cannot be changed in the middle.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path

from ..pipeline import RunPlan, WanPipeline
from ..recovery.identity import run_key
from ..recovery.journal import Journal, StateFile
from ..recovery.reopen import find_saved, reopen
from ..recovery.state import RunState
from ..report import Report
from ..sample import Conditioning
from .options import LoraOption

# What belongs to the command and not to the run.
_NOT_KEPT = frozenset({"verb", "resume"})


def options_as_words(arguments: Namespace) -> dict[str, object]:
    """The options as JSON, with paths that hold from everywhere."""
    return {name: _to_words(value) for name, value in vars(arguments).items() if name not in _NOT_KEPT}


def resumed_options(arguments: Namespace, defaults: Namespace, saved: RunState) -> Namespace:
    """The options of the saved run, and in place of them those that were given now."""
    options = vars(arguments) | {name: _from_words(words) for name, words in saved.facts.driver.items()}
    given = {name: value for name, value in vars(arguments).items() if value != getattr(defaults, name, None)}
    return Namespace(**(options | given))


def open_journal(
    pipeline: WanPipeline,
    plan: RunPlan,
    conditioning: Conditioning,
    arguments: Namespace,
    report: Report,
    saved: RunState | None,
) -> Journal:
    """The journal of this run, at the position of the saved one; without it, of one that this command left before.

    Raises `InputError` in one sentence where the saved run is another one.
    """
    facts = pipeline.facts(plan, conditioning, driver=options_as_words(arguments))
    path = arguments.resume or _beside(arguments.out, run_key(facts, pipeline.profile))
    saved = saved or find_saved(path, report)
    file = StateFile(
        path=path,
        facts=facts,
        num_steps=plan.experts.schedule.num_steps,
        prompts={"positive": conditioning.positive, "negative": conditioning.negative},
        save_seconds=arguments.save_every,
    )
    journal = reopen(file, saved, report)
    if saved is not None:
        _say(f"going on with {path}: {saved.describe()}")
    return journal


@contextmanager
def kept(journal: Journal) -> Iterator[None]:
    """Say how to go on where the block fails or is stopped."""
    done = False
    try:
        yield
        done = True
    finally:
        if not done and journal.saved:
            steps = f"{journal.position.next_step} of {journal.file.num_steps} steps are saved"
            _say(f"{steps}; go on with the same command, or with: generate --resume {journal.saved}")


def _beside(out: Path, key: str) -> Path:
    return out.with_name(f"{out.stem}.{key[:8]}.unfinished.safetensors")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _to_words(value: object) -> object:
    if isinstance(value, Path):
        return {"path": str(value.absolute())}
    if isinstance(value, LoraOption):
        return {"lora": astuple(value.absolute())}
    return [_to_words(each) for each in value] if isinstance(value, list) else value


def _from_words(words: object) -> object:
    if isinstance(words, Mapping):
        return Path(words["path"]) if "path" in words else LoraOption(*words["lora"])
    return [_from_words(each) for each in words] if isinstance(words, list) else words
