"""What an opened LoRA file holds: the changes that it makes, whether they fit an expert, and that in words.

Made by `lora.py`. The numbers stay in the file until a change is applied (`lora_read.py`). Whether a LoRA fits is asked
apart from opening it, because one for another size of Wan has the same names.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import CheckpointError
from ..linear.changes import ChangeKind
from ..specs import Expert, TransformerSpec
from .header import TensorInfo
from .inventory import Shape, transformer_shapes
from .read import Checkpoint
from .sentences import counted, quoted

WANTED = "a LoRA for a Wan text-to-video model"
_PATCH_REASON = "the patch embedding of a model with other input channels"
_WIDTHS = {1536: "Wan 2.1 1.3B", 3072: "Wan 2.2 TI2V-5B", 5120: "Wan 14B"}
_BLOCK_LINEAR = re.compile(r"blocks\.[0-9]+\.((self|cross)_attn\.[qkvo]|ffn\.[02])\.(weight|bias)")

# Files for few steps without guidance, by the words that their authors put into names.
_DISTILLED = re.compile(
    r"lightning|lightx2v|distill|causvid|accvid|self[-_]?forcing|turbo|fusionx|"
    r"(?<![a-z])(dmd2?|rcm|lcm)(?![a-z])|(?<![0-9])[2468][-_ ]?steps?(?![a-z])",
    re.IGNORECASE,
)


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
            raise CheckpointError(f"{self.label} changes nothing but {_PATCH_REASON}, expected {WANTED}")
        if not left_out:
            return self
        return replace(self, changes=changes, ignored={**self.ignored, _PATCH_REASON: len(left_out)})

    def describe(self, expert: Expert | None = None, num_linears: int | None = None) -> str:
        """What it changes, on one expert or on any, for reports. num_linears: how many layers a LoRA can change."""
        changes = self.changes if expert is None else self.changes_for(expert)
        layers = {change.parameter.rpartition(".")[0] for change in changes if is_in_block_linear(change)}
        others = len({change.parameter for change in changes if not is_in_block_linear(change)})
        text = f"{len(layers)}{f'/{num_linears}' if num_linears else ''} modules"
        text += f" and {counted(others, 'other tensor')}" if others else ""
        return ", ".join((text, *self._facts(changes)))

    def describe_ignored(self) -> str:
        """For example "80 keys ignored (image keys of the I2V model)"; empty where every key is used."""
        if not self.ignored:
            return ""
        total = sum(self.ignored.values())
        if len(self.ignored) == 1:
            return f"{counted(total, 'key')} ignored ({next(iter(self.ignored))})"
        ordered = sorted(self.ignored.items(), key=lambda item: (-item[1], item[0]))
        return f"{counted(total, 'key')} ignored ({', '.join(f'{reason}: {count}' for reason, count in ordered)})"

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


def block_linears(spec: TransformerSpec) -> tuple[str, ...]:
    """Official names of the linear layers in the blocks, 400 in A14B: all that a transformer's `linear` makes."""
    shapes = transformer_shapes(spec).items()
    weights = (name for name, shape in shapes if name.startswith("blocks.") and len(shape) == 2)
    return tuple(name.removesuffix(".weight") for name in weights)


def is_in_block_linear(change: Change) -> bool:
    """Whether a change is one of the weight or the bias of a linear layer in a block."""
    return _BLOCK_LINEAR.fullmatch(change.parameter) is not None


def _fits(change: Change, shapes: Mapping[str, Shape]) -> bool:
    expected = shapes.get(change.parameter)
    if expected is None:
        return False
    if change.kind == "diff":
        return [n for n in change.shape if n != 1] == [n for n in expected if n != 1]
    return change.shape == (expected[0], math.prod(expected[1:])) and len(expected) > 1


def _span(values: Collection[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
