"""LoRA files: which parameters of an expert they change, how, how much, and what in them is not used and why.

Opening one reads its header and its alphas. A file is turned into `Change`s, one for each parameter that it touches; the
numbers are read when a change is applied (`lora_read.py`). Whether it fits an expert is asked apart (`fitted`), since a
LoRA for another size of Wan has the same names.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..linear.changes import ChangeKind
from ..specs import Expert, TransformerSpec
from .expert_name import expert_by_name
from .header import FLOATS, TensorInfo
from .inventory import Shape, transformer_shapes
from .look import look
from .lora_keys import KeyReading, LoraKey, other_model, read_keys
from .lora_scale import StatedTraining, stated_training
from .lora_shape import Measure, measure
from .read import Checkpoint, open_checkpoint
from .sentences import counted, listing, quoted
from .stream import empty

_WANTED = "a LoRA for a Wan text-to-video model"
_READABLE = (*FLOATS, "float8_e4m3fn", "float8_e5m2")
_UNPAIRED_REASON = "alphas or magnitudes without a change"
_PATCH_REASON = "the patch embedding of a model with other input channels"
_WIDTHS = {1536: "Wan 2.1 1.3B", 3072: "Wan 2.2 TI2V-5B", 5120: "Wan 14B"}

# Files for few steps without guidance, by the words that their authors put into names.
_DISTILLED = re.compile(
    r"lightning|lightx2v|distill|causvid|accvid|self[-_]?forcing|turbo|fusionx|"
    r"(?<![a-z])(dmd2?|rcm|lcm)(?![a-z])|(?<![0-9])[2468][-_ ]?steps?(?![a-z])",
    re.IGNORECASE,
)
# The first uploads of lightx2v/Wan2.2-Lightning: rank 64, trained with alpha 8, no alpha in the file.
_LIGHTNING_RANK, _LIGHTNING_SCALE = 64, 0.125


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a LoRA does to one parameter of an expert, at strength 1: scale times the product of its parts.

    shape: (out, in) of a matrix, that of the tensor for a diff. rank: 0 where there is none. magnitude: of DoRA.
    expert: the only one that it is for, where the keys say so.
    """

    parameter: str
    kind: ChangeKind
    parts: Mapping[str, TensorInfo]
    shape: Shape
    rank: int
    scale: float
    magnitude: TensorInfo | None = None
    expert: Expert | None = None

    @property
    def nbytes(self) -> int:
        """Stored size."""
        return sum(info.nbytes for info in self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoraFile:
    """A LoRA file. expert: the one it says it is for, `None` for either or both. ignored: reason -> number of keys."""

    checkpoint: Checkpoint
    family: str
    changes: tuple[Change, ...]
    ignored: Mapping[str, int]
    expert: Expert | None
    has_alphas: bool
    notes: tuple[str, ...]

    @property
    def path(self) -> Path:
        return self.checkpoint.path

    @property
    def label(self) -> str:
        return self.checkpoint.label

    @property
    def identity(self) -> tuple[tuple[str, int, int], ...]:
        """Path, size and modification time of what was opened: equal where nothing has changed since."""
        stamps = self.checkpoint.stamps.items()
        return tuple((str(path.absolute()), stamp.size, stamp.modified) for path, stamp in stamps)

    @property
    def is_distilled(self) -> bool:
        """Whether its name, or its folder's, says that it is for few steps without guidance."""
        path = self.path.absolute()
        return any(_DISTILLED.search(name) for name in (path.stem, path.parent.name))

    def changes_for(self, expert: Expert) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.expert in (None, expert))

    def fitted(self, spec: TransformerSpec) -> "LoraFile":
        """This file as far as it can be applied to experts of these dimensions.

        An image-to-video LoRA's patch embedding is left out; `CheckpointError` for any other change that does not fit.
        """
        shapes = transformer_shapes(spec)
        left_out = [c for c in self.changes if c.parameter == "patch_embedding.weight" and not _fits(c, shapes)]
        changes = tuple(change for change in self.changes if change not in left_out)
        for change in changes:
            if not _fits(change, shapes):
                raise CheckpointError(self._misfit(change, shapes, spec))
        if not changes:
            raise CheckpointError(f"{self.label} changes nothing but {_PATCH_REASON}, expected {_WANTED}")
        if not left_out:
            return self
        return replace(self, changes=changes, ignored={**self.ignored, _PATCH_REASON: len(left_out)})

    def describe(self, expert: Expert, num_linears: int) -> str:
        """What it changes on one expert, and what it leaves out, for reports."""
        changes = self.changes_for(expert)
        linears = {change.parameter for change in changes if is_block_linear(change)}
        others = len({change.parameter for change in changes} - linears)
        text = f"{len(linears)}/{num_linears} modules" + (f" and {counted(others, 'other tensor')}" if others else "")
        text += "".join(f", {fact}" for fact in self._facts(changes))
        return text

    def describe_ignored(self) -> str:
        """For example "80 keys ignored (image keys of the I2V model)"; empty where every key is used."""
        if not self.ignored:
            return ""
        total = sum(self.ignored.values())
        several = len(self.ignored) > 1
        reasons = ", ".join(f"{count} {reason}" if several else reason for reason, count in self.ignored.items())
        return f"{counted(total, 'key')} ignored ({reasons})"

    def _facts(self, changes: Collection[Change]) -> list[str]:
        names = {"lokr": "LoKr", "loha": "LoHa", "diff": "diffs"}
        facts = [f"{count} {names[kind]}" for kind, count in Counter(c.kind for c in changes).items() if kind in names]
        ranked = [change for change in changes if change.rank]
        if num_dora := sum(change.magnitude is not None for change in changes):
            facts.append(f"{num_dora} with DoRA")
        if ranked:
            facts.append(f"rank {_span([change.rank for change in ranked])}")
            alphas = "" if self.has_alphas else " (the file has no alpha)"
            facts.append(f"alpha/rank {_span([change.scale for change in ranked])}{alphas}")
        return facts

    def _misfit(self, change: Change, shapes: Mapping[str, Shape], spec: TransformerSpec) -> str:
        expected = shapes.get(change.parameter)
        widths = {c.shape[1] for c in self.changes if re.search(r"(self|cross)_attn\.q\.weight$", c.parameter)}
        width = next(iter(widths)) if len(widths) == 1 else spec.dim
        if width != spec.dim:
            known = f" ({_WIDTHS[width]})" if width in _WIDTHS else ""
            return f"{self.label} is a LoRA for a model of width {width}{known}, these experts have width {spec.dim}"
        if expected is None:
            return (
                f"{self.label} changes {quoted(change.parameter)}, which these experts do not have: they have "
                f"{spec.num_layers} blocks"
            )
        return (
            f"{self.label} does not fit these experts: it changes {quoted(change.parameter)} by {change.shape}, "
            f"expected {expected}"
        )


