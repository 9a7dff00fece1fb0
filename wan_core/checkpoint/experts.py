"""Opening the two experts of one model: which is which, and that they belong together.

The two have the same names and shapes, so a swap or the same file twice would run and give a bad video without a word.
Both are refused where they can be told: by folder, file name or metadata, and by comparing a few tensors. Where nothing
says which is which, the given order is used and a note says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..specs import Expert, TransformerSpec
from .expert_name import evidence_of_pair, expert_by_name, expert_in_pair
from .header import FLOATS
from .locate import holds_weights
from .lora_pair import LoraChoice
from .partner import find_partner
from .read import Checkpoint, open_checkpoint
from .sentences import label, listing
from .transformer import transformer_spec

# Small tensors that training changes: 3 MB of a real expert.
_FINGERPRINT = ("head.modulation", "blocks.0.modulation", "time_projection.1.bias", "time_embedding.0.weight")
# The same numbers in another dtype differ by what bfloat16 rounds off, but for a few tiny ones that float16 loses.
_ROUNDING = 2.0**-8
_SAME = 0.99


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertPair:
    """Both experts of one model, and the LoRAs on them. notes: what the user should know, one sentence each."""

    high: Checkpoint
    low: Checkpoint
    spec: TransformerSpec
    notes: tuple[str, ...] = ()
    loras: tuple[LoraChoice, ...] = ()

    def __getitem__(self, expert: Expert) -> Checkpoint:
        return self.high if expert is Expert.HIGH else self.low

    def with_lora(self, choice: LoraChoice) -> "ExpertPair":
        """These experts with one more LoRA, after those that they have."""
        return replace(self, loras=(*self.loras, choice))


def open_experts(high: Path | str, low: Path | str | None = None) -> ExpertPair:
    """Open both experts, headers and a few small tensors only.

    high, low: a file or a sharded folder each. `high` alone is the folder that holds both, as two folders
    (`high_noise_model` and `low_noise_model`, `transformer` and `transformer_2`) or as two files whose names say which
    is which; or it is one expert, either, whose partner is found by its name. Raises `CheckpointError` for experts that
    are swapped, the same, of different sizes or no text-to-video experts.
    """
    if low is None:
        high, low = find_experts(Path(high))
    high, low = Path(high), Path(low)
    if _is_same_file(high, low):
        raise CheckpointError(
            f"{label(high)} was given as both experts, expected one high-noise and one low-noise file"
        )
    opened = open_checkpoint(high), open_checkpoint(low)
    specs = transformer_spec(opened[0]), transformer_spec(opened[1])
    if specs[0] != specs[1]:
        raise CheckpointError(
            f"{opened[0].label} and {opened[1].label} are not experts of one model: {_difference(*specs)}"
        )
    notes = _check_order(*opened)
    if _holds_same_numbers(*opened):
        raise CheckpointError(
            f"{opened[0].label} and {opened[1].label} hold the same weights, expected one high-noise and one low-noise "
            "expert"
        )
    return ExpertPair(high=opened[0], low=opened[1], spec=specs[0], notes=notes)


def find_experts(path: Path) -> tuple[Path, Path]:
    """The paths of the high-noise and the low-noise expert: of a folder with one of each, or of one and its partner."""
    if not path.exists():
        raise CheckpointError(f"{str(path)!r} does not exist")
    try:
        if path.is_file() or expert_by_name(path):
            return _with_partner(path)
        return choose_experts(expert_candidates(path), label(path))
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error


def _with_partner(path: Path) -> tuple[Path, Path]:
    partner = find_partner(path)
    if partner is None:
        known = expert_by_name(path)
        other = f"the {known.expert.other.value}-noise" if known else "the other"
        raise CheckpointError(
            f"{label(path)} is one expert and no partner was found by its name; give {other} expert too, or the folder "
            "with both"
        )
    evidence = expert_by_name(path)
    is_low = (evidence.expert if evidence else expert_in_pair(path, partner)) is Expert.LOW
    return (partner, path) if is_low else (path, partner)


def expert_candidates(*folders: Path) -> dict[Expert, list[Path]]:
    """Entries of folders whose names say which expert they are: checkpoints, and folders with such files."""
    found: dict[Expert, list[Path]] = {expert: [] for expert in Expert}
    for folder in folders:
        if not folder.is_dir() or any(folder in paths for paths in found.values()):
            continue
        for entry in sorted(folder.iterdir()):
            evidence = expert_by_name(entry) if holds_weights(entry) else None
            # Only its own name counts here: its folder's speaks of all that is in it.
            if evidence and evidence.by == "name":
                found[evidence.expert].append(entry)
    return found


def choose_experts(candidates: Mapping[Expert, Sequence[Path]], where: str) -> tuple[Path, Path]:
    """The one high-noise and the one low-noise expert among candidates; `where` they are begins the sentence if not."""
    chosen = {}
    for expert, paths in candidates.items():
        # LoRAs and image-to-video experts carry the same words in their names.
        usable = [path for path in paths if _is_usable(path)] if len(paths) > 1 else list(paths)
        if len(usable) > 1:
            names = listing(label(path) for path in usable)
            raise CheckpointError(
                f"{where} holds several {expert.value}-noise experts ({names}); give the two files to use"
            )
        # Where none can be used, opening the first says why.
        chosen[expert] = usable or paths[:1]
    if missing := [expert.value for expert, paths in chosen.items() if not paths]:
        raise CheckpointError(
            f"{where} holds no {' and no '.join(missing)}-noise text-to-video expert, expected the folders "
            "high_noise_model and low_noise_model, or transformer and transformer_2, or files whose names contain high "
            "and low"
        )
    return chosen[Expert.HIGH][0], chosen[Expert.LOW][0]


def _is_usable(path: Path) -> bool:
    try:
        transformer_spec(open_checkpoint(path))
    except CheckpointError:
        return False
    return True


def _check_order(high: Checkpoint, low: Checkpoint) -> tuple[str, ...]:
    """Raise `CheckpointError` where the order is wrong; returns a note where it cannot be known."""
    of_high, of_low = evidence_of_pair(high, low)
    high_is_low = of_high is not None and of_high.expert is Expert.LOW
    low_is_high = of_low is not None and of_low.expert is Expert.HIGH
    if high_is_low and low_is_high:
        raise CheckpointError(
            f"the experts are swapped: {high.label} is the low-noise one ({of_high.source} says so) and {low.label} "
            f"the high-noise one ({of_low.source} says so)"
        )
    if high_is_low:
        raise CheckpointError(
            f"{high.label} is the low-noise expert ({of_high.source} says so), expected the high-noise one"
        )
    if low_is_high:
        raise CheckpointError(
            f"{low.label} is the high-noise expert ({of_low.source} says so), expected the low-noise one"
        )
    if of_high and of_low:
        return ()
    if of_high or of_low:
        known, other = (high, low) if of_high else (low, high)
        return (f"nothing says which expert {other.label} is; it is taken as the partner of {known.label}",)
    return (f"nothing says which expert is which; as given, {high.label} is high noise and {low.label} is low noise",)


def _is_same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        # One of them does not exist; opening it says so.
        return False


def _difference(a: TransformerSpec, b: TransformerSpec) -> str:
    names = [entry.name for entry in fields(TransformerSpec) if getattr(a, entry.name) != getattr(b, entry.name)]
    return ", ".join(f"{name} is {getattr(a, name)} in one and {getattr(b, name)} in the other" for name in names)


def _holds_same_numbers(a: Checkpoint, b: Checkpoint) -> bool:
    # Encoded numbers are not compared: the same ones differ by more than rounding where the formats differ.
    plain = [name for name in _FINGERPRINT if all(each.tensors[name].dtype in FLOATS for each in (a, b))]
    return bool(plain) and all(_agreement(a, b, name) >= _SAME for name in plain)


def _agreement(a: Checkpoint, b: Checkpoint, name: str) -> float:
    """The fraction of numbers that are equal or, where the files differ in dtype, may be rounded from the same."""
    first, second = (checkpoint.load(name, dtype=torch.float32) for checkpoint in (a, b))
    tolerance = 0.0 if a.tensors[name].dtype == b.tensors[name].dtype else _ROUNDING
    return torch.isclose(first, second, rtol=tolerance, atol=0.0, equal_nan=True).float().mean().item()
