"""The tensors of a PyTorch file (`.pth`, `.pt`, `.ckpt`), found without reading them and without trusting its pickle.

Such a file is a zip without compression: a pickle that describes the tensors, and one record of raw bytes for each
storage. `torch.load` with `weights_only=True` builds nothing but tensors and plain containers, and with `mmap=True` it
maps the file, so that no tensor is read. Where a tensor's bytes are in the file follows from where its storage is in
the mapping: the records are as far apart in both. From then on it is read like any other (`stream.py`).

Files of before PyTorch 1.6 are no zips and would have to be read whole; they are refused.
"""

import os
import re
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import torch
from torch import Tensor

from ..errors import CheckpointError
from .header import Header, Stamp, TensorInfo
from .sentences import label, quoted

MAGIC = b"PK\x03\x04"

_MAX_RECORDS = 100_000
_MAX_PICKLE_BYTES = 100_000_000
# Of a record in the zip: its header, of which only the lengths of the two texts behind it are wanted.
_LOCAL_HEADER = struct.Struct("<26xHH")
# In the message of the restricted unpickler.
_FOREIGN_NAME = re.compile(r"GLOBAL (\S+)")
# What the restricted unpickler and the rebuilding of tensors raise for files that are damaged or hold something else.
_DAMAGE = (UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError)


def read_pickled(path: Path) -> Header:
    """The tensors of a PyTorch file; raises `CheckpointError` for one that is damaged or holds more than tensors."""
    try:
        with path.open("rb") as file:
            stamp = Stamp.of(os.fstat(file.fileno()))
        records = _records(path)
        content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise CheckpointError(f"{label(path)} cannot be read: {error.strerror or error}") from error
    except BadZipFile as error:
        raise CheckpointError(f"{label(path)} is truncated or damaged: it is no whole PyTorch file") from error
    except _DAMAGE as error:
        raise CheckpointError(f"{label(path)} {_what_is_wrong(error)}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{label(path)} holds a {type(content).__name__}, expected a table of tensors by their names"
        )
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    base = _base(path, tensors.values(), records)
    return Header(
        tensors={str(name): _info(path, str(name), tensor, base) for name, tensor in tensors.items()},
        metadata={},
        stamp=stamp,
        format="PyTorch",
    )


def _records(path: Path) -> set[int]:
    """Where the records of the storages begin in the file."""
    with ZipFile(path) as archive, path.open("rb") as file:
        entries = archive.infolist()
        if len(entries) > _MAX_RECORDS:
            raise CheckpointError(f"{label(path)} holds {len(entries)} records, expected at most {_MAX_RECORDS}")
        if any(entry.compress_type != ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
            raise CheckpointError(f"{label(path)} is a compressed archive, expected a file as torch.save writes it")
        for entry in entries:
            if entry.filename.endswith("/data.pkl") and entry.file_size > _MAX_PICKLE_BYTES:
                raise CheckpointError(
                    f"the pickle of {label(path)} is {entry.file_size} bytes long, expected at most {_MAX_PICKLE_BYTES}"
                )
            if entry.filename.endswith("/byteorder") and archive.read(entry) != b"little":
                raise CheckpointError(f"{label(path)} was written by a big-endian machine, expected little endian")
        return {_start(file, entry) for entry in entries if "/data/" in entry.filename}


def _start(file: BinaryIO, entry: ZipInfo) -> int:
    """Where the bytes of a record begin: behind a header that holds two texts, one of them padding."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size:
        raise BadZipFile
    return entry.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header))


def _base(path: Path, tensors: Collection[Tensor], records: Collection[int]) -> int:
    """The address of the mapping: where every storage lies as far from it as a record lies from the file's start."""
    addresses = {_address(tensor) for tensor in tensors if tensor.numel()}
    if not addresses:
        return 0
    lowest = min(addresses)
    for record in sorted(records):
        base = lowest - record
        if all(address - base in records for address in addresses):
            return base
    raise CheckpointError(f"{label(path)} is damaged: its tensors are in none of its records")


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _info(path: Path, name: str, tensor: Tensor, base: int) -> TensorInfo:
    if tensor.layout != torch.strided or tensor.is_quantized or not tensor.is_contiguous():
        raise CheckpointError(f"tensor {quoted(name)} of {label(path)} is not a plain, contiguous one")
    nbytes = tensor.numel() * tensor.element_size()
    return TensorInfo(
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        nbytes=nbytes,
        file=path,
        stored_as=name,
        start=_address(tensor) - base + tensor.storage_offset() * tensor.element_size() if nbytes else 0,
    )


def _what_is_wrong(error: Exception) -> str:
    if asked := _FOREIGN_NAME.search(str(error)):
        return f"holds more than tensors ({quoted(asked[1])}), which would run code of its author; it is not opened"
    lines = str(error).strip().splitlines()
    return f"is damaged, or no PyTorch file of tensors ({quoted(lines[0] if lines else type(error).__name__)})"
