"""Errors that a user meets: one sentence each, with what was got, what is expected and the nearest valid value.

Everything a user can cause is an `InputError` (a `ValueError`), so that the nodes and the command line can print
the sentence and no traceback. Anything else that escapes the core is a defect of ours and keeps its traceback.
"""


class InputError(ValueError):
    """A user's mistake, told in one sentence."""


class CheckpointError(InputError):
    """A file that cannot be read, is incomplete, or is not what it was given as."""


class UnsupportedError(InputError):
    """An option that this machine, or this build of a library, cannot run."""


class OutOfMemoryError(InputError):
    """A plan that does not fit; the sentence says how much is short and what would fit."""


class SaveError(InputError):
    """A file that the file system does not take: no space, no permission."""


class NonFiniteError(InputError):
    """Numbers that are not finite whatever computes them; the sentence says in which step, expert and part."""


# What an installed library may raise when it is imported: built for another torch (ImportError, OSError), another numpy
# (ValueError, AttributeError, TypeError), another Python (SyntaxError), or without its driver (RuntimeError).
BROKEN_LIBRARY = (ImportError, OSError, RuntimeError, AttributeError, ValueError, TypeError, SyntaxError)


class Interrupted(Exception):  # noqa: N818 (it reports a wish, not an error)
    """The caller asked to stop. Raised between blocks, steps or chunks; nothing is left half done."""
