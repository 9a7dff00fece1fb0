"""Weights of 8 bits, decoded before each product: PyTorch's operators and the fused kernel, at the sizes of Wan 2.2.

    python -m benchmarks.bench_codes [--json FILE]

Milliseconds and GB/s (a byte read and two written for each weight), and what a step of forty blocks and two passes
takes for it. Kernels take turns (`turns.py`), each with half a gigabyte of codes, so that none is still in a cache.
"""

import argparse
import json
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from wan_core.kernels.block import TORCH, BlockKernels
from wan_core.kernels.triton_block import TRITON

from .turns import take_turns, warmed_up

DIM, FFN = 5120, 13824
# Layers of a block by the shape of their weights.
SHAPES = {(DIM, DIM): 8, (FFN, DIM): 1, (DIM, FFN): 1}
PASSES = 2 * 40
FORMS = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2, "int8": torch.int8}
_CYCLED_BYTES = 1 << 29


def decoding(kernels: BlockKernels, shape: tuple[int, int], dtype: torch.dtype, *, by_row: bool) -> Callable[[], None]:
    """Decodes another weight at each call."""
    count = -(-_CYCLED_BYTES // (shape[0] * shape[1]))
    codes = cycle([(torch.randn(shape, device="cuda") * 30).to(dtype) for _ in range(count)])
    scale = torch.full((shape[0] if by_row else 1,), 1e-3, device="cuda")
    return lambda: kernels.decode(place(shape), next(codes), scale)


def place(shape: tuple[int, int]) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="cuda")


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    rows = {}
    for (name, dtype), by_row in ((form, by_row) for form in FORMS.items() for by_row in (False, True)):
        work = {
            (kernels.name, shape): decoding(kernels, shape, dtype, by_row=by_row)
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
            key = f"{name}, {'a scale a row' if by_row else 'one scale'}, {kernels.name}"
            rows[key] = {"step_seconds": total} | {
                f"{a}x{b}": {"ms": s * 1e3, "gbs": 3 * a * b / s / 1e9} for (a, b), s in seconds.items()
            }
            rates = ", ".join(f"{a}x{b} {3 * a * b / s / 1e9:.0f} GB/s" for (a, b), s in seconds.items())
            print(f"{key:<40}{total:.3f} s a step; {rates}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
