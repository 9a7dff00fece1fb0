"""One LoRA on both experts: its high-noise and its low-noise file, found by name or given, with a strength for each.

Authors publish two files whose names differ in the expert, side by side or in a folder for each; some publish one file
for both experts, or one whose keys name them. Nothing is guessed beyond that: where no partner has the same name but
for the expert, the other expert runs without, and a note says so.
"""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from ..errors import CheckpointError, InputError
from ..specs import Expert, TransformerSpec
from .expert_name import expert_in_pair
from .lora import open_lora
from .lora_file import LoraFile
from .partner import find_partner

Partner = Path | Literal["by name", "none"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoraChoice:
    """LoRA files for the experts (`None` leaves an expert as it is) and their strengths; 1 is as trained.

    notes: what the user should know about the files, one sentence each.
    """

    high: LoraFile | None
    low: LoraFile | None
    strength_high: float = 1.0
    strength_low: float = 1.0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for expert in Expert:
            if not isfinite(self.strength(expert)):
                raise InputError(f"the strength of a LoRA is {self.strength(expert)}, expected a number such as 1")

    def __getitem__(self, expert: Expert) -> LoraFile | None:
        return self.high if expert is Expert.HIGH else self.low

    def strength(self, expert: Expert) -> float:
        return self.strength_high if expert is Expert.HIGH else self.strength_low


def choose_lora(
    file: Path | str,
    spec: TransformerSpec,
    *,
    partner: Partner = "by name",
    strength_high: float = 1.0,
    strength_low: float = 1.0,
) -> LoraChoice:
    """Open a LoRA for experts of these dimensions, with its partner; headers and alphas only.

    file: for either expert, or for both. partner: its file for the other expert, or how to find that; with "none", a
    file that says which expert it is for is applied to that one alone. Raises `CheckpointError` in one sentence for
    files that are no LoRAs, do not fit, or are for the same expert.
    """
    first = open_lora(file).fitted(spec)
    other = find_partner(first.path) if partner == "by name" else partner if isinstance(partner, Path) else None
    files, notes = _pair(first, open_lora(other).fitted(spec)) if other else _alone(first, partner)
    return LoraChoice(
        high=files[Expert.HIGH],
        low=files[Expert.LOW],
        strength_high=strength_high,
        strength_low=strength_low,
        notes=tuple(dict.fromkeys((*notes, *(note for each in files.values() if each for note in each.notes)))),
    )


def lora_for(expert: Expert, file: Path | str, spec: TransformerSpec, strength: float = 1.0) -> LoraChoice:
    """A LoRA for one expert alone, whatever its name says; where it says otherwise, so does a note."""
    lora = open_lora(file).fitted(spec)
    if not lora.changes_for(expert):
        raise CheckpointError(f"{lora.label} holds changes of the {lora.expert} only, expected some of the {expert}")
    notes = lora.notes
    if lora.expert is expert.other:
        notes = (*notes, f"{lora.label} says that it is for the {expert.other}; as asked, it is on the {expert}")
    if expert is Expert.HIGH:
        return LoraChoice(high=lora, low=None, strength_high=strength, notes=notes)
    return LoraChoice(high=None, low=lora, strength_low=strength, notes=notes)


def _pair(first: LoraFile, second: LoraFile) -> tuple[dict[Expert, LoraFile], tuple[str, ...]]:
    """Which of two files is for which expert, and a note where nothing says it."""
    if first.expert is not None and first.expert is second.expert:
        raise CheckpointError(
            f"{first.label} and {second.label} are both for the {first.expert}, expected one file for each expert"
        )
    expert = first.expert or (second.expert.other if second.expert else expert_in_pair(first.path, second.path))
    notes = ()
    if expert is None:
        expert = Expert.HIGH
        notes = (f"nothing says which expert each LoRA is for; as given, {first.label} is on the {expert}",)
    return {expert: first, expert.other: second}, notes


def _alone(lora: LoraFile, partner: Partner) -> tuple[dict[Expert, LoraFile | None], tuple[str, ...]]:
    """A file without a partner: on the expert that it is for, else on both."""
    if lora.expert is not None:
        searched = "; no partner was found by its name" if partner == "by name" else ""
        return (
            {lora.expert: lora, lora.expert.other: None},
            (f"{lora.label} is on the {lora.expert} only{searched}",),
        )
    names_both = {change.expert for change in lora.changes} >= set(Expert)
    return (
        {Expert.HIGH: lora, Expert.LOW: lora},
        () if names_both else (f"nothing says which expert {lora.label} is for; it is on both",),
    )
