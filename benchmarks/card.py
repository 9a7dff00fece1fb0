"""What the command lines of benchmarks on a card have in common."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch

from wan_core.hardware import Hardware


def add_card(parser: ArgumentParser) -> None:
    """Which card, and where its figures go."""
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the versions as well")


def parsed_on_a_card(parser: ArgumentParser) -> Namespace:
    """The command line; ends the program where there is no card."""
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "this needs an NVIDIA GPU\n")
    return arguments


def say_versions(hardware: Hardware) -> None:
    """The line that a figure is worth little without."""
    print(", ".join(f"{name} {version}" for name, version in hardware.environment().items()))
