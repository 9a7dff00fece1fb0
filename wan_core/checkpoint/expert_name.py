"""Which expert a checkpoint is, by what its folder, its name and its metadata say; its tensors cannot tell.

Names in the wild: `high_noise_model/`, `wan2.2_t2v_high_noise_14B_fp16`, `Wan2_2-T2V-A14B-HIGH_fp8_e4m3fn_scaled_KJ`,
`Wan2.2-T2V-A14B-HighNoise-Q4_K_M`, `wan22_t2v_h`. Words are compared whole, so that `highres` or `lowvram` say nothing.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..specs import Expert
from .read import Checkpoint
from .sentences import quoted

METADATA_KEY = "wan_velocity.expert"

# "HighNoise14B_fp16" -> High, Noise, 14, B, fp, 16
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_WORDS = {"high": Expert.HIGH, "low": Expert.LOW, "highnoise": Expert.HIGH, "lownoise": Expert.LOW}
# What follows "high" or "low" where they speak of something else than noise.
_OTHER_SENSES = frozenset(
    "bit bits detail details fps mem memory motion precision quality ram rank res resolution speed step steps vram".split()
)
# A lone h or l between separators: only trusted in a pair of names that are otherwise equal.
_LETTER = re.compile(r"(?<![A-Za-z0-9])[hHlL](?![A-Za-z0-9])")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Which expert, and what says so, as the subject of a sentence."""

    expert: Expert
    source: str


def expert_of(checkpoint: Checkpoint) -> Evidence | None:
    """The expert that a checkpoint says it is; raises `CheckpointError` where its name and its metadata disagree."""
    named, stated = expert_by_name(checkpoint.path), _by_metadata(checkpoint)
    if named and stated and named.expert is not stated.expert:
        raise CheckpointError(
            f"{checkpoint.label} contradicts itself: {named.source} says {named.expert.value} noise, {stated.source} "
            f"says {stated.expert.value} noise; rename it if it is the {stated.expert.value}-noise expert"
        )
    return named or stated


def expert_by_name(path: Path) -> Evidence | None:
    """The expert that the name of a file says it is, else the name of its folder."""
    path = path.absolute()
    name = path.name if path.is_dir() else path.name.removesuffix(".index.json").removesuffix(".safetensors")
    if expert := _spoken(name):
        return Evidence(expert, "its name")
    if not path.is_dir() and (expert := _spoken(path.parent.name)):
        return Evidence(expert, f"its folder {quoted(path.parent.name)}")
    return None


def experts_by_letter(first: Path, second: Path) -> tuple[Expert, Expert] | None:
    """The experts of two files whose names differ in nothing but a lone h and a lone l."""
    letters = _LETTER.findall(first.stem), _LETTER.findall(second.stem)
    if _LETTER.sub("*", first.stem) != _LETTER.sub("*", second.stem):
        return None
    differing = [(a.lower(), b.lower()) for a, b in zip(*letters, strict=True) if a.lower() != b.lower()]
    if differing == [("h", "l")]:
        return Expert.HIGH, Expert.LOW
    return (Expert.LOW, Expert.HIGH) if differing == [("l", "h")] else None


def _by_metadata(checkpoint: Checkpoint) -> Evidence | None:
    stated = checkpoint.metadata.get(METADATA_KEY)
    if stated is None:
        return None
    if stated not in (Expert.HIGH.value, Expert.LOW.value):
        raise CheckpointError(
            f"the metadata of {checkpoint.label} say {METADATA_KEY} {quoted(stated)}, expected 'high' or 'low'"
        )
    return Evidence(Expert(stated), "its metadata")


def _spoken(name: str) -> Expert | None:
    """The one expert that a name speaks of; `None` for none or for both."""
    words = [word.lower() for word in _WORD.findall(name)]
    following = [*words[1:], ""]
    noise = {_WORDS[word] for word, after in zip(words, following, strict=True) if word in _WORDS and after == "noise"}
    bare = {
        _WORDS[word] for word, after in zip(words, following, strict=True) if word in _WORDS and after not in _OTHER_SENSES
    }
    found = noise or bare
    return found.pop() if len(found) == 1 else None
