"""Checkouts: whether a folder is one, which commit it is at, and importing single files out of it."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ...errors import InputError, UnsupportedError


def check_checkout(root: Path, marker: str, what: str) -> Path:
    """`root`, absolute, if it holds the file `marker`; raises `InputError` otherwise."""
    if not (root / marker).is_file():
        raise InputError(f"{str(root)!r} is no checkout of {what}, expected the folder that holds {marker}")
    return root.resolve()


def commit_of(root: Path) -> str:
    """The commit a checkout is at, as far as its files tell: twelve hexadecimal digits, or "unknown commit"."""
    git = root / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        reference = head.removeprefix("ref: ")
        if reference != head:
            head = _resolved(git, reference)
    except OSError:
        return "unknown commit"
    return head[:12]


def _resolved(git: Path, reference: str) -> str:
    if (git / reference).is_file():
        return (git / reference).read_text(encoding="utf-8").strip()
    for line in (git / "packed-refs").read_text(encoding="utf-8").splitlines():
        commit, _, name = line.partition(" ")
        if name == reference:
            return commit
    return "unknown commit"


def import_file(path: Path, name: str) -> ModuleType:
    """Import one file as the module `name`, whose package has to be in `sys.modules` already."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def importing(what: str) -> Iterator[None]:
    """What somebody's code needs and this Python lacks, in one sentence."""
    try:
        yield
    except ImportError as error:
        raise UnsupportedError(f"{what} cannot be imported here: {error}") from error
