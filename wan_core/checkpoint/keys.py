"""How tensors are named: one table for each format, from the official names to the format's own, invertible.

A row is a pair of whole names in which `*` stands for one number (a layer), so a name either is one of a table's or it
is not: nothing is guessed and nothing is replaced inside a name. A file may put one prefix before all of its names.
Which table a file follows is found by counting, so that a file with some names missing is still recognised.

The official names are those of the reference implementation's modules, and of ours. A format is added by its rows.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Literal

from ..errors import CheckpointError
from .sentences import quoted

Kind = Literal["transformer", "text_encoder", "vae"]
Row = tuple[str, str]

_NUMBER = "(0|[1-9][0-9]{0,3})"
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
        name = self.aliases.get(name, name)
        return _translate(name, tuple(row[1] for row in self.rows), tuple(row[0] for row in self.rows))

    def from_official(self, name: str) -> str | None:
        """Their name of an official one, `None` for a name that is not in the table."""
        return _translate(name, tuple(row[0] for row in self.rows), tuple(row[1] for row in self.rows))


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
    """The tables that these names follow, at most one for each kind, best match first."""
    best: dict[Kind, Naming] = {}
    for table in TABLES if tables is None else tables:
        for prefix in table.prefixes:
            inside = (name[len(prefix) :] for name in names if name.startswith(prefix))
            matches = sum(table.to_official(name) is not None for name in inside)
            if matches >= _MIN_MATCHES and (table.kind not in best or matches > best[table.kind].num_matches):
                best[table.kind] = Naming(table=table, prefix=prefix, num_matches=matches)
    return tuple(sorted(best.values(), key=lambda naming: -naming.num_matches))


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


def _translate(name: str, sources: tuple[str, ...], targets: tuple[str, ...]) -> str | None:
    match = _matcher(sources).fullmatch(name)
    if match is None:
        return None
    row = int(match.lastgroup.removeprefix("row"))
    # The groups of a row's numbers come right after the group of the row itself.
    numbers = iter(match.groups()[match.lastindex :])
    return re.sub(r"\*", lambda _: next(numbers), targets[row])


@cache
def _matcher(patterns: tuple[str, ...]) -> re.Pattern[str]:
    rows = (re.escape(pattern).replace(r"\*", _NUMBER) for pattern in patterns)
    return re.compile("|".join(f"(?P<row{i}>{row})" for i, row in enumerate(rows)))


def _join(*parts: Iterable[str]) -> tuple[str, ...]:
    """Every combination of the parts, joined by dots."""
    return tuple(".".join(names) for names in product(*parts))


def _same(names: Iterable[str]) -> tuple[Row, ...]:
    return tuple((name, name) for name in names)


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
VAE_OFFICIAL = NameTable(
    kind="vae", name="official", rows=_same(_VAE), prefixes=("", "model.", "vae.", "first_stage_model.")
)

TABLES = (TRANSFORMER_OFFICIAL, TEXT_ENCODER_OFFICIAL, TEXT_ENCODER_TRANSFORMERS, VAE_OFFICIAL)
