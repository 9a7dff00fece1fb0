"""LoRAs on built experts: what stands beside its layer, what is merged into its parameter, and at which strengths.

`arrange` is the pure half, from headers alone: the plan explains it and counts its bytes. `ExpertLoras` is the built
half: it hooks adapters to the layers of a transformer, fills them and merges the rest while the weights are loaded, and
follows changes of strength. Those reload nothing of what stands beside; of what is merged, the touched parameters.

Beside stand changes of the linear layers in the blocks that are small beside their weights. All else is merged: what
belongs to no such layer, what is as large as its weight, and DoRA, which depends on the weight that it changes and so
takes the changes before it with it.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from .checkpoint.inventory import transformer_shapes
from .checkpoint.load import Edit, ParameterSource
from .checkpoint.lora_file import Change, LoraFile, is_in_block_linear
from .checkpoint.lora_pair import LoraChoice
from .checkpoint.lora_read import LoraReaders
from .checkpoint.lora_shape import kronecker_shapes
from .checkpoint.read import Checkpoint
from .checkpoint.sentences import counted
from .linear.adapter import Adapter, Term, adapter_bytes, attach, is_of_adapter
from .linear.changes import Parts, kronecker_factors, low_rank_factors
from .meta import without_numbers
from .offload.weights import OnBytes, Place, Weights
from .precision import tf32
from .specs import Expert, TransformerSpec

Application = Literal["merged", "beside"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A change of the LoRA at `index` of the chain."""

    index: int
    lora: LoraFile
    change: Change

    @property
    def term(self) -> Term:
        """What stands beside the layer for it."""
        change = self.change
        if change.kind == "lokr":
            return Term(kronecker=kronecker_shapes(change.parts))
        return Term(rank=1 if change.kind == "diff" else change.rank ** (2 if change.kind == "loha" else 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Where the changes of one expert go. beside: by layer; merged: by parameter, in the order of the chain.

    reasons: why something is merged that was to stand beside, one clause each.
    """

    beside: Mapping[str, tuple[Placed, ...]]
    merged: Mapping[str, tuple[Placed, ...]]
    reasons: tuple[str, ...]

    @property
    def merged_layers(self) -> frozenset[str]:
        """Layers whose weight is changed itself; a change of the bias leaves it as it is."""
        return frozenset(name.removesuffix(".weight") for name in self.merged if name.endswith(".weight"))

    def adapter_bytes(self, spec: TransformerSpec, itemsize: int) -> int:
        """Memory of what stands beside, in a dtype of `itemsize` bytes."""
        shapes = transformer_shapes(spec)
        total = 0
        for layer, changes in self.beside.items():
            out_features, in_features = shapes[f"{layer}.weight"]
            total += adapter_bytes(in_features, out_features, [placed.term for placed in changes], itemsize)
        return total


def arrange(choices: Sequence[LoraChoice], expert: Expert, application: Application) -> Arrangement:
    """Decide for every change of one expert's LoRAs whether it stands beside its layer or is merged."""
    by_parameter: dict[str, list[Placed]] = {}
    for index, choice in enumerate(choices):
        lora = choice[expert]
        for change in lora.changes_for(expert) if lora else ():
            by_parameter.setdefault(change.parameter, []).append(Placed(index=index, lora=lora, change=change))
    beside: dict[str, list[Placed]] = {}
    to_merge: dict[str, list[Placed]] = {}
    reasons: Counter[str] = Counter()
    for parameter, changes in by_parameter.items():
        has_dora = any(placed.change.magnitude is not None for placed in changes)
        for placed in changes:
            reason = "DoRA rescales the weight itself" if has_dora else _why_not_beside(placed.change)
            if application == "beside" and reason is None:
                beside.setdefault(parameter.rpartition(".")[0], []).append(placed)
                continue
            to_merge.setdefault(parameter, []).append(placed)
            if application == "beside":
                reasons[reason] += 1
    return Arrangement(
        beside={layer: tuple(changes) for layer, changes in beside.items()},
        merged={parameter: tuple(changes) for parameter, changes in to_merge.items()},
        reasons=tuple(f"{counted(count, 'tensor')} merged: {reason}" for reason, count in reasons.items()),
    )


def _why_not_beside(change: Change) -> str | None:
    if not is_in_block_linear(change):
        return "only linear layers of the blocks can have a change beside them"
    if change.kind == "diff" and not change.parameter.endswith(".bias"):
        return "a full difference is as large as its weight"
    if change.kind == "loha" and change.rank**2 * sum(change.shape) >= change.shape[0] * change.shape[1]:
        return f"beside its layer a LoHa of rank {change.rank} would be larger than the weight"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What loaded weights hold. applied: the strengths, `None` after another build's weights were taken over.

    stale: parameters with that build's LoRAs in them. has_adapters: whether what stands beside has its numbers.
    """

    applied: tuple[float, ...] | None = None
    stale: frozenset[str] = frozenset()
    has_adapters: bool = True


class ExpertLoras:
    """The LoRAs of one expert, bound to its transformer, which is still on the meta device.

    dtype: of the layers' products, and so of what stands beside them. work_on: the device that merges.
    wanted: the strength of each LoRA of the chain, for the next `fill` and the next `settle`.
    """

    def __init__(
        self,
        transformer: nn.Module,
        checkpoint: Checkpoint,
        arrangement: Arrangement,
        strengths: tuple[float, ...],
        dtype: torch.dtype,
        work_on: str,
    ) -> None:
        self.wanted = strengths
        self._state = _State(applied=strengths)
        self._parameters = ParameterSource(transformer, checkpoint, work_on)
        self._transformer = transformer
        self._arrangement = arrangement
        self._adapters: dict[str, Adapter] = {}
        for layer, changes in arrangement.beside.items():
            linear = transformer.get_submodule(layer)
            terms = [placed.term for placed in changes]
            with without_numbers():
                adapter = Adapter(linear.in_features, linear.out_features, terms, dtype)
            attach(linear, adapter)
            self._adapters[layer] = adapter

    @property
    def merges(self) -> bool:
        """Whether `fill` merges, which sets the precision of float32 products for its time."""
        return bool(self._arrangement.merged)

    def fill(self, targets: Mapping[str, Tensor], on_bytes: OnBytes) -> None:
        """Write the values of these tensors of the transformer: `Fill` of its weights."""
        if self._is_all_that_is_there(targets):
            self._state = _State(applied=self.wanted)
        parameters = {name: target for name, target in targets.items() if not is_of_adapter(name)}
        with LoraReaders() as readers:
            if len(parameters) < len(targets):
                self._clear_adapters()
                self._fill_adapters(readers)
            self._parameters.fill(parameters, on_bytes, self._edits(readers))

    def take_over(self, weights: Weights, other: "ExpertLoras", its_weights: Weights) -> None:
        """Take the weights of a build with other LoRAs; what those and these change is read by the next `settle`."""
        if its_weights.place is Place.FILE:
            return
        weights.take_over(its_weights)
        self._clear_adapters()
        stale = {*self._arrangement.merged, *other._arrangement.merged, *other._state.stale}
        self._state = _State(stale=frozenset(stale), has_adapters=False)

    def settle(self, weights: Weights) -> None:
        """Make loaded weights follow `wanted`; only what depends on a strength that has changed is touched.

        What is in the file alone follows when it is read.
        """
        if weights.place is Place.FILE or self._state == _State(applied=self.wanted):
            self._state = _State(applied=self.wanted)
            return
        stale = [name for name in self._stale() if weights.is_in_memory(name)]
        try:
            with LoraReaders() as readers:
                if not self._state.has_adapters:
                    self._fill_adapters(readers)
                self._set_coefficients()
                targets = {name: self._transformer.get_parameter(name) for name in stale}
                self._parameters.fill(targets, edits=self._edits(readers))
            weights.mirror([*stale, *filter(is_of_adapter, (name for unit in weights.units for name in unit.names))])
        except BaseException:
            # Half of the old strengths and half of the new would be neither; the next use loads all of it.
            weights.drop()
            raise
        self._state = _State(applied=self.wanted)

    def _is_all_that_is_there(self, names: Collection[str]) -> bool:
        """Whether nothing else is in memory that could hold another strength."""
        named, tensors = set(names), (*self._transformer.named_parameters(), *self._transformer.named_buffers())
        return all(tensor.is_meta for name, tensor in tensors if name not in named)

    def _stale(self) -> list[str]:
        """Parameters that hold another strength, or another LoRA, than is wanted."""
        wanted, applied = self.wanted, self._state.applied or (None,) * len(self.wanted)
        changed = {index for index in range(len(wanted)) if wanted[index] != applied[index]}
        merged_in = self._arrangement.merged.items()
        moved = [name for name, changes in merged_in if any(placed.index in changed for placed in changes)]
        return list(dict.fromkeys((*self._state.stale, *moved)))

    def _clear_adapters(self) -> None:
        for adapter in self._adapters.values():
            adapter.clear()

    def _fill_adapters(self, readers: LoraReaders) -> None:
        for layer, adapter in self._adapters.items():
            if adapter.down.is_meta:
                continue  # not in memory: filled with the rest when it is
            for index, placed in enumerate(self._arrangement.beside[layer]):
                _fill(adapter, index, placed.change, readers.parts(placed.lora, placed.change, adapter.down.device))
        self._set_coefficients()

    def _set_coefficients(self) -> None:
        for layer, adapter in self._adapters.items():
            for index, placed in enumerate(self._arrangement.beside[layer]):
                adapter.set_coefficient(index, self.wanted[placed.index] * placed.change.scale)

    def _edits(self, readers: LoraReaders) -> Mapping[str, Edit]:
        return {
            parameter: partial(
                _merge, readers, [(placed.lora, placed.change, self.wanted[placed.index]) for placed in changes]
            )
            for parameter, changes in self._arrangement.merged.items()
        }


def _merge(readers: LoraReaders, changes: Sequence[tuple[LoraFile, Change, float]], parameter: Tensor) -> Tensor:
    with tf32(enabled=False):
        return readers.merged(parameter, changes)


def _fill(adapter: Adapter, index: int, change: Change, parts: Parts) -> None:
    if change.kind == "lokr":
        adapter.fill_kronecker(index, *kronecker_factors(parts))
    elif change.kind == "diff":
        adapter.fill_bias(index, parts["diff"])
    else:
        adapter.fill_low_rank(index, *low_rank_factors(change.kind, parts))
