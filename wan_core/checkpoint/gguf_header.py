"""The header of a GGUF file, read and checked before anything relies on it; no package is needed for it.

Layout, little endian: "GGUF", version (u32), number of tensors and of fields (u64 each); the fields, each a name, a
type and a value; for each tensor its name, rank (u32), sizes (u64 each, the innermost first), type (u32) and offset
(u64); padding to `general.alignment`; the data. A text is its length (u64) and its bytes.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

ggml has no more than four dimensions: a tensor with more may be stored in another shape, its own standing in the field
`comfy.gguf.orig_shape.<name>`. Nothing is allocated on a file's word, and no list is walked that the file is too short
for.
"""

import math
import mmap
import os
import stat
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import CheckpointError
from .gguf_blocks import BLOCK_FORMATS
from .header import Header, Stamp, TensorInfo
from .sentences import label, quoted

MAGIC = b"GGUF"

_VERSIONS = (2, 3)
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
_DEFAULT_ALIGNMENT = 32
_MAX_RANK = 8
# Fields, tensors and what is in lists, together. The vocabulary of a UMT5 encoder is a quarter of a million.
_MAX_ITEMS = 1_500_000
_MAX_TEXT_BYTES = 2**24

# Type number -> ggml's name, and torch's name and bytes for what is stored number by number.
_TYPES: Mapping[int, str] = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
_PLAIN_TYPES: Mapping[int, tuple[str, int]] = {
    0: ("float32", 4), 1: ("float16", 2), 30: ("bfloat16", 2), 28: ("float64", 8),
    24: ("int8", 1), 25: ("int16", 2), 26: ("int32", 4), 27: ("int64", 8),
}  # fmt: skip

_NUMBERS: Mapping[int, struct.Struct] = {
    kind: struct.Struct("<" + form)
    for kind, form in (
        (0, "B"),
        (1, "b"),
        (2, "H"),
        (3, "h"),
        (4, "I"),
        (5, "i"),
        (6, "f"),
        (7, "?"),
        (10, "Q"),
        (11, "q"),
        (12, "d"),
    )
}
_TEXT, _LIST = 8, 9
_U32, _U64 = _NUMBERS[4], _NUMBERS[10]

