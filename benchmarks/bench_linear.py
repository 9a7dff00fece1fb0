"""Forms of the linear layers of a block, which compute the same, at the sizes of Wan 2.2: TFLOP/s of each.

    python -m benchmarks.bench_linear [--tokens 75600 --quack --json FILE]

Weights as nn.Linear stores them or transposed; GELU inside the product or after it; q, k and v as one product. With
--quack the CuTe DSL products of `quack-kernels` too (a dependency of flash-attn-4), by tile and cluster, each compiled
first. Every form is timed at the card's power limit (`turns.py`).
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .turns import take_turns, warmed_up

DIM, FFN = 5120, 13824
# Rows and columns of a block, blocks of a cluster in both directions, and whether two groups of warps take turns.
QUACK_TILES = {
    "256x128 2x1": (256, 128, 2, 1, False),
    "256x160 2x1": (256, 160, 2, 1, False),
    "256x192 2x1": (256, 192, 2, 1, False),
    "256x192 1x2": (256, 192, 1, 2, False),
    "256x208 2x1": (256, 208, 2, 1, False),
    "128x256 2x1": (128, 256, 2, 1, False),
    "128x192 2x1 in turns": (128, 192, 2, 1, True),
}


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, device="cuda") * scale).bfloat16()


def forms(tokens: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Work by name, with its operations."""
    x, wide = draw(tokens, DIM), draw(tokens, FFN)
    square, up, down = draw(DIM, DIM, scale=0.02), draw(FFN, DIM, scale=0.02), draw(DIM, FFN, scale=0.02)
    three = draw(3 * DIM, DIM, scale=0.02)
    b, b_up, b_three = draw(DIM), draw(FFN), draw(3 * DIM)
    up_t = up.t().contiguous()
    flops = 2 * tokens * DIM
    found: dict[str, tuple[int, Callable[[], object]]] = {
        "5120 -> 5120": (flops * DIM, lambda: F.linear(x, square, b)),
        "q, k, v one by one": (3 * flops * DIM, lambda: [F.linear(x, w, b) for w in three.chunk(3)]),
        "q, k, v at once": (3 * flops * DIM, lambda: F.linear(x, three, b_three)),
        "5120 -> 13824": (flops * FFN, lambda: F.linear(x, up, b_up)),
        "5120 -> 13824, stored transposed": (flops * FFN, lambda: torch.addmm(b_up, x, up_t)),
        "5120 -> 13824, then GELU": (flops * FFN, lambda: F.gelu(F.linear(x, up, b_up), approximate="tanh")),
        "5120 -> 13824, GELU inside": (flops * FFN, lambda: torch._addmm_activation(b_up, x, up.t(), use_gelu=True)),
        "13824 -> 5120": (flops * FFN, lambda: F.linear(wide, down, b)),
    }
    return found | {
        name: (flops * width, work)
        for label, width, product in (
            ("5120 -> 5120", DIM, partial(quack, x, square, b)),
            ("5120 -> 13824, GELU inside", FFN, partial(quack, x, up, b_up, activation="gelu_tanh_approx")),
            ("13824 -> 5120", FFN, partial(quack, wide, down, b)),
        )
        for name, work in ((f"{label}, quack {tile}", partial(product, tile)) for tile in QUACK_TILES)
    }


def quack(x: Tensor, weight: Tensor, bias: Tensor, tile: str, activation: str | None = None) -> Tensor:
    """A linear layer in one of QUACK_TILES."""
    from quack.gemm_config import GemmConfig
    from quack.gemm_interface import gemm_act

    tile_m, tile_n, cluster_m, cluster_n, pingpong = QUACK_TILES[tile]
    config = GemmConfig(
        tile_m=tile_m, tile_n=tile_n, cluster_m=cluster_m, cluster_n=cluster_n, pingpong=pingpong,
        is_dynamic_persistent=False,
    )  # fmt: skip
    return gemm_act(x, weight.t(), bias=bias, activation=activation, store_preact=False, config=config)[1]


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, default=75_600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stretch", type=float, default=0.15, help="seconds of each turn (default %(default)s)")
    parser.add_argument("--quack", action="store_true", help="the products of quack-kernels too")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    found = {name: form for name, form in forms(arguments.tokens).items() if arguments.quack or "quack" not in name}
    alive = warmed_up(
        {name: work for name, (_, work) in found.items()}, lambda name, reason: print(f"{name:<54}{reason}")
    )
    taken = take_turns(alive, rounds=arguments.rounds, stretch=arguments.stretch)
    rows = {name: {"ms": s * 1e3, "tflops": found[name][0] / s / 1e12} for name, s in taken.items()}
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.tokens:,} tokens")
    for name, row in rows.items():
        print(f"{name:<54}{row['ms']:>9.3f} ms{row['tflops']:>7.0f} TFLOP/s")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
