"""Opening LoRA files: the keys of each change put together, with their scale; what is not used is kept with its reason.

Reads a header and the alphas. Refuses, in one sentence, what is no LoRA, is one of another model, or is damaged.
"""

import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..specs import Expert
from .decode import why_not
from .expert_name import expert_by_name
from .look import look
from .lora_file import WANTED, Change, LoraFile
from .lora_keys import KeyReading, LoraKey, other_model, read_keys
from .lora_scale import StatedTraining, stated_training
from .lora_shape import Measure, measure
from .read import Checkpoint, open_checkpoint
from .sentences import listing, quoted
from .stream import empty

_UNPAIRED_REASON = "alphas or magnitudes without a change"

Groups = dict[tuple[Expert | None, str], dict[str, LoraKey]]

# The first uploads of lightx2v/Wan2.2-Lightning: rank 64, trained with alpha 8, no alpha in the file.
_LIGHTNING_RANK, _LIGHTNING_SCALE = 64, 0.125


def open_lora(path: Path | str) -> LoraFile:
    """Open a LoRA file, or a folder with one; raises `CheckpointError` in one sentence for anything else."""
    return lora_of(open_checkpoint(path))


def lora_of(checkpoint: Checkpoint) -> LoraFile:
    """The LoRA in an opened file."""
    found = look(checkpoint)
    if found.kind != "lora":
        raise CheckpointError(f"{checkpoint.label} looks like {found.what}, expected {WANTED}")
    # No table of models knows its names, or it would not look like a LoRA: they are those in the file.
    reading, stated = read_keys(checkpoint.tensors), stated_training(checkpoint)
    changes, unpaired = _changes(checkpoint, reading, stated)
    if not changes:
        raise CheckpointError(_nothing_for_wan(checkpoint, reading))
    ignored = {reason: len(names) for reason, names in reading.ignored.items()}
    lora = LoraFile(
        checkpoint=checkpoint,
        family=reading.family.name,
        changes=changes,
        ignored=ignored | ({_UNPAIRED_REASON: unpaired} if unpaired else {}),
        expert=_expert(checkpoint, changes),
        has_alphas=any(key.role == "alpha" for key in reading.keys) or stated.alpha is not None,
        notes=(),
    )
    return replace(lora, notes=_notes(lora))


def _changes(checkpoint: Checkpoint, reading: KeyReading, stated: StatedTraining) -> tuple[tuple[Change, ...], int]:
    """The changes, and the number of tensors that belong to none."""
    groups = _groups(checkpoint, reading)
    alphas = _read_alphas(checkpoint, groups)
    changes: list[Change] = []
    unpaired = 0
    # Weights first: a bias that was trained along with one has the scale of that.
    for (expert, parameter), group in sorted(groups.items(), key=lambda item: item[0][1].endswith(".bias")):
        parts = {role: checkpoint.tensors[key.name] for role, key in group.items()}
        measures = measure(parts, f"the change of {quoted(parameter)} in {checkpoint.label}")
        unpaired += 0 if measures else len(parts)
        for found in measures:
            scale = 1.0
            if found.rank:
                alpha, module = alphas.get((expert, parameter)), group[next(iter(found.parts))].own_module
                scale = stated.scale(module, found.rank) if alpha is None else alpha / found.rank
            elif "up_bias" in found.parts:
                scale = _scale_of_weight(changes, expert, parameter)
            changes.append(_change(found, expert, parameter, 1.0 if scale is None else scale))
    return tuple(changes), unpaired


def _groups(checkpoint: Checkpoint, reading: KeyReading) -> Groups:
    """The keys of each change by their roles."""
    groups: Groups = {}
    for key in reading.keys:
        group = groups.setdefault((key.expert, key.parameter), {})
        if key.role in group:
            raise CheckpointError(
                f"two tensors of {checkpoint.label}, {quoted(group[key.role].name)} and {quoted(key.name)}, are the "
                f"same part of the change of {quoted(key.parameter)}, expected one"
            )
        # An alpha may be a whole number.
        if key.role != "alpha" and (reason := why_not(checkpoint.tensors[key.name])):
            raise CheckpointError(f"{checkpoint.label} {reason} (tensor {quoted(key.name)})")
        group[key.role] = key
    return groups


def _change(found: Measure, expert: Expert | None, parameter: str, scale: float) -> Change:
    return Change(
        parameter=parameter,
        kind=found.kind,
        parts={"diff" if role == "up_bias" else role: info for role, info in found.parts.items()},
        shape=found.shape,
        rank=found.rank,
        scale=scale,
        magnitude=found.magnitude,
        expert=expert,
    )


def _scale_of_weight(changes: Collection[Change], expert: Expert | None, bias: str) -> float:
    weight = bias.removesuffix("bias") + "weight"
    return next((c.scale for c in changes if c.parameter == weight and c.expert is expert and c.rank), 1.0)


def _read_alphas(checkpoint: Checkpoint, groups: Groups) -> dict[tuple[Expert | None, str], float]:
    alphas = {}
    with torch.inference_mode(mode=False), checkpoint.reader() as reader:
        for which, group in groups.items():
            if "alpha" not in group:
                continue
            info = checkpoint.tensors[group["alpha"].name]
            if math.prod(info.shape) != 1:
                raise CheckpointError(
                    f"tensor {quoted(info.stored_as)} of {checkpoint.label} has shape {info.shape}, expected one number"
                )
            target = empty(info, "cpu", None)
            reader.fill(info, target)
            if not math.isfinite(alpha := float(target.item())):
                raise CheckpointError(
                    f"tensor {quoted(info.stored_as)} of {checkpoint.label} is {alpha}, expected a number"
                )
            alphas[which] = alpha
    return alphas


def _expert(checkpoint: Checkpoint, changes: Collection[Change]) -> Expert | None:
    """Keys say more than names: a file whose every key is the low expert's is its, whatever it is called."""
    by_keys = {change.expert for change in changes}
    if by_keys == {Expert.LOW}:
        return Expert.LOW
    named = expert_by_name(checkpoint.path)
    return named.expert if named and by_keys == {None} else None


def _notes(lora: LoraFile) -> tuple[str, ...]:
    weights = [change for change in lora.changes if change.rank]
    is_early_lightning = (
        not lora.has_alphas
        and lora.is_distilled
        and bool(weights)
        and all(change.kind == "low-rank" and change.rank == _LIGHTNING_RANK for change in weights)
    )
    if not is_early_lightning:
        return ()
    return (
        f"{lora.label} has no alpha, so that alpha/rank counts as 1; it looks like an early Lightning upload, whose "
        f"alpha/rank is {_LIGHTNING_SCALE:g}: use strength {_LIGHTNING_SCALE:g}, or a later upload",
    )


def _nothing_for_wan(checkpoint: Checkpoint, reading: KeyReading) -> str:
    names = checkpoint.tensors
    if reading.family is None and (model := other_model(names)):
        return f"{checkpoint.label} is a LoRA for {model}, expected {WANTED}"
    reasons = listing(f"{reason}: {len(keys)}" for reason, keys in reading.ignored.items())
    return (
        f"{checkpoint.label} changes nothing in a Wan text-to-video model ({reasons or 'no change is complete'}; its "
        f"first tensor is {quoted(next(iter(names)))}), expected {WANTED}"
    )