def open_lora(path: Path | str) -> LoraFile:
    """Open a LoRA file, or a folder with one; raises `CheckpointError` in one sentence for anything else."""
    return lora_of(open_checkpoint(path))


def lora_of(checkpoint: Checkpoint) -> LoraFile:
    """The LoRA in an opened file."""
    found = look(checkpoint)
    if found.kind != "lora":
        raise CheckpointError(f"{checkpoint.label} looks like {found.what}, expected {_WANTED}")
    infos = {info.stored_as: info for info in checkpoint.tensors.values()}
    reading = read_keys(infos)
    changes, unpaired = _changes(checkpoint, reading, infos)
    if not changes:
        raise CheckpointError(_nothing_for_wan(checkpoint, reading, infos))
    ignored = {reason: len(names) for reason, names in reading.ignored.items()}
    has_alphas = any(key.role == "alpha" for key in reading.keys) or stated_training(checkpoint) != StatedTraining()
    lora = LoraFile(
        checkpoint=checkpoint,
        family=reading.family.name,
        changes=changes,
        ignored=ignored | ({_UNPAIRED_REASON: unpaired} if unpaired else {}),
        expert=_expert(checkpoint, changes),
        has_alphas=has_alphas,
        notes=(),
    )
    return replace(lora, notes=_notes(lora))


def block_linears(spec: TransformerSpec) -> tuple[str, ...]:
    """Official names of the linear layers in the blocks, 400 in A14B: all that a transformer's `linear` makes."""
    shapes = transformer_shapes(spec).items()
    weights = (name for name, shape in shapes if name.startswith("blocks.") and len(shape) == 2)
    return tuple(name.removesuffix(".weight") for name in weights)


