"""The file formats that checkpoints come in, told apart by how a file begins, whatever it is called.

Each gives the same: a `Header` with every tensor's shape, stored dtype and place in the file. From there on a tensor is
bytes to be decoded (`decode.py`), and nothing else knows formats.
"""

import stat
from pathlib import Path

from ..errors import CheckpointError
from . import gguf_header, pickled
from .gguf_header import read_gguf
from .header import Header, read_header
from .pickled import read_pickled
from .sentences import label

# What a checkpoint's file may be called, those first that are taken where a folder holds several kinds.
SUFFIXES = (".safetensors", ".sft", ".gguf", ".pth", ".pt")

_READERS = {gguf_header.MAGIC: read_gguf, pickled.MAGIC: read_pickled}


def open_header(path: Path) -> Header:
    """Read and check the header of a file; raises `CheckpointError` for the first thing that is wrong."""
    try:
        # A pipe would block when it is opened, so the kind of file comes first.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{label(path)} is not a regular file")
        with path.open("rb") as file:
            beginning = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{label(path)} cannot be read: {error.strerror or error}") from error
    return _READERS.get(beginning, read_header)(path)
