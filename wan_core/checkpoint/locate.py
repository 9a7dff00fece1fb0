"""From a path to the files of one checkpoint: a file, a folder with one file, or shards.

Shards have the index of the Hugging Face hub, `*.safetensors.index.json` with a `weight_map` from tensor to file name;
they stand beside it and nowhere else, so a name with a folder in it is refused. LightX2V's shards are one block each,
`block_0.safetensors` and so on, with all the rest in `non_block.safetensors`; their names do without an index.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from ..errors import CheckpointError
from .formats import SUFFIXES
from .json_text import read_object
from .sentences import counted, label, listing, quoted

INDEX_SUFFIX = ".safetensors.index.json"
Layout = Literal["file", "folder", "sharded"]

_BLOCK = re.compile(r"block_(0|[1-9][0-9]{0,3})\.safetensors")
_NUMBERED = re.compile(r"-[0-9]{5}-of-[0-9]{5}\.safetensors$")
_OUTSIDE_BLOCKS = "non_block.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """The files of one checkpoint.

    weight_map: tensor name -> file name, empty where there is no index. config: the folder's `config.json`.
    """

    path: Path
    layout: Layout
    files: tuple[Path, ...]
    weight_map: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)


def locate(path: Path) -> Located:
    """The files of the checkpoint at `path`; raises `CheckpointError` where there is not exactly one checkpoint."""
    try:
        if path.is_dir():
            return _in_folder(path)
        if not path.exists():
            raise CheckpointError(f"{str(path)!r} does not exist{_nearby(path)}")
        if path.name.endswith(INDEX_SUFFIX):
            return _sharded(path.parent, path)
    except OSError as error:
        raise CheckpointError(f"{quoted(str(path))} cannot be read: {error.strerror or error}") from error
    return Located(path=path, layout="file", files=(path,))


def is_sharded(folder: Path) -> bool:
    """Whether a folder holds the shards of one checkpoint."""
    entries = list(folder.iterdir())
    return any(entry.name.endswith(INDEX_SUFFIX) for entry in entries) or _are_blocks(_weights(entries))


def holds_weights(path: Path) -> bool:
    """Whether a path may be a checkpoint: a file that is called like one, or a folder with such files."""
    return any(map(_is_called_checkpoint, path.iterdir())) if path.is_dir() else _is_called_checkpoint(path)


def is_shard(file: Path) -> bool:
    """Whether a file's name says that it is one of the shards of a checkpoint, whose path is its folder's."""
    return bool(_NUMBERED.search(file.name) or _number(file)) or file.name == _OUTSIDE_BLOCKS


def weight_files(path: Path) -> list[Path]:
    """A file, or all files in a folder and below it that are called checkpoints, in a fixed order."""
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if _is_called_checkpoint(file))


def _in_folder(folder: Path) -> Located:
    entries = sorted(folder.iterdir())
    indexes = [entry for entry in entries if entry.name.endswith(INDEX_SUFFIX)]
    files = _weights(entries)
    if len(indexes) == 1:
        return _sharded(folder, indexes[0])
    if len(indexes) > 1:
        names = listing(entry.name for entry in indexes)
        raise CheckpointError(f"{label(folder)} holds several indexes ({names}), expected one; give the path of one")
    if len(files) == 1:
        return Located(path=folder, layout="folder", files=(files[0],), config=_config(folder))
    if _are_blocks(files):
        return _by_block(folder, files)
    if files:
        names = listing(entry.name for entry in files)
        raise CheckpointError(
            f"{label(folder)} holds {len(files)} {files[0].suffix} files and no index ({names}); give the path of one "
            "file"
        )
    raise CheckpointError(f"{label(folder)} holds no checkpoint, expected a file ending in {', '.join(SUFFIXES)}")


def _weights(entries: Sequence[Path]) -> list[Path]:
    """The files that are called checkpoints, of one suffix: others beside it are the same in another format."""
    for suffix in SUFFIXES:
        if files := [entry for entry in entries if entry.suffix == suffix]:
            return files
    return []


def _is_called_checkpoint(path: Path) -> bool:
    return path.suffix in SUFFIXES


def _are_blocks(files: Sequence[Path]) -> bool:
    """Whether these are shards by block, some of which may be absent."""
    return any(map(_number, files)) and all(_number(file) or file.name == _OUTSIDE_BLOCKS for file in files)


def _number(file: Path) -> re.Match[str] | None:
    return _BLOCK.fullmatch(file.name)


def _by_block(folder: Path, files: Sequence[Path]) -> Located:
    numbers = {int(match[1]) for match in map(_number, files) if match}
    expected = [_OUTSIDE_BLOCKS, *(f"block_{number}.safetensors" for number in range(max(numbers) + 1))]
    if absent := [name for name in expected if folder / name not in files]:
        raise CheckpointError(
            f"{label(folder)} holds shards by block, of which {len(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} absent: {listing(map(quoted, absent))}"
        )
    return Located(path=folder, layout="sharded", files=tuple(files), config=_config(folder))


def _sharded(folder: Path, index: Path) -> Located:
    what = f"the index {label(index)}"
    weight_map = read_object(index, what).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{what} has no weight_map, expected one from tensor names to file names")
    names = sorted(set(map(str, weight_map.values())))
    if any(not isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{what} is damaged: expected a file name for each tensor")
    if outside := [name for name in names if not _is_plain(name)]:
        raise CheckpointError(f"{what} names {quoted(outside[0])}, expected files beside the index and nowhere else")
    files = tuple(folder / name for name in names)
    if absent := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{what} names {counted(len(names), 'file')}, of which {len(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} absent: {listing(map(quoted, absent))}"
        )
    return Located(path=folder, layout="sharded", files=files, weight_map=weight_map, config=_config(folder))


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in the same folder, on any system."""
    return (
        name not in ("", ".", "..")
        and PurePosixPath(name).name == name == PureWindowsPath(name).name
        and "\0" not in name
    )


def _config(folder: Path) -> Mapping[str, object]:
    path = folder / "config.json"
    return read_object(path, label(path)) if path.is_file() else {}


def _nearby(path: Path) -> str:
    """Where a path stops existing, for somebody who mistyped it."""
    known = next((parent for parent in path.parents if parent.is_dir()), None)
    return "" if known is None or known == path.parent else f"; the last part of it that exists is {str(known)!r}"
