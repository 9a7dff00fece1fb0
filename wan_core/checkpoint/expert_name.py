"""Which expert a checkpoint is, by what its folder, its name and its metadata say; its tensors cannot tell.

Names in the wild: `high_noise_model/`, `wan2.2_t2v_high_noise_14B_fp16`, `Wan2_2-T2V-A14B-HIGH_fp8_e4m3fn_scaled_KJ`,
`Wan2.2-T2V-A14B-HighNoise-Q4_K_M`, `wan22_t2v_h`. Words are compared whole, so that `highres` or `lowvram` say nothing.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import CheckpointError
from ..specs import Expert
from .read import Checkpoint
from .sentences import quoted

METADATA_KEY = "wan_velocity.expert"

# "HighNoise14B_fp16" -> High, Noise, 14, B, fp, 16
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
# "highnoise", which no capital letter divides.
_JOINED = re.compile(r"(?<![a-z])(high|low)noise", re.IGNORECASE)
# What follows "high" or "low" where they speak of something else than noise.
_OTHER_SENSES = frozenset(
    "bit bits detail fps memory motion precision quality ram rank res resolution speed step steps vram".split()
)
# The folders of diffusers. `transformer` alone says nothing: models without experts have one too.
_DIFFUSERS = {"transformer": Expert.HIGH, "transformer_2": Expert.LOW}
# A lone h or l between separators: only trusted in a pair of names that are otherwise equal.
_LETTER = re.compile(r"(?<![A-Za-z0-9])[hHlL](?![A-Za-z0-9])")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Which expert, what says so, and that again as the subject of a sentence."""

    expert: Expert
    by: Literal["name", "folder", "metadata"]
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
    # Not resolved: the hub's cache links readable names to hashes.
    path = Path(os.path.abspath(path))
    if path.is_dir():
        expert = _by_folder(path)
        return Evidence(expert, "name", "its name") if expert else None
    if expert := _by_file(path.name.removesuffix(".safetensors")):
        return Evidence(expert, "name", "its name")
    expert = _by_folder(path.parent)
    return Evidence(expert, "folder", f"its folder {quoted(path.parent.name)}") if expert else None


def evidence_of_pair(first: Checkpoint, second: Checkpoint) -> tuple[Evidence | None, Evidence | None]:
    """What is known of each of two checkpoints that are given as a pair."""
    found = expert_of(first), expert_of(second)
    if first.path.absolute().parent == second.path.absolute().parent:
        # A folder speaks of all that is in it, so it cannot tell two of its files apart.
        found = tuple(None if evidence and evidence.by == "folder" else evidence for evidence in found)
    return found if any(found) else _by_letter(first.path, second.path)


def expert_in_pair(path: Path, other: Path) -> Expert | None:
    """The expert of `path` where two names differ in nothing but the experts that they speak of, else `None`."""
    if path.parent == other.parent and {path.name, other.name} == _DIFFUSERS.keys():
        return _DIFFUSERS[path.name]
    if _masked(path.name) == _masked(other.name):
        expert, others = (_by_file(name.removesuffix(".safetensors")) for name in (path.name, other.name))
        return expert if expert and others is expert.other else None
    by_letter, _ = _by_letter(path, other)
    return by_letter.expert if by_letter else None


def _by_letter(first: Path, second: Path) -> tuple[Evidence | None, Evidence | None]:
    """Two files whose names differ in nothing but a lone h and a lone l."""
    letters = _LETTER.findall(first.stem), _LETTER.findall(second.stem)
    if _LETTER.sub("*", first.stem) != _LETTER.sub("*", second.stem):
        return None, None
    differing = [(a.lower(), b.lower()) for a, b in zip(*letters, strict=True) if a.lower() != b.lower()]
    if differing not in ([("h", "l")], [("l", "h")]):
        return None, None
    first_expert = Expert.HIGH if differing[0][0] == "h" else Expert.LOW
    return Evidence(first_expert, "name", "its name"), Evidence(first_expert.other, "name", "its name")


def _by_metadata(checkpoint: Checkpoint) -> Evidence | None:
    stated = checkpoint.metadata.get(METADATA_KEY)
    if stated is None:
        return None
    if stated not in (Expert.HIGH.value, Expert.LOW.value):
        raise CheckpointError(
            f"the metadata of {checkpoint.label} say {METADATA_KEY} {quoted(stated)}, expected 'high' or 'low'"
        )
    return Evidence(Expert(stated), "metadata", "its metadata")


def _by_file(name: str) -> Expert | None:
    """The one expert that a file's name speaks of; "high noise" counts before a bare "high"."""
    words = _words(name)
    noise = {expert for expert, after in words if after == "noise"}
    return _only(noise or {expert for expert, after in words if after not in _OTHER_SENSES})


def _by_folder(folder: Path) -> Expert | None:
    """The one expert that a folder's name speaks of: "high noise", or nothing but "high". Folders have many names."""
    if folder.name in _DIFFUSERS and all((folder.parent / name).is_dir() for name in _DIFFUSERS):
        return _DIFFUSERS[folder.name]
    words = _words(folder.name)
    return _only({expert for expert, after in words if after == "noise" or _WORD.fullmatch(folder.name)})


def _words(name: str) -> list[tuple[Expert, str]]:
    """The experts that a name mentions, each with the word that follows."""
    words = [word.lower() for word in _WORD.findall(_JOINED.sub(r"\1_noise", name))]
    pairs = zip(words, [*words[1:], ""], strict=True)
    return [(Expert(word), after) for word, after in pairs if word in ("high", "low")]


def _masked(name: str) -> str:
    """A name with the experts that it mentions made alike."""
    words = _JOINED.sub(r"\1_noise", name)
    return _WORD.sub(lambda word: "*" if word[0].lower() in ("high", "low") else word[0].lower(), words)


def _only(found: set[Expert]) -> Expert | None:
    return next(iter(found)) if len(found) == 1 else None
