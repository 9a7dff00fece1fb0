"""From a path to the safetensors files of one checkpoint: a file, a folder with one file, or shards with their index.

The index is the one of the Hugging Face hub: `*.safetensors.index.json` with a `weight_map` from tensor to file name.
Shards stand beside their index and nowhere else, so a name with a folder in it is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from ..errors import CheckpointError
from .foreign import FOREIGN_SUFFIXES
from .json_text import read_object
from .sentences import counted, label, listing, quoted

INDEX_SUFFIX = ".safetensors.index.json"
Layout = Literal["file", "folder", "sharded"]


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


def _in_folder(folder: Path) -> Located:
    entries = sorted(folder.iterdir())
    indexes = [entry for entry in entries if entry.name.endswith(INDEX_SUFFIX)]
    files = [entry for entry in entries if entry.suffix == ".safetensors"]
    if len(indexes) == 1:
        return _sharded(folder, indexes[0])
    if len(indexes) > 1:
        names = listing(entry.name for entry in indexes)
        raise CheckpointError(f"{label(folder)} holds several indexes ({names}), expected one; give the path of one")
    if len(files) == 1:
        return Located(path=folder, layout="folder", files=(files[0],), config=_config(folder))
    if files:
        names = listing(entry.name for entry in files)
        raise CheckpointError(
            f"{label(folder)} holds {len(files)} .safetensors files and no index ({names}); give the path of one file"
        )
    others = [entry.name for entry in entries if entry.suffix.lower() in FOREIGN_SUFFIXES]
    beside = f", only formats that are not read here ({listing(others)})" if others else ""
    raise CheckpointError(f"{label(folder)} holds no .safetensors files{beside}")


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
