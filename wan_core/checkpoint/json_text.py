"""JSON out of a file that nobody vouches for: bounded memory, no duplicate names, every fault one sentence."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import CheckpointError
from .sentences import quoted

MAX_JSON_BYTES = 100_000_000

# What parsing costs is Python objects, and each of them needs one of these marks. A real header has some ten for each
# tensor; this many objects stay well below 1 GB.
_MARKS = (b",", b":", b"[", b"{")
_MAX_MARKS = 4_000_000


def parse_object(raw: bytes, what: str) -> dict[str, object]:
    """The object that `raw` holds; `what` begins the sentence of the `CheckpointError` otherwise."""
    if sum(raw.count(mark) for mark in _MARKS) > _MAX_MARKS:
        raise CheckpointError(f"{what} holds more than {_MAX_MARKS} values, expected a few for each tensor")
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not readable JSON ({_reason(error)})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{what} is a JSON {type(data).__name__}, expected an object")
    return data


def read_object(path: Path, what: str) -> dict[str, object]:
    """The JSON object in a file."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CheckpointError(f"{what} is {size} bytes long, expected at most {MAX_JSON_BYTES}")
        return parse_object(path.read_bytes(), what)
    except OSError as error:
        raise CheckpointError(f"{what} cannot be read: {error.strerror or error}") from error


def _unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    data = dict(pairs)
    if len(data) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{quoted(twice)} appears twice")
    return data


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
