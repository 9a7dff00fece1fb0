"""How tensors are named: one table for each format, from the official names to the format's own, invertible.

A row is a pair of whole names in which `*` stands for one number (a layer), so a name either is one of a table's or it
is not: nothing is guessed and nothing is replaced inside a name. A file may put one prefix before all of its names.
Which table a file follows is found by counting, so that a file with some names missing is still recognised.

The official names are those of the reference implementation's modules, and of ours. A format is added by its rows.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Literal

from ..errors import CheckpointError
from .sentences import quoted

Kind = Literal["transformer", "text_encoder", "vae"]
Row = tuple[str, str]

_NUMBER = "(0|[1-9][0-9]{0,3})"
# A number that is a part of a name by itself, whether dots or underscores divide it.
_PART = re.compile("(?<![0-9A-Za-z])[0-9]+(?![0-9A-Za-z])")
# So few names in common with a table are a coincidence.
_MIN_MATCHES = 4


@dataclass(frozen=True, kw_only=True)
class NameTable:
    """The names of one format.

    rows: (official, theirs). prefixes: what may stand before all of their names. aliases: a second name of theirs for a
    tensor -> the first one, for tied weights that a file may hold under either name or under both.
    """

    kind: Kind
    name: str
    rows: tuple[Row, ...]
    prefixes: tuple[str, ...] = ("",)
    aliases: Mapping[str, str] = field(default_factory=dict)

    def to_official(self, name: str) -> str | None:
        """The official name of one of theirs, `None` for a name that is not in the table."""
        return self._inverse.translate(self.aliases.get(name, name))

    def from_official(self, name: str) -> str | None:
        """Their name of an official one, `None` for a name that is not in the table."""
        return self._forward.translate(name)

    @cached_property
    def _forward(self) -> "_Translation":
        return _Translation(self.rows)

    @cached_property
    def _inverse(self) -> "_Translation":
        return _Translation((theirs, official) for official, theirs in self.rows)


class _Translation:
    """Rows in one direction. Most names that are asked for are in no row, and that is what must be quick."""

    def __init__(self, rows: Iterable[Row]) -> None:
        # Rows by their names with every number masked, which few rows have in common.
        self._rows: dict[str, list[tuple[re.Pattern[str], str]]] = {}
        for source, target in rows:
            pattern = re.compile(re.escape(source).replace(r"\*", _NUMBER))
            self._rows.setdefault(_masked(source), []).append((pattern, target))

    def translate(self, name: str) -> str | None:
        for pattern, target in self._rows.get(_masked(name), ()):
            if match := pattern.fullmatch(name):
                return target.replace("*", "{}").format(*match.groups())
        return None


def _masked(name: str) -> str:
    return _PART.sub("*", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """A table that a file follows, with the prefix before its names and the number of names that are in the table."""

    table: NameTable
    prefix: str
    num_matches: int

    @property
    def kind(self) -> Kind:
        return self.table.kind

    def __str__(self) -> str:
        return self.table.name + (f" names, prefix {self.prefix!r}" if self.prefix else " names")


def recognise(names: Collection[str], tables: Sequence[NameTable] | None = None) -> tuple[Naming, ...]:
    """The tables that these names follow, at most one for each kind, best match first; a name counts for one only."""
    matches = [
        (table, prefix, {name for name in names if _follows(name, table, prefix)})
        for table in (TABLES if tables is None else tables)
        for prefix in table.prefixes
    ]
    found: list[Naming] = []
    while matches:
        table, prefix, matched = max(matches, key=lambda match: len(match[2]))
        if len(matched) < _MIN_MATCHES:
            break
        found.append(Naming(table=table, prefix=prefix, num_matches=len(matched)))
        matches = [(each, before, rest - matched) for each, before, rest in matches if each.kind != table.kind]
    return tuple(found)


def official_names(names: Collection[str], namings: Sequence[Naming]) -> dict[str, str]:
    """Each name in a file -> its official name; one that no table knows keeps its own, without the prefix.

    Raises `CheckpointError` where two names of a file mean the same tensor.
    """
    renamed: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in names:
        official = _official_name(name, names, namings)
        if official in taken:
            raise CheckpointError(
                f"two tensors, {quoted(taken[official])} and {quoted(name)}, are both {quoted(official)}, expected one"
            )
        renamed[name] = official
        taken[official] = name
    return renamed


def _follows(name: str, table: NameTable, prefix: str) -> bool:
    return name.startswith(prefix) and table.to_official(name[len(prefix) :]) is not None


def _official_name(name: str, names: Collection[str], namings: Sequence[Naming]) -> str:
    for naming in namings:
        if not name.startswith(naming.prefix):
            continue
        bare = name[len(naming.prefix) :]
        first = naming.table.aliases.get(bare)
        if first is not None and naming.prefix + first in names:
            return bare
        if official := naming.table.to_official(bare):
            return official
        if naming.prefix:
            return bare
    return name


def _join(*parts: Iterable[str]) -> tuple[str, ...]:
    """Every combination of the parts, joined by dots."""
    return tuple(".".join(names) for names in product(*parts))


def _same(names: Iterable[str]) -> tuple[Row, ...]:
    return tuple((name, name) for name in names)


def _below(layers: Sequence[Row], names: Sequence[Row]) -> tuple[Row, ...]:
    """Every row of `names` below every row of `layers`."""
    return tuple(
        (f"{layer}.{name}", f"{their_layer}.{their_name}")
        for (layer, their_layer), (name, their_name) in product(layers, names)
    )


_LAYER = ("weight", "bias")

_TRANSFORMER = (
    *_join(("patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"), _LAYER),
    *_join(("time_projection.1", "head.head"), _LAYER),
    "head.modulation",
    "blocks.*.modulation",
    *_join(("blocks.*",), ("norm3", "ffn.0", "ffn.2"), _LAYER),
    *_join(("blocks.*",), ("self_attn", "cross_attn"), ("q", "k", "v", "o"), _LAYER),
    *_join(("blocks.*",), ("self_attn", "cross_attn"), ("norm_q", "norm_k"), ("weight",)),
)

_VAE_RESIDUAL = (*_join(("residual.0", "residual.3"), ("gamma",)), *_join(("residual.2", "residual.6"), _LAYER))
_VAE = (
    *_join(("conv1", "conv2"), _LAYER),
    *_join(("encoder", "decoder"), ("conv1", "head.2"), _LAYER),
    *_join(("encoder", "decoder"), ("head.0",), ("gamma",)),
    *_join(("encoder", "decoder"), ("middle.0", "middle.2"), _VAE_RESIDUAL),
    *_join(("encoder", "decoder"), ("middle.1",), ("norm.gamma", *_join(("to_qkv", "proj"), _LAYER))),
    *_join(
        ("encoder.downsamples.*", "decoder.upsamples.*"),
        (*_VAE_RESIDUAL, *_join(("shortcut", "resample.1", "time_conv"), _LAYER)),
    ),
)

# Official layer, diffusers' layer. The trap: the norm with weights is the third here and the second there.
_DIFFUSERS_LAYERS = (
    ("patch_embedding", "patch_embedding"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("head.head", "proj_out"),
    ("blocks.*.norm3", "blocks.*.norm2"),
    ("blocks.*.ffn.0", "blocks.*.ffn.net.0.proj"),
    ("blocks.*.ffn.2", "blocks.*.ffn.net.2"),
)
_DIFFUSERS_TRANSFORMER = (
    ("head.modulation", "scale_shift_table"),
    ("blocks.*.modulation", "blocks.*.scale_shift_table"),
    *_below(_DIFFUSERS_LAYERS, _same(_LAYER)),
    *_below(
        (("blocks.*.self_attn", "blocks.*.attn1"), ("blocks.*.cross_attn", "blocks.*.attn2")),
        (
            *_below((("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0")), _same(_LAYER)),
            ("norm_q.weight", "norm_q.weight"),
            ("norm_k.weight", "norm_k.weight"),
        ),
    ),
)

# The official decoder numbers its layers through; diffusers counts levels of three residual blocks, an upsampling each.
_DIFFUSERS_RESIDUAL = (
    *_below((("residual.0", "norm1"), ("residual.3", "norm2")), _same(("gamma",))),
    *_below((("residual.2", "conv1"), ("residual.6", "conv2"), ("shortcut", "conv_shortcut")), _same(_LAYER)),
)
_DIFFUSERS_RESAMPLE = _same(_join(("resample.1", "time_conv"), _LAYER))
_DIFFUSERS_HALF = (
    *_below((("conv1", "conv_in"), ("head.2", "conv_out")), _same(_LAYER)),
    ("head.0.gamma", "norm_out.gamma"),
    *_below((("middle.0", "mid_block.resnets.0"), ("middle.2", "mid_block.resnets.1")), _DIFFUSERS_RESIDUAL[:-2]),
    *_below((("middle.1", "mid_block.attentions.0"),), _same(("norm.gamma", *_join(("to_qkv", "proj"), _LAYER)))),
)
_DIFFUSERS_VAE = (
    *_below((("conv1", "quant_conv"), ("conv2", "post_quant_conv")), _same(_LAYER)),
    *_below(_same(("encoder", "decoder")), _DIFFUSERS_HALF),
    *_below((("encoder.downsamples.*", "encoder.down_blocks.*"),), (*_DIFFUSERS_RESIDUAL, *_DIFFUSERS_RESAMPLE)),
    *_below(
        tuple(
            (f"decoder.upsamples.{4 * level + block}", f"decoder.up_blocks.{level}.resnets.{block}")
            for level, block in product(range(4), range(3))
        ),
        _DIFFUSERS_RESIDUAL,
    ),
    *_below(
        tuple((f"decoder.upsamples.{4 * level + 3}", f"decoder.up_blocks.{level}.upsamplers.0") for level in range(3)),
        _DIFFUSERS_RESAMPLE,
    ),
)

# Official, transformers.
_TEXT_ENCODER = (
    ("token_embedding.weight", "shared.weight"),
    ("blocks.*.norm1.weight", "encoder.block.*.layer.0.layer_norm.weight"),
    ("blocks.*.attn.q.weight", "encoder.block.*.layer.0.SelfAttention.q.weight"),
    ("blocks.*.attn.k.weight", "encoder.block.*.layer.0.SelfAttention.k.weight"),
    ("blocks.*.attn.v.weight", "encoder.block.*.layer.0.SelfAttention.v.weight"),
    ("blocks.*.attn.o.weight", "encoder.block.*.layer.0.SelfAttention.o.weight"),
    (
        "blocks.*.pos_embedding.embedding.weight",
        "encoder.block.*.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    ("blocks.*.norm2.weight", "encoder.block.*.layer.1.layer_norm.weight"),
    ("blocks.*.ffn.gate.0.weight", "encoder.block.*.layer.1.DenseReluDense.wi_0.weight"),
    ("blocks.*.ffn.fc1.weight", "encoder.block.*.layer.1.DenseReluDense.wi_1.weight"),
    ("blocks.*.ffn.fc2.weight", "encoder.block.*.layer.1.DenseReluDense.wo.weight"),
    ("norm.weight", "encoder.final_layer_norm.weight"),
)
# Official, llama.cpp.
_TEXT_ENCODER_GGUF = _below(
    (
        ("token_embedding", "token_embd"),
        ("blocks.*.norm1", "enc.blk.*.attn_norm"),
        ("blocks.*.attn.q", "enc.blk.*.attn_q"),
        ("blocks.*.attn.k", "enc.blk.*.attn_k"),
        ("blocks.*.attn.v", "enc.blk.*.attn_v"),
        ("blocks.*.attn.o", "enc.blk.*.attn_o"),
        ("blocks.*.pos_embedding.embedding", "enc.blk.*.attn_rel_b"),
        ("blocks.*.norm2", "enc.blk.*.ffn_norm"),
        ("blocks.*.ffn.gate.0", "enc.blk.*.ffn_gate"),
        ("blocks.*.ffn.fc1", "enc.blk.*.ffn_up"),
        ("blocks.*.ffn.fc2", "enc.blk.*.ffn_down"),
        ("norm", "enc.output_norm"),
    ),
    _same(("weight",)),
)

TRANSFORMER_OFFICIAL = NameTable(
    kind="transformer",
    name="official",
    rows=_same(_TRANSFORMER),
    prefixes=("", "model.diffusion_model.", "diffusion_model.", "model."),
)
TEXT_ENCODER_OFFICIAL = NameTable(
    kind="text_encoder", name="official", rows=_same(official for official, _ in _TEXT_ENCODER)
)
TEXT_ENCODER_TRANSFORMERS = NameTable(
    kind="text_encoder",
    name="transformers",
    rows=_TEXT_ENCODER,
    aliases={"encoder.embed_tokens.weight": "shared.weight"},
)
TEXT_ENCODER_GGUF = NameTable(kind="text_encoder", name="llama.cpp", rows=_TEXT_ENCODER_GGUF)
TRANSFORMER_DIFFUSERS = NameTable(
    kind="transformer", name="diffusers", rows=_DIFFUSERS_TRANSFORMER, prefixes=("", "transformer.")
)
VAE_OFFICIAL = NameTable(
    kind="vae", name="official", rows=_same(_VAE), prefixes=("", "model.", "vae.", "first_stage_model.")
)
VAE_DIFFUSERS = NameTable(kind="vae", name="diffusers", rows=_DIFFUSERS_VAE)

# Of two tables that fit equally well, as the plain names of a GGUF do, the first one counts.
TABLES = (
    TRANSFORMER_OFFICIAL,
    TRANSFORMER_DIFFUSERS,
    TEXT_ENCODER_OFFICIAL,
    TEXT_ENCODER_TRANSFORMERS,
    TEXT_ENCODER_GGUF,
    VAE_OFFICIAL,
    VAE_DIFFUSERS,
)