Value = str | int | float | bool | Sequence[str] | Sequence[int] | Sequence[float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A tensor as the file lists it, its shape in torch's order."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


def read_gguf(path: Path) -> Header:
    """Read and check the header of a GGUF file; raises `CheckpointError` for the first thing that is wrong."""
    fields, stored, first, stamp = _parse(path, lambda name: name.startswith(_ORIGINAL_SHAPE))
    if isinstance(count := fields.get("split.count"), int) and count > 1:
        raise CheckpointError(
            f"{label(path)} is one of {count} parts of a GGUF; join them with `llama-gguf-split --merge`"
        )
    tensors = {}
    for each in stored:
        if each.name in tensors:
            raise CheckpointError(f"{label(path)} is damaged: it holds {quoted(each.name)} twice")
        tensors[each.name] = _tensor(path, each, fields.get(_ORIGINAL_SHAPE + each.name), first)
    _check_ranges(path, tensors, stamp.size)
    texts = {name: value for name, value in fields.items() if isinstance(value, str)}
    return Header(tensors=tensors, metadata=texts, stamp=stamp, format="GGUF")


def read_fields(path: Path, names: Sequence[str]) -> dict[str, Value]:
    """Values of some fields, lists among them; those that the file lacks are left out."""
    fields, *_ = _parse(path, lambda name: name in names)
    return {name: fields[name] for name in names if name in fields}


def _parse(path: Path, wants_list: Callable[[str], bool]) -> tuple[dict[str, Value], tuple[_Stored, ...], int, Stamp]:
    """Fields (lists only where wanted), tensors, where the data begin, and the file's stamp."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{label(path)} is not a regular file")
        with path.open("rb") as file:
            stamp = Stamp.of(os.fstat(file.fileno()))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return *_read(_Cursor(data, path), wants_list), stamp
    except OSError as error:
        raise CheckpointError(f"{label(path)} cannot be read: {error.strerror or error}") from error


class _Cursor:
    """A place in the file that moves on with each value; every length is held against what is left of the file."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at, self._items = data, path, 0, 0

    def number(self, form: struct.Struct) -> int | float | bool:
        at = self._skip(form.size)
        return form.unpack_from(self.data, at)[0]

    def text(self) -> str:
        size = self.number(_U64)
        if size > _MAX_TEXT_BYTES:
            raise self.damaged(f"a text of its header is {size} bytes long, expected at most {_MAX_TEXT_BYTES}")
        at = self._skip(size)
        try:
            return self.data[at : at + size].decode()
        except UnicodeDecodeError as error:
            raise self.damaged("a text of its header is not UTF-8") from error

    def count(self, least_bytes: int) -> int:
        """A number of things to come, each of which takes at least so many bytes."""
        count = self.number(_U64)
        self._items += count
        if count * least_bytes > len(self.data) - self.at or self._items > _MAX_ITEMS:
            raise self.damaged(f"its header announces {count} entries, more than it has room for")
        return count

    def list(self, *, keep: bool) -> Value:
        kind = self.number(_U32)
        if form := _NUMBERS.get(kind):
            length = self.count(form.size) if keep else self.number(_U64)
            at = self._skip(length * form.size)
            return [each for (each,) in form.iter_unpack(self.data[at : self.at])] if keep else None
        if kind != _TEXT:
            raise self.damaged(f"a list of its header is of type {kind}, expected numbers or texts")
        length = self.count(_U64.size)
        if keep:
            return [self.text() for _ in range(length)]
        for _ in range(length):
            self._skip(self.number(_U64))
        return None

    def damaged(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{label(self.path)} is damaged: {problem}")

    def _skip(self, size: int) -> int:
        """Where we are, before moving on by `size` bytes."""
        at, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise CheckpointError(
                f"{label(self.path)} is truncated: its header does not end within its {len(self.data)} bytes"
            )
        return at


def _read(cursor: _Cursor, wants_list: Callable[[str], bool]) -> tuple[dict[str, Value], tuple[_Stored, ...], int]:
    cursor.at = len(MAGIC)
    version = cursor.number(_U32)
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
        raise CheckpointError(
            f"{label(cursor.path)} is a GGUF "
            + ("of a big-endian machine" if swapped else f"of version {version}")
            + f", expected version {' or '.join(map(str, _VERSIONS))}, little endian"
        )
    num_tensors, num_fields = cursor.count(24), cursor.count(13)
    fields: dict[str, Value] = {}
    for _ in range(num_fields):
        name = cursor.text()
        if name in fields:
            raise cursor.damaged(f"its field {quoted(name)} appears twice")
        fields[name] = _value(cursor, keep_list=wants_list(name))
    stored = tuple(_stored(cursor) for _ in range(num_tensors))
    alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**16:
        raise cursor.damaged(f"general.alignment is {quoted(alignment)}, expected {_DEFAULT_ALIGNMENT} or the like")
    return fields, stored, -(-cursor.at // alignment) * alignment


def _value(cursor: _Cursor, *, keep_list: bool) -> Value:
    kind = cursor.number(_U32)
    if form := _NUMBERS.get(kind):
        return cursor.number(form)
    if kind == _TEXT:
        return cursor.text()
    if kind == _LIST:
        return cursor.list(keep=keep_list)
    raise cursor.damaged(f"a field of its header is of the unknown type {kind}")


def _stored(cursor: _Cursor) -> _Stored:
    name, rank = cursor.text(), cursor.number(_U32)
    if rank > _MAX_RANK:
        raise cursor.damaged(f"tensor {quoted(name)} has {rank} dimensions, expected at most {_MAX_RANK}")
    sizes = [cursor.number(_U64) for _ in range(rank)]
    return _Stored(
        name=name, shape=tuple(reversed(sizes)), type=cursor.number(_U32), offset=cursor.number(_U64)
    )  # fmt: skip


def _tensor(path: Path, stored: _Stored, original: Value, first: int) -> TensorInfo:
    count = math.prod(stored.shape)
    if stored.type in _PLAIN_TYPES:
        dtype, itemsize = _PLAIN_TYPES[stored.type]
        nbytes = count * itemsize
    elif name := _TYPES.get(stored.type):
        dtype, form = name, BLOCK_FORMATS[name]
        nbytes = count // form.size * form.nbytes
        if not stored.shape or stored.shape[-1] % form.size:
            raise CheckpointError(
                f"{label(path)} is damaged: tensor {quoted(stored.name)} of shape {stored.shape} does not divide into "
                f"{name} blocks of {form.size}"
            )
    else:
        raise CheckpointError(
            f"tensor {quoted(stored.name)} of {label(path)} is of the unknown GGUF type {stored.type}, expected one "
            "such as Q4_K, Q8_0 or F16"
        )
    info = TensorInfo(
        shape=stored.shape, dtype=dtype, nbytes=nbytes, file=path, stored_as=stored.name, start=first + stored.offset
    )
    return info if original is None else replace(info, shape=_original(path, stored, original))


def _original(path: Path, stored: _Stored, original: Value) -> tuple[int, ...]:
    sizes = tuple(original) if isinstance(original, list) else ()
    if not all(isinstance(size, int) and size >= 0 for size in sizes) or math.prod(sizes) != math.prod(stored.shape):
        raise CheckpointError(
            f"{label(path)} is damaged: tensor {quoted(stored.name)} of shape {stored.shape} cannot have had the shape "
            f"{quoted(original)}"
        )
    return sizes


def _check_ranges(path: Path, tensors: Mapping[str, TensorInfo], size: int) -> None:
    """The data lie in the file, one after the other; padding between them is as it comes."""
    position = 0
    for info in sorted(tensors.values(), key=lambda info: (info.start, info.nbytes)):
        if info.start < position:
            raise CheckpointError(
                f"{label(path)} is damaged: tensor {quoted(info.stored_as)} overlaps the one before it"
            )
        position = info.start + info.nbytes
    if position > size:
        raise CheckpointError(f"{label(path)} is truncated: its header describes {position} bytes, the file has {size}")
