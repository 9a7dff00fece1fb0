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
from dataclasses import dataclass
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

_MAX_PICKLE_BYTES = 100_000_000
# Of a record in the zip: its header, of which only the lengths of the two texts behind it are wanted.
_LOCAL_HEADER = struct.Struct("<26xHH")
# In the message of the restricted unpickler.
_FOREIGN_NAME = re.compile(r"GLOBAL (\S+)")
# What reading the tables of a damaged zip raises.
_ZIP_DAMAGE = (BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, OverflowError, struct.error)
# What the restricted unpickler and the rebuilding of tensors raise for files that are damaged or hold something else.
_DAMAGE = (
    UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OSError,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Archive:
    """The zip around the tensors. records: where the bytes of storages begin -> their sizes. order: of their bytes."""

    stamp: Stamp
    entries: tuple[ZipInfo, ...]
    records: Mapping[int, int]
    order: bytes

    @classmethod
    def of(cls, path: Path) -> "_Archive":
        try:
            with path.open("rb") as file, ZipFile(file) as archive:
                entries = archive.infolist()
                return cls(
                    stamp=Stamp.of(os.fstat(file.fileno())),
                    entries=tuple(entries),
                    records={
                        _start(file, entry): entry.file_size
                        for entry in entries
                        if "/data/" in entry.filename and entry.file_size
                    },
                    order=b"".join(archive.read(entry) for entry in entries if entry.filename.endswith("/byteorder")),
                )
        except OSError as error:
            raise CheckpointError(f"{label(path)} cannot be read: {error.strerror or error}") from error
        except _ZIP_DAMAGE as error:
            raise CheckpointError(f"{label(path)} is truncated or damaged: it is no whole PyTorch file") from error

    def check(self, path: Path) -> None:
        """Raise `CheckpointError` for anything but a plain archive of this machine's byte order."""
        if any(entry.compress_type != ZIP_STORED or entry.file_size != entry.compress_size for entry in self.entries):
            raise CheckpointError(f"{label(path)} is a compressed archive, expected a file as torch.save writes it")
        if self.order not in (b"", b"little"):
            raise CheckpointError(f"{label(path)} was written by a big-endian machine, expected little endian")
        size = max((entry.file_size for entry in self.entries if entry.filename.endswith("/data.pkl")), default=0)
        if size > _MAX_PICKLE_BYTES:
            raise CheckpointError(
                f"the pickle of {label(path)} is {size} bytes long, expected at most {_MAX_PICKLE_BYTES}"
            )


def read_pickled(path: Path) -> Header:
    """The tensors of a PyTorch file; raises `CheckpointError` for one that is damaged or holds more than tensors."""
    archive = _Archive.of(path)
    archive.check(path)
    tensors = _load(path)
    base = _base(path, [tensor for tensor in tensors.values() if tensor.untyped_storage().nbytes()], archive.records)
    infos = {name: _info(path, name, tensor, base) for name, tensor in tensors.items()}
    return Header(tensors=infos, metadata={}, stamp=archive.stamp, format="PyTorch")


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors, views of the mapped file."""
    try:
        content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except _DAMAGE as error:
        raise CheckpointError(f"{label(path)} {_what_is_wrong(error)}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{label(path)} holds a {type(content).__name__}, expected a table of tensors by their names"
        )
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or not tensor.is_contiguous():
            raise CheckpointError(f"tensor {quoted(name)} of {label(path)} is not a plain, contiguous one")
    return tensors


def _start(file: BinaryIO, entry: ZipInfo) -> int:
    """Where the bytes of a record begin: behind a header that holds two texts, one of them padding."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size:
        raise BadZipFile
    return entry.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header))


def _base(path: Path, tensors: Collection[Tensor], records: Mapping[int, int]) -> int:
    """The address of the mapping, as far from each storage as the file's start is from its record.

    Raises `CheckpointError` unless storages and records belong together one by one.
    """
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    pairs = list(zip(sorted(storages.items()), sorted(records.items()), strict=False))
    bases = {address - start for (address, _), (start, _) in pairs}
    sizes_fit = all(nbytes == size for (_, nbytes), (_, size) in pairs)
    if len(storages) != len(records) or len(bases) > 1 or not sizes_fit:
        raise CheckpointError(f"{label(path)} is damaged, or holds more than one table of tensors")
    return bases.pop() if bases else 0


def _info(path: Path, name: str, tensor: Tensor, base: int) -> TensorInfo:
    nbytes = tensor.numel() * tensor.element_size()
    return TensorInfo(
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        nbytes=nbytes,
        file=path,
        stored_as=name,
        start=tensor.data_ptr() - base if nbytes else 0,
    )


def _what_is_wrong(error: Exception) -> str:
    if asked := _FOREIGN_NAME.search(str(error)):
        return f"holds more than tensors ({quoted(asked[1])}), which would run code of its author; it is not opened"
    lines = str(error).strip().splitlines()
    return f"is damaged, or no PyTorch file of tensors ({quoted(lines[0] if lines else type(error).__name__)})"
