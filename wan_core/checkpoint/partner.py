"""Finding the other expert's file by the name of one: beside it, or in the folder beside its own.

Authors publish two files whose names differ in the expert and in nothing else, side by side or in a folder for each
(`HighNoise/x-HighNoise.gguf`, `LowNoise/x-LowNoise.gguf`), or two folders of shards. Nothing else is taken for a
partner: a name that differs in more may be another version, another precision or another model.
"""

from collections.abc import Iterator
from pathlib import Path

from ..errors import CheckpointError
from .expert_name import expert_in_pair
from .sentences import label, listing


def find_partner(path: Path | str) -> Path | None:
    """The file or folder whose name, or whose folder's name, differs from this one's in the expert and in nothing else.

    Raises `CheckpointError` where several do.
    """
    path = Path(path).absolute()
    try:
        found = [entry for entry in _beside(path) if expert_in_pair(path, entry)] or list(_in_partner_folders(path))
    except OSError as error:
        raise CheckpointError(f"{str(path.parent)!r} cannot be read: {error.strerror or error}") from error
    if len(found) > 1:
        raise CheckpointError(
            f"several files have the name of {label(path)}'s partner ({listing(map(label, found))}); give one of them"
        )
    return found[0] if found else None


def _beside(path: Path) -> Iterator[Path]:
    return (entry for entry in sorted(path.parent.iterdir()) if _is_alike(entry, path))


def _in_partner_folders(path: Path) -> Iterator[Path]:
    """Files of the same name in the other expert's folder, else those that are called after that expert."""
    for folder in sorted(path.parent.parent.iterdir()):
        if folder.is_dir() and expert_in_pair(path.parent, folder):
            same = folder / path.name
            entries = [same] if same.exists() else sorted(folder.iterdir())
            yield from (entry for entry in entries if _is_alike(entry, path) and _may_be(entry, path))


def _is_alike(entry: Path, path: Path) -> bool:
    return entry.is_dir() if path.is_dir() else entry.is_file() and entry.suffix == path.suffix


def _may_be(entry: Path, path: Path) -> bool:
    return entry.name == path.name or expert_in_pair(path, entry) is not None
