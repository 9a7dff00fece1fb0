"""A checkpoint: one file, a folder or shards, opened by its headers alone; its tensors are read when asked for.

Tensors go by their official names whatever the file calls them (`keys.py`), so nothing that reads one knows formats.
Opening costs the headers: no tensor is read and nothing is allocated for one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from .encoding import Encoding, read_encoding
from .formats import open_header
from .header import Header, Stamp, TensorInfo
from .keys import Kind, Naming, official_names, recognise
from .locate import Layout, locate
from .sentences import counted, label, quoted
from .stream import Reader, empty


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """The tensors of one model, or of several where a file holds more.

    tensors: by official name; a tensor that no table of `keys.py` knows goes by its own name. metadata: the texts in
    the file's header. config: `config.json` of a folder. namings: how the file names its tensors, by kind of model.
    format: of its files. encoding: how they store weights; scales are part of the tensors that they belong to.
    """

    path: Path
    layout: Layout
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    config: Mapping[str, object]
    namings: tuple[Naming, ...]
    stamps: Mapping[Path, Stamp]
    format: str
    encoding: Encoding

    @property
    def label(self) -> str:
        """Its path as it stands in sentences."""
        return label(self.path)

    @property
    def nbytes(self) -> int:
        """Stored size of all tensors, their scales included."""
        return sum(info.nbytes + (info.scale.nbytes if info.scale else 0) for info in self.tensors.values())

    def naming(self, kind: Kind) -> Naming | None:
        """How the model of this kind is named, `None` where the file holds none."""
        return next((naming for naming in self.namings if naming.kind == kind), None)

    def tensors_of(self, kind: Kind) -> Mapping[str, TensorInfo]:
        """All tensors, or those behind the prefix of this kind of model where it has one."""
        naming = self.naming(kind)
        prefix = naming.prefix if naming else ""
        return {name: info for name, info in self.tensors.items() if info.stored_as.startswith(prefix)}

    def reader(self) -> Reader:
        """A context manager that reads tensors, one after the other."""
        return Reader(self.stamps)

    def load(self, name: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """One tensor, as it is stored (float32 where that is encoded) unless a dtype is given.

        Raises `CheckpointError` for an absent name.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.label} holds no tensor {quoted(name)}")
        info = self.tensors[name]
        with self.reader() as reader:
            target = empty(info, device, dtype)
            reader.fill(info, target)
        return target


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a .safetensors, GGUF or PyTorch file, a folder with one, or one with shards and their index (or that index).

    Every header is checked against its file, and the index against the headers. Raises `CheckpointError` in one
    sentence for whatever is missing, damaged, contradictory, or of another format.
    """
    located = locate(Path(path))
    headers = {file: open_header(file) for file in located.files}
    if located.weight_map:
        _check_index(located.weight_map, headers)
    stored = _joined(headers)
    if not stored:
        raise CheckpointError(f"{label(located.path)} holds no tensors")
    metadata = {key: value for header in headers.values() for key, value in header.metadata.items()}
    stored, encoding = read_encoding(stored, metadata)
    namings = recognise(stored)
    names = official_names(stored, namings)
    return Checkpoint(
        path=located.path,
        layout=located.layout,
        tensors={names[own]: info for own, info in stored.items()},
        metadata=metadata,
        config=located.config,
        namings=namings,
        stamps={file: header.stamp for file, header in headers.items()},
        format=headers[located.files[0]].format,
        encoding=encoding,
    )


def _joined(headers: Mapping[Path, Header]) -> dict[str, TensorInfo]:
    """The tensors of all files; raises `CheckpointError` where two of them hold the same one."""
    joined: dict[str, TensorInfo] = {}
    for file, header in headers.items():
        if twice := next((name for name in header.tensors if name in joined), None):
            raise CheckpointError(
                f"{label(joined[twice].file)} and {label(file)} both hold the tensor {quoted(twice)}, expected one"
            )
        joined |= header.tensors
    return joined


def _check_index(weight_map: Mapping[str, str], headers: Mapping[Path, Header]) -> None:
    """Every tensor of the index must be in the shard it names, and every tensor of a shard in the index."""
    for file, header in headers.items():
        named = {name for name, place in weight_map.items() if place == file.name}
        if absent := sorted(named - header.tensors.keys()):
            raise CheckpointError(
                f"{label(file)} lacks {counted(len(absent), 'tensor')} that its index says it holds, "
                f"the first is {quoted(absent[0])}"
            )
        if extra := sorted(header.tensors.keys() - named):
            raise CheckpointError(
                f"{label(file)} holds {counted(len(extra), 'tensor')} that its index does not place there, "
                f"the first is {quoted(extra[0])}"
            )
