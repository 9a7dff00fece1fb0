"""Writing files so that nobody ever finds half of one: a temporary name in the same folder, then a rename."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError, SaveError


def check_writable(path: Path, suffix: str) -> Path:
    """`path` once its suffix is right and its folder exists and can be written; to be called before long work.

    Makes the folder. Raises `InputError` in one sentence otherwise.
    """
    if path.suffix.lower() != suffix:
        raise InputError(f"output is {str(path)!r}, expected a name ending in {suffix}, such as '{path.stem}{suffix}'")
    if path.is_dir():
        raise InputError(f"output {str(path)!r} is a folder, expected the name of a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {str(path.parent)!r}: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write into the folder {str(path.parent)!r}: permission denied")
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well and is removed when it does not.

    Raises `SaveError` in one sentence where the file system refuses (no space, no permission).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise SaveError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_safely(path: Path, write: Callable[[Path], object]) -> Path:
    """Have `write` write to `path`, or where that is refused to the system's folder for temporary files.

    Returns where the file is. For what cannot be made again in a moment; raises `SaveError` where both refuse.
    """
    try:
        write(path)
    except SaveError as refused:
        try:
            elsewhere = Path(tempfile.mkdtemp(prefix="wan_velocity_"), path.name)
        except OSError:
            raise refused from None
        write(elsewhere)
        return elsewhere
    return path
