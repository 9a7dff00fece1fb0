"""Pieces of the sentences that a user reads about a file: short, and safe to print whatever the file says."""

from collections.abc import Iterable
from pathlib import Path

_MAX_NAME = 80


def label(path: Path) -> str:
    """A path as its last two parts, quoted: shards of both experts carry the same file names."""
    return quoted("/".join(part for part in path.parts[-2:] if part != path.anchor))


def quoted(name: object) -> str:
    """A name out of a file, quoted, escaped and cut to a readable length."""
    text = repr(name)
    return text if len(text) <= _MAX_NAME else f"{text[: _MAX_NAME - 4]}...{text[0]}"


def listing(names: Iterable[str], limit: int = 4) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more


def counted(count: int, noun: str) -> str:
    """ "1 tensor", "2 tensors"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