def is_block_linear(change: Change) -> bool:
    """Whether a change is one of the weight of a linear layer in a block."""
    return re.fullmatch(r"blocks\.[0-9]+\.((self|cross)_attn\.[qkvo]|ffn\.[02])\.weight", change.parameter) is not None


def _changes(
    checkpoint: Checkpoint, reading: KeyReading, infos: Mapping[str, TensorInfo]
) -> tuple[tuple[Change, ...], int]:
    """The changes, and the number of tensors that belong to none."""
    groups: dict[tuple[Expert | None, str], dict[str, LoraKey]] = {}
    for key in reading.keys:
        group = groups.setdefault((key.expert, key.parameter), {})
        if key.role in group:
            raise CheckpointError(
                f"two tensors of {checkpoint.label}, {quoted(group[key.role].name)} and {quoted(key.name)}, are the "
                f"same part of the change of {quoted(key.parameter)}, expected one"
            )
        if (dtype := infos[key.name].dtype) not in _READABLE and key.role != "alpha":
            raise CheckpointError(
                f"tensor {quoted(key.name)} of {checkpoint.label} is {dtype}, expected one of {', '.join(_READABLE)}"
            )
        group[key.role] = key
    alphas = _read_alphas(checkpoint, [group["alpha"] for group in groups.values() if "alpha" in group], infos)
    stated = stated_training(checkpoint)
    changes: list[Change] = []
    unpaired = 0
    # Weights first: a bias that was trained along with one has the scale of that.
    for (expert, parameter), group in sorted(groups.items(), key=lambda item: item[0][1].endswith(".bias")):
        parts = {role: infos[key.name] for role, key in group.items()}
        measures = measure(parts, f"the change of {quoted(parameter)} in {checkpoint.label}")
        unpaired += 0 if measures else len(parts)
        for found in measures:
            scale = 1.0
            if found.rank:
                own = group[next(iter(found.parts))].own_module
                alpha = alphas.get((expert, parameter))
                scale = alpha / found.rank if alpha is not None else stated.scale(own, found.rank)
            elif "up_bias" in found.parts:
                scale = _scale_of_weight(changes, expert, parameter)
            changes.append(_change(found, expert, parameter, 1.0 if scale is None else scale))
    return tuple(changes), unpaired


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


def _read_alphas(
    checkpoint: Checkpoint, keys: Collection[LoraKey], infos: Mapping[str, TensorInfo]
) -> dict[tuple[Expert | None, str], float]:
    alphas = {}
    with torch.inference_mode(mode=False), checkpoint.reader() as reader:
        for key in keys:
            info = infos[key.name]
            if math.prod(info.shape) != 1:
                raise CheckpointError(
                    f"tensor {quoted(key.name)} of {checkpoint.label} has shape {info.shape}, expected one number"
                )
            target = empty(info, "cpu", torch.float64)
            reader.fill(info, target)
            if not math.isfinite(alpha := target.item()):
                raise CheckpointError(f"tensor {quoted(key.name)} of {checkpoint.label} is {alpha}, expected a number")
            alphas[key.expert, key.parameter] = alpha
    return alphas


def _expert(checkpoint: Checkpoint, changes: Collection[Change]) -> Expert | None:
    """Keys say more than names: a file whose every key is the low expert's is its, whatever it is called."""
    by_keys = {change.expert for change in changes}
    if by_keys == {Expert.LOW}:
        return Expert.LOW
    named = expert_by_name(checkpoint.path)
    return named.expert if named and by_keys == {None} else None


def _fits(change: Change, shapes: Mapping[str, Shape]) -> bool:
    expected = shapes.get(change.parameter)
    if expected is None:
        return False
    if change.kind == "diff":
        return [n for n in change.shape if n != 1] == [n for n in expected if n != 1]
    return change.shape == (expected[0], math.prod(expected[1:])) and len(expected) > 1


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


def _nothing_for_wan(checkpoint: Checkpoint, reading: KeyReading, names: Collection[str]) -> str:
    if reading.family is None and (model := other_model(names)):
        return f"{checkpoint.label} is a LoRA for {model}, expected {_WANTED}"
    reasons = listing(f"{len(keys)} {reason}" for reason, keys in reading.ignored.items())
    return (
        f"{checkpoint.label} changes nothing in a Wan text-to-video model ({reasons or 'no change is complete'}; its "
        f"first tensor is {quoted(next(iter(names)))}), expected {_WANTED}"
    )


def _span(values: Collection[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
