"""What a plan says of LoRAs: how they are applied and why, what they hold, and which of them go ill with a recipe.

Pure, from headers alone. The strengths are in the words and nowhere else: they are set when a run begins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .adaptation import Application, Arrangement, arrange
from .checkpoint.lora_file import block_linears
from .checkpoint.lora_pair import LoraChoice
from .errors import UnsupportedError
from .profiles import OptimizationProfile
from .recipes import Recipe
from .report import Decision
from .specs import Expert, TransformerSpec

# The expert that a LoRA is on, and path, size and modification time of its files.
LoraIdentity = tuple[str, tuple[tuple[str, int, int], ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraPlan:
    """How LoRAs are applied. files: equal where nothing has to be read anew. adapter_bytes: beside each expert.

    merged_layers: linear layers of either expert whose weight is changed itself.
    """

    application: Application
    files: tuple[LoraIdentity, ...]
    adapter_bytes: tuple[int, ...]
    decisions: tuple[Decision, ...]
    merged_layers: frozenset[str] = frozenset()


def plan_loras(
    loras: Sequence[LoraChoice], spec: TransformerSpec, profile: OptimizationProfile, itemsize: int
) -> LoraPlan:
    """Decide how LoRAs are applied to experts whose products take `itemsize` bytes a number.

    Raises `UnsupportedError` where a strict profile asks for "beside" and a change cannot stand there.
    """
    asked = profile.lora.application
    application: Application = "merged" if asked == "merged" and loras else "beside"
    arranged = {expert: arrange(loras, expert, application) for expert in Expert}
    reasons = _reasons(arranged)
    if reasons and asked == "beside" and profile.on_unsupported == "error":
        raise UnsupportedError(f"not all of these LoRAs can stand beside the layers: {'; '.join(reasons)}; use 'auto'")
    return LoraPlan(
        application=application,
        files=lora_files(loras),
        adapter_bytes=tuple(arrangement.adapter_bytes(spec, itemsize) for arrangement in arranged.values()),
        decisions=(_placement(asked, arranged, reasons), *_descriptions(loras, spec)) if loras else (),
        merged_layers=frozenset(layer for arrangement in arranged.values() for layer in arrangement.merged_layers),
    )


def lora_files(loras: Sequence[LoraChoice]) -> tuple[LoraIdentity, ...]:
    """Which files are on which expert, in their order."""
    files = ((expert.value, choice[expert]) for choice in loras for expert in Expert)
    return tuple((expert, lora.identity if lora else ()) for expert, lora in files)


def lora_disagreements(chosen: Recipe, loras: Sequence[LoraChoice]) -> list[str]:
    """What does not fit together in a recipe and its LoRAs, each with what to change."""
    notes, is_distilled = [], False
    for expert in Expert:
        applied = [choice[expert] for choice in loras if choice[expert] and choice.strength(expert) != 0.0]
        distilled = [lora for lora in applied if lora.is_distilled]
        is_distilled = is_distilled or bool(distilled)
        if distilled and chosen.guidance(expert) > 1.0:
            notes.append(
                f"guidance {chosen.guidance(expert):g} on the {expert} with {distilled[0].label}: a distilled LoRA is "
                "made for guidance 1, which also takes half the time; use recipe lightning-4"
            )
    if chosen.num_steps <= 8 and max(chosen.guidance_high, chosen.guidance_low) <= 1.0 and not is_distilled:
        notes.append(
            f"{chosen.num_steps} steps at guidance 1 without a distilled LoRA, which so few steps need unless the "
            "experts themselves are distilled; add the pair of 4-step Lightning LoRAs, or use recipe draft"
        )
    return notes


def _reasons(arranged: Mapping[Expert, Arrangement]) -> list[str]:
    """Why changes are merged that were to stand beside their layers."""
    high, low = (arranged[expert].reasons for expert in Expert)
    if high == low:
        return [f"{why} (each expert)" for why in high]
    return [f"{why} ({expert.value} noise)" for expert in Expert for why in arranged[expert].reasons]


def _placement(asked: str, arranged: Mapping[Expert, Arrangement], reasons: Sequence[str]) -> Decision:
    is_beside = any(arrangement.beside for arrangement in arranged.values())
    if is_beside:
        why = "a change of strength reads nothing" + (" but what is merged" if reasons else "")
    else:
        why = "no cost in a step; a change of strength reads the touched weights anew"
    return Decision(
        topic="LoRA application",
        asked=asked,
        chosen="beside" if is_beside else "merged",
        reason="; ".join((why, *reasons)),
    )


def _descriptions(loras: Sequence[LoraChoice], spec: TransformerSpec) -> list[Decision]:
    num_linears = len(block_linears(spec))
    decisions = []
    for choice in loras:
        for expert in Expert:
            if (lora := choice[expert]) is None:
                continue
            changed = f"{lora.describe(expert, num_linears)}, strength {choice.strength(expert):g}"
            text = "; ".join(filter(None, (changed, lora.describe_ignored())))
            decisions.append(Decision(topic=f"LoRA {lora.label} on {expert.value} noise", asked="auto", chosen=text))
    return decisions
