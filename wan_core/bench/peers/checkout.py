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
    """The commit a checkout is at, in twelve hexadecimal digits, or that its files do not tell."""
    git = root / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        commit = _commit_of_branch(git, head.removeprefix("ref: ")) if head.startswith("ref: ") else head
    except OSError:
        commit = ""
    return f"commit {commit[:12]}" if commit else "a copy that does not tell its commit"


def _commit_of_branch(git: Path, branch: str) -> str:
    if (git / branch).is_file():
        return (git / branch).read_text(encoding="utf-8").strip()
    lines = (line.partition(" ") for line in (git / "packed-refs").read_text(encoding="utf-8").splitlines())
    return next((commit for commit, _, name in lines if name == branch), "")


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
