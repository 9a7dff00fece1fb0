"""`python -m wan_core <verb>`, from the pack's folder. Exit codes: 0 done, 1 failed check, 2 bad input, 130 stopped."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from .allocator import let_segments_grow
from .cli import VERBS
from .errors import InputError, Interrupted


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. A user's mistake becomes one line on stderr; a defect of ours keeps its traceback."""
    argv = sys.argv[1:] if argv is None else list(argv)
    let_segments_grow()
    verb = _module(argv[0]) if argv and argv[0] in VERBS else None
    arguments = _parse(argv, verb)
    try:
        return verb.run(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Interrupted):
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output (head, less) has gone; without this the interpreter complains once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _module(verb: str) -> ModuleType:
    return import_module(f".cli.{verb}", __package__)


def _parse(argv: Sequence[str], verb: ModuleType | None) -> Namespace:
    """Arguments of the verb; only its own module is imported to declare them."""
    parser = ArgumentParser(prog="python -m wan_core", description="Wan 2.2 mixture-of-experts video models.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, summary in VERBS.items():
        child = verbs.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if verb is not None and name == argv[0]:
            verb.add_arguments(child)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
