"""The sentencepiece model of a T5 encoder, put together again from the fields of its GGUF file.

llama.cpp's converter takes a `spiece.model` apart: pieces, scores and types become the lists `tokenizer.ggml.tokens`,
`.scores` and `.token_type`, the normaliser's table the bytes `.precompiled_charsmap`. The types are sentencepiece's
own; pieces that only fill up the embedding are "unused", which encoding never produces. Without the normaliser's table
other characters would reach the pieces than in training, so a file that lacks it counts as one without a tokenizer.

The model is a protobuf message, written here field by field:
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from ..errors import CheckpointError
from .gguf_header import Value, read_fields
from .sentences import label

_PREFIX = "tokenizer.ggml."
_LISTS = ("tokens", "scores", "token_type", "precompiled_charsmap")
_NAMES = (*_LISTS, "model", "add_space_prefix", "remove_extra_whitespaces", "eos_token_id", "padding_token_id",
          "unknown_token_id")  # fmt: skip
_WANTED_MODEL = "t5"
_BYTE_PIECES = 256
_BYTE_TYPE = 6
_UNIGRAM = 1


def has_vocabulary(path: Path) -> bool:
    """Whether a GGUF file holds all that a sentencepiece model of T5 needs."""
    fields = _fields(path, ("model", *_LISTS))
    return fields.get("model") == _WANTED_MODEL and all(fields.get(name) for name in _LISTS)


def rebuild_vocabulary(path: Path) -> bytes:
    """The sentencepiece model of a GGUF file; raises `CheckpointError` for lists that do not belong together."""
    fields = _fields(path, _NAMES)
    tokens, scores, types, table = (fields.get(name) for name in _LISTS)
    if not _are_pieces(tokens, scores, types) or not _are_bytes(table):
        raise CheckpointError(f"the tokenizer in {label(path)} is damaged: its lists do not fit; give another one")
    pieces = b"".join(_field(1, _piece(*each)) for each in zip(tokens, scores, types, strict=True))
    has_bytes = types.count(_BYTE_TYPE) == _BYTE_PIECES
    trainer = (
        _number(3, _UNIGRAM) + _number(4, len(tokens)) + _number(35, int(has_bytes))
        + _number(40, _id(fields, "unknown_token_id", 2)) + _number(41, -1)
        + _number(42, _id(fields, "eos_token_id", 1)) + _number(43, _id(fields, "padding_token_id", 0))
    )  # fmt: skip
    normaliser = (
        _field(1, b"nmt_nfkc") + _field(2, bytes(byte % 256 for byte in table))
        + _number(3, int(fields.get("add_space_prefix", True)))
        + _number(4, int(fields.get("remove_extra_whitespaces", True))) + _number(5, 1)
    )  # fmt: skip
    return pieces + _field(2, trainer) + _field(3, normaliser)


def _fields(path: Path, names: tuple[str, ...]) -> dict[str, Value]:
    fields = read_fields(path, [_PREFIX + name for name in names])
    return {name.removeprefix(_PREFIX): value for name, value in fields.items()}


def _are_pieces(tokens: Value, scores: Value, types: Value) -> bool:
    lists = ((tokens, str), (scores, float), (types, int))
    return all(isinstance(each, list) and all(isinstance(value, kind) for value in each) for each, kind in lists) and (
        len(tokens) == len(scores) == len(types)
    )


def _are_bytes(table: Value) -> bool:
    # Some writers take bytes for signed ones.
    return isinstance(table, list) and all(isinstance(value, int) and -128 <= value < 256 for value in table)


def _id(fields: dict[str, Value], name: str, default: int) -> int:
    value = fields.get(name, default)
    return value if isinstance(value, int) else default


def _piece(token: str, score: float, kind: int) -> bytes:
    return _field(1, token.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind)


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes, text or another message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    # Negative numbers are written as 64 bits.
    return _varint(number << 3) + _varint(value % 2**64)


def _varint(value: int) -> bytes:
    return bytes(_groups(value))


def _groups(value: int) -> Iterator[int]:
    """Seven bits at a time, the lowest first, each but the last marked."""
    while value >= 128:
        yield value & 127 | 128
        value >>= 7
    yield value
