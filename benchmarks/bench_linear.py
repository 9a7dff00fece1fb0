"""Forms of the linear layers of a block, which compute the same, at the sizes of Wan 2.2: TFLOP/s of each.

    python -m benchmarks.bench_linear [--tokens 75600 --stretch 0.4 --json FILE]

Weights as nn.Linear stores them or transposed; bias and GELU inside the product or after it; q, k and v as one product;
the wide layer in two or three pieces; cuBLAS or cuBLASLt. About ten seconds.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .turns import take_turns, warmed_up

DIM, FFN = 5120, 13824


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, device="cuda") * scale).bfloat16()


def forms(tokens: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Work by name, with its operations."""
    x, wide = draw(tokens, DIM), draw(tokens, FFN)
    square, up, down = draw(DIM, DIM, scale=0.02), draw(FFN, DIM, scale=0.02), draw(DIM, FFN, scale=0.02)
    three = draw(3 * DIM, DIM, scale=0.02)
    b, b_up, b_three = draw(DIM), draw(FFN), draw(3 * DIM)
    square_t, up_t, down_t = (weight.t().contiguous() for weight in (square, up, down))
    flops = 2 * tokens * DIM
    thirds = up.chunk(3)
    halves, bias_halves = up.chunk(2), b_up.chunk(2)

    def preferring(library: str, work: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            before = torch.backends.cuda.preferred_blas_library(library)
            try:
                return work()
            finally:
                torch.backends.cuda.preferred_blas_library(before)

        return run

    return {
        "5120 -> 5120": (flops * DIM, lambda: F.linear(x, square, b)),
        "5120 -> 5120, no bias": (flops * DIM, lambda: x @ square.t()),
        "5120 -> 5120, stored transposed": (flops * DIM, lambda: torch.addmm(b, x, square_t)),
        "5120 -> 5120, cublaslt": (flops * DIM, preferring("cublaslt", lambda: F.linear(x, square, b))),
        "q, k, v one by one": (3 * flops * DIM, lambda: [F.linear(x, w, b) for w in three.chunk(3)]),
        "q, k, v at once": (3 * flops * DIM, lambda: F.linear(x, three, b_three)),
        "5120 -> 13824": (flops * FFN, lambda: F.linear(x, up, b_up)),
        "5120 -> 13824, no bias": (flops * FFN, lambda: x @ up.t()),
        "5120 -> 13824, stored transposed": (flops * FFN, lambda: torch.addmm(b_up, x, up_t)),
        "5120 -> 13824, in halves": (
            flops * FFN, lambda: [F.linear(x, w, v) for w, v in zip(halves, bias_halves, strict=True)]
        ),
        "5120 -> 13824, in thirds, no bias": (flops * FFN, lambda: [x @ w.t() for w in thirds]),
        "5120 -> 13824, then GELU": (flops * FFN, lambda: F.gelu(F.linear(x, up, b_up), approximate="tanh")),
        "5120 -> 13824, GELU inside": (
            flops * FFN, lambda: torch._addmm_activation(b_up, x, up.t(), use_gelu=True)
        ),
        "5120 -> 13824, GELU inside, transposed": (
            flops * FFN, lambda: torch._addmm_activation(b_up, x, up_t, use_gelu=True)
        ),
        "13824 -> 5120": (flops * FFN, lambda: F.linear(wide, down, b)),
        "13824 -> 5120, no bias": (flops * FFN, lambda: wide @ down.t()),
        "13824 -> 5120, stored transposed": (flops * FFN, lambda: torch.addmm(b, wide, down_t)),
        "13824 -> 5120, cublaslt": (flops * FFN, preferring("cublaslt", lambda: F.linear(wide, down, b))),
    }  # fmt: skip


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, default=75_600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stretch", type=float, default=0.15, help="seconds of each turn (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    found = forms(arguments.tokens)
    alive = warmed_up(
        {name: work for name, (_, work) in found.items()}, lambda name, reason: print(f"{name:<44}{reason}")
    )
    taken = take_turns(alive, rounds=arguments.rounds, stretch=arguments.stretch)
    rows = {name: {"ms": s * 1e3, "tflops": found[name][0] / s / 1e12} for name, s in taken.items()}
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.tokens:,} tokens")
    for name, row in rows.items():
        print(f"{name:<44}{row['ms']:>9.3f} ms{row['tflops']:>7.0f} TFLOP/s")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
