"""Weights decoded before each product: PyTorch's operators and the fused kernels, at the sizes of Wan 2.2.

    python -m benchmarks.bench_codes [--forms float8_e4m3fn Q4_K] [--json FILE]

GB/s (codes read, two bytes written for each weight), and what a step of forty blocks and two passes takes for it.
Kernels take turns (`turns.py`), each with half a gigabyte of codes, so that none is still in a cache.
"""

import argparse
import json
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from wan_core.checkpoint.codes import Coding
from wan_core.kernels.block import TORCH, BlockKernels
from wan_core.kernels.decode import KNOWN_BLOCKS
from wan_core.kernels.triton_block import TRITON

from .turns import take_turns, warmed_up

DIM, FFN = 5120, 13824
# Layers of a block by the shape of their weights.
SHAPES = {(DIM, DIM): 8, (FFN, DIM): 1, (DIM, FFN): 1}
PASSES = 2 * 40
FORMS = ("float8_e4m3fn", "float8_e5m2", "int8", *KNOWN_BLOCKS)
_CYCLED_BYTES = 1 << 29


def decoding(kernels: BlockKernels, shape: tuple[int, int], coding: Coding) -> Callable[[], None]:
    """Decodes another weight at each call."""
    count = -(-_CYCLED_BYTES // sum(coding.piece_bytes(shape)))
    codes = cycle([draw(coding, shape) for _ in range(count)])
    scale = None if coding.scale is None else torch.full(coding.scale or (1,), 1e-3, device="cuda")
    return lambda: kernels.decode(place(shape), next(codes), scale, coding.dtype)


def draw(coding: Coding, shape: tuple[int, int]) -> Tensor:
    """Any codes of a matrix."""
    codes_shape = coding.codes_shape(shape)
    if coding.dtype in KNOWN_BLOCKS:
        return torch.randint(256, codes_shape, device="cuda", dtype=torch.uint8)
    return (torch.randn(codes_shape, device="cuda") * 30).to(getattr(torch, coding.dtype))


def place(shape: tuple[int, int]) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="cuda")


def codings(form: str) -> dict[str, dict[tuple[int, int], Coding]]:
    """How layers are stored in a form, by their shape; where it has scales, with one and with one for each row."""
    if form in KNOWN_BLOCKS:
        return {form: dict.fromkeys(SHAPES, Coding(dtype=form))}
    return {
        f"{form}, one scale": dict.fromkeys(SHAPES, Coding(dtype=form, scale=())),
        f"{form}, a scale a row": {(rows, columns): Coding(dtype=form, scale=(rows,)) for rows, columns in SHAPES},
    }


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    rows = {}
    ways = {name: stored for form in arguments.forms for name, stored in codings(form).items()}
    for name, stored in ways.items():
        work = {
            (kernels.name, shape): decoding(kernels, shape, stored[shape])
            for kernels in (TORCH, TRITON)
            for shape in SHAPES
        }
        alive = warmed_up(work, lambda key, reason: print(f"{key}: {reason}"))
        taken = take_turns(alive, rounds=3, stretch=0.05)
        for kernels in (TORCH, TRITON):
            seconds = {shape: taken[kernels.name, shape] for shape in SHAPES if (kernels.name, shape) in taken}
            if len(seconds) < len(SHAPES):
                continue  # why is said above
            total = PASSES * sum(seconds[shape] * count for shape, count in SHAPES.items())
            rates = {
                f"{a}x{b}": (sum(stored[a, b].piece_bytes((a, b))) + 2 * a * b) / s / 1e9
                for (a, b), s in seconds.items()
            }
            rows[f"{name}, {kernels.name}"] = {"step_seconds": total, "gbs": rates}
            shown = ", ".join(f"{shape} {rate:.0f} GB/s" for shape, rate in rates.items())
            print(f"{f'{name}, {kernels.name}':<40}{total:.3f} s a step; {shown}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
