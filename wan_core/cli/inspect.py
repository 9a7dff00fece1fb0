"""`inspect`: what a file or a folder is: family, expert, layout, dtypes, size, and what is missing or wrong."""

import argparse
import json
from pathlib import Path

from ..checkpoint.identify import identify

HELP = "what a file or folder is, and what is missing or wrong"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE|DIR")
    parser.add_argument("--json", action="store_true", help="one JSON list in place of text")


def run(arguments: argparse.Namespace) -> int:
    """Describe every path; returns 1 where one of them cannot be used as it is."""
    found = [identify(path) for path in arguments.paths]
    if arguments.json:
        print(json.dumps([description.to_dict() for description in found], indent=2))
    else:
        # Names out of files may hold what no terminal can show.
        print("\n".join(description.to_text() for description in found).encode("utf-8", "backslashreplace").decode())
    return 0 if all(description.is_usable for description in found) else 1
