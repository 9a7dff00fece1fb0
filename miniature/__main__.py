"""`python -m miniature OUTPUT_DIR`: write a miniature model with random weights."""

import argparse
from pathlib import Path

import torch

from .write import LAYOUTS, write_miniature


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m miniature",
        description="Write a complete miniature Wan 2.2 model with random weights: two experts, text encoder, VAE.",
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT_DIR", help="folder to write into; made if it is missing")
    parser.add_argument("--layout", choices=LAYOUTS, default="comfyui", help="both: a subfolder for each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options = parser.parse_args()
    write_miniature(options.output, layout=options.layout, seed=options.seed, dtype=getattr(torch, options.dtype))
    files = sorted(path for path in options.output.rglob("*") if path.is_file())
    for path in files:
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path}")


if __name__ == "__main__":
    main()
