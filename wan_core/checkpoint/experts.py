"""Opening the two experts of one model: which is which, and that they belong together.

The two have the same names and shapes, so a swap or the same file twice would run and give a bad video without a word.
Both are refused where they can be told: by folder, file name or metadata, and by comparing a few tensors. Where nothing
says which is which, the given order is used and a note says so.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..specs import Expert, TransformerSpec
from .expert_name import Evidence, expert_by_name, expert_of, experts_by_letter
from .read import Checkpoint, open_checkpoint
from .sentences import label, listing
from .transformer import transformer_spec

# Small tensors that training changes, and one row of a large one.
_FINGERPRINT = ("head.modulation", "time_projection.1.bias", "blocks.0.modulation", "blocks.0.self_attn.q.bias")
# Of the same numbers in two dtypes some round differently; two experts agree in next to none.
_SAME = 0.99


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertPair:
    """Both experts of one model. notes: what the user should know, one sentence each."""

    high: Checkpoint
    low: Checkpoint
    spec: TransformerSpec
    notes: tuple[str, ...] = ()

    def __getitem__(self, expert: Expert) -> Checkpoint:
        return self.high if expert is Expert.HIGH else self.low


def open_experts(high: Path | str, low: Path | str | None = None) -> ExpertPair:
    """Open both experts, headers and a few small tensors only.

    high, low: a file or a sharded folder each; `high` alone is the folder that holds both, as two folders
    (`high_noise_model`, `low_noise_model`) or as two files whose names say which is which. Raises `CheckpointError` for
    experts that are swapped, the same, of different sizes or no text-to-video experts.
    """
    if low is None:
        high, low = find_experts(Path(high))
    high, low = Path(high), Path(low)
    if _is_same_file(high, low):
        raise CheckpointError(f"{label(high)} was given as both experts, expected one high-noise and one low-noise file")
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


def find_experts(folder: Path) -> tuple[Path, Path]:
    """The paths of the high-noise and the low-noise expert in a folder that holds one of each."""
    if not folder.exists():
        raise CheckpointError(f"{str(folder)!r} does not exist")
    if not folder.is_dir():
        other = "low" if (found := expert_by_name(folder)) is None else found.expert.other.value
        raise CheckpointError(f"{label(folder)} is one expert; give the {other}-noise expert too, or the folder with both")
    found = expert_candidates(folder)
    for expert, paths in found.items():
        if len(paths) > 1:
            names = listing(path.name for path in paths)
            raise CheckpointError(f"{label(folder)} holds several {expert.value}-noise experts ({names}); give the files")
    missing = [expert.value for expert, paths in found.items() if not paths]
    if missing:
        raise CheckpointError(
            f"{label(folder)} holds no {' and no '.join(missing)}-noise expert, expected the folders high_noise_model and "
            "low_noise_model, or .safetensors files whose names contain high and low"
        )
    return found[Expert.HIGH][0], found[Expert.LOW][0]


def expert_candidates(folder: Path) -> dict[Expert, list[Path]]:
    """Entries of a folder whose names say which expert they are: .safetensors files, and folders with such files."""
    found: dict[Expert, list[Path]] = {expert: [] for expert in Expert}
    for entry in sorted(folder.iterdir()):
        holds_weights = any(entry.glob("*.safetensors")) if entry.is_dir() else entry.suffix == ".safetensors"
        # Only its own name counts here: the folder's speaks of all of its entries.
        evidence = expert_by_name(entry) if holds_weights else None
        if evidence and evidence.source == "its name":
            found[evidence.expert].append(entry)
    return found


def _check_order(high: Checkpoint, low: Checkpoint) -> tuple[str, ...]:
    """Raise `CheckpointError` where the order is wrong; returns a note where it cannot be known."""
    evidence = expert_of(high), expert_of(low)
    if evidence == (None, None) and (letters := experts_by_letter(high.path, low.path)):
        evidence = Evidence(letters[0], "its name"), Evidence(letters[1], "its name")
    of_high, of_low = evidence
    high_is_low = of_high is not None and of_high.expert is Expert.LOW
    low_is_high = of_low is not None and of_low.expert is Expert.HIGH
    if high_is_low and low_is_high:
        raise CheckpointError(
            f"the experts are swapped: {high.label} is the low-noise one ({of_high.source} says so) and {low.label} the "
            f"high-noise one ({of_low.source} says so)"
        )
    if high_is_low:
        raise CheckpointError(f"{high.label} is the low-noise expert ({of_high.source} says so), expected the high-noise one")
    if low_is_high:
        raise CheckpointError(f"{low.label} is the high-noise expert ({of_low.source} says so), expected the low-noise one")
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
    names = [name for name in TransformerSpec.__slots__ if getattr(a, name) != getattr(b, name)]
    return ", ".join(f"{name} is {getattr(a, name)} in one and {getattr(b, name)} in the other" for name in names)


def _holds_same_numbers(a: Checkpoint, b: Checkpoint) -> bool:
    return all(_agreement(a, b, name) >= _SAME for name in _FINGERPRINT)


def _agreement(a: Checkpoint, b: Checkpoint, name: str) -> float:
    """The fraction of numbers that are equal once both are rounded to bfloat16, so that the dtype does not matter."""
    first, second = (checkpoint.load(name, dtype=torch.float32).bfloat16() for checkpoint in (a, b))
    return (first == second).float().mean().item()
