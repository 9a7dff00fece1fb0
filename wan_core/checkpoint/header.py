"""The header of a safetensors file, read and checked before anything relies on it.

Layout: 8 bytes little endian, the header's length; the header, a JSON object that maps each tensor's name to its dtype,
shape and byte range; then the data, to which the ranges refer, without gaps or overlaps.
https://github.com/huggingface/safetensors#format

Nothing is allocated on a file's word: sizes are compared with the file's own before they are used. This module reads
headers only; tensors are read by `stream.py`.
"""

import math
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import CheckpointError
from .foreign import describe_foreign
from .json_text import MAX_JSON_BYTES, parse_object
from .sentences import label, quoted

# The format's name of a dtype -> torch's name and bits per element.
DTYPES: Mapping[str, tuple[str, int]] = {
    "BOOL": ("bool", 8), "U8": ("uint8", 8), "I8": ("int8", 8), "U16": ("uint16", 16), "I16": ("int16", 16),
    "U32": ("uint32", 32), "I32": ("int32", 32), "U64": ("uint64", 64), "I64": ("int64", 64),
    "F64": ("float64", 64), "F32": ("float32", 32), "F16": ("float16", 16), "BF16": ("bfloat16", 16),
    "F8_E4M3": ("float8_e4m3fn", 8), "F8_E5M2": ("float8_e5m2", 8), "F8_E8M0": ("float8_e8m0fnu", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8), "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8), "C64": ("complex64", 64),
    "F4": ("float4_e2m1fn_x2", 4), "F6_E2M3": ("float6_e2m3", 6), "F6_E3M2": ("float6_e3m2", 6),
}  # fmt: skip
FLOATS = ("float64", "float32", "float16", "bfloat16")

_LENGTH_BYTES = 8
_MAX_RANK = 64
_MAX_SIZE = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor of a checkpoint, as its file describes it.

    dtype: torch's name of the stored dtype, or ggml's of its blocks ("Q4_K"). nbytes: stored size. stored_as: the
    tensor's name in `file`. start: where its data begin in `file`, in bytes. scale: the tensor that holds what the
    stored numbers are multiplied by to get the values, one number or one for each row.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: Path
    stored_as: str
    start: int
    scale: "TensorInfo | None" = None


@dataclass(frozen=True, slots=True)
class Stamp:
    """Size and modification time of a file, to notice that it has changed since its header was read."""

    size: int
    modified: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file says that it holds, once that was found to be possible. format: as people call it."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    stamp: Stamp
    format: str = "safetensors"


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; raises `CheckpointError` for the first thing that is wrong."""
    try:
        # A pipe would block when it is opened, so the kind of file comes first.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{label(path)} is not a regular file")
        with path.open("rb") as file:
            stamp = Stamp.of(os.fstat(file.fileno()))
            raw = _header_bytes(path, file, stamp.size)
    except OSError as error:
        raise CheckpointError(f"{label(path)} cannot be read: {error.strerror or error}") from error
    entries = parse_object(raw, f"the header of {label(path)}")
    metadata = _metadata(path, entries.pop("__metadata__", None))
    first = _LENGTH_BYTES + len(raw)
    tensors = {name: _tensor(path, name, entry, first) for name, entry in entries.items()}
    _check_ranges(path, tensors.values(), first, stamp.size)
    return Header(tensors=tensors, metadata=metadata, stamp=stamp)


def _header_bytes(path: Path, file: BinaryIO, size: int) -> bytes:
    start = file.read(64)
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if _LENGTH_BYTES <= size and 0 < length <= min(MAX_JSON_BYTES, size - _LENGTH_BYTES):
        file.seek(_LENGTH_BYTES)
        return file.read(length)
    if foreign := describe_foreign(path, start):
        raise CheckpointError(f"{label(path)} {foreign}")
    if size < _LENGTH_BYTES:
        raise CheckpointError(f"{label(path)} is {size} bytes long, too short for a safetensors file")
    if length == 0:
        raise CheckpointError(f"{label(path)} begins with zeros: no safetensors file, or an unfinished download")
    raise CheckpointError(
        f"{label(path)} claims a header of {length} bytes, expected at most {MAX_JSON_BYTES} in a file of {size} "
        "bytes: it is truncated, or no safetensors file"
    )


def _metadata(path: Path, entry: object) -> Mapping[str, str]:
    if entry is None:
        return {}
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise CheckpointError(f"the metadata of {label(path)} are damaged: expected texts only")
    return entry


def _tensor(path: Path, name: str, entry: object, first: int) -> TensorInfo:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    problem = None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        problem = f"has the unknown dtype {quoted(dtype)}"
    elif not _are_sizes(shape) or len(shape) > _MAX_RANK:
        problem = f"has the impossible shape {quoted(shape)}"
    elif not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        problem = f"has the impossible byte range {quoted(offsets)}"
    elif math.prod(shape) * DTYPES[dtype][1] != 8 * (offsets[1] - offsets[0]):
        problem = f"of shape {quoted(shape)} and dtype {dtype} cannot fill {offsets[1] - offsets[0]} bytes"
    if problem:
        raise CheckpointError(f"{label(path)} is damaged: tensor {quoted(name)} {problem}")
    return TensorInfo(
        shape=tuple(shape),
        dtype=DTYPES[dtype][0],
        nbytes=offsets[1] - offsets[0],
        file=path,
        stored_as=name,
        start=first + offsets[0],
    )


def _are_sizes(values: object) -> bool:
    # `type`, since to Python True is an integer as well.
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= _MAX_SIZE for value in values)


def _check_ranges(path: Path, tensors: Iterable[TensorInfo], first: int, size: int) -> None:
    """The data of the tensors must fill the file to its end, one after the other."""
    ordered = sorted(tensors, key=lambda info: (info.start, info.nbytes))
    end = max((info.start + info.nbytes for info in ordered), default=first)
    if end > size:
        raise CheckpointError(f"{label(path)} is truncated: its header describes {end} bytes, the file has {size}")
    position = first
    for info in ordered:
        if info.start != position:
            relation = "overlaps the one before it" if info.start < position else "does not follow the one before it"
            raise CheckpointError(f"{label(path)} is damaged: tensor {quoted(info.stored_as)} {relation}")
        position += info.nbytes
    if position != size:
        raise CheckpointError(f"{label(path)} is damaged: {size - position} bytes follow its last tensor")
