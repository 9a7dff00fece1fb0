"""FlashAttention 4 on one problem in other tiles and layouts: TFLOP/s and error of each.

    python -m benchmarks.bench_flash_attention_4 [--tokens 75600 --stretch 0.5 --json FILE]

Tiles are an argument of the library's own: queries x keys of one block, and "shared" keeps the probabilities in shared
memory instead of registers. More queries in a block read keys and values fewer times from the L2 cache. "Head by head"
stores the tokens of a head one after the other. A new tile is compiled first, some seconds each.
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

HEADS, HEAD_DIM = 40, 128
SHARED, APART = {"mma_pv_is_rs": False}, {"intra_wg_overlap": False}
TILES = {
    "128x128": {},
    "128x144": {"tile_mn": (128, 144)},
    "192x80": {"tile_mn": (192, 80)},
    "192x112, without overlap": {"tile_mn": (192, 112), **APART},
    "192x96, shared": {"tile_mn": (192, 96), **SHARED},
    "192x104, shared": {"tile_mn": (192, 104), **SHARED},
    "192x112, shared": {"tile_mn": (192, 112), **SHARED},
    "192x120, shared": {"tile_mn": (192, 120), **SHARED},
    "192x128, shared": {"tile_mn": (192, 128), **SHARED},
    "192x112, shared, without overlap": {"tile_mn": (192, 112), **SHARED, **APART},
    "192x128, shared, without overlap": {"tile_mn": (192, 128), **SHARED, **APART},
}
HEAD_BY_HEAD = ("128x128", "192x112, shared", "192x128, shared")

Attention = Callable[[], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
    from flash_attn.cute.interface import _flash_attn_fwd

    return _flash_attn_fwd(q, k, v, **options)[0]


def head_by_head(x: Tensor) -> Tensor:
    """The same (B, L, N, D) with the tokens of a head beside each other in memory."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def forms(q: Tensor, k: Tensor, v: Tensor, tiles: list[str]) -> dict[str, Attention]:
    found: dict[str, Attention] = {name: partial(attend, q, k, v, **TILES[name]) for name in tiles}
    apart = [head_by_head(x) for x in (k, v)]
    for name in tiles:
        if name in HEAD_BY_HEAD:
            found[f"{name}; k, v head by head"] = partial(attend, q, *apart, **TILES[name])
            found[f"{name}; k, v copied head by head"] = partial(_copied, q, k, v, **TILES[name])
    return found


def _copied(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
    return attend(q, head_by_head(k), head_by_head(v), **options)


def error(got: Tensor, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Relative, against float32 (not TF32), for 64 queries of all heads."""
    rows = slice(0, None, q.shape[1] // 64)
    wide = (x.transpose(1, 2).float() for x in (q[:, rows], k, v))
    expected = F.scaled_dot_product_attention(*wide).transpose(1, 2)
    return float((got[:, rows].float() - expected).norm() / expected.norm())


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, default=75_600)
    parser.add_argument("--tiles", nargs="+", choices=tuple(TILES), default=list(TILES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stretch", type=float, default=0.5, help="seconds of each turn (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, arguments.tokens, HEADS, HEAD_DIM, device="cuda").bfloat16() for _ in range(3))
    alive = warmed_up(
        forms(q, k, v, arguments.tiles), lambda name, reason: print(f"{name:<46}{reason[:160]}", flush=True)
    )
    errors = {name: error(work(), q, k, v) for name, work in alive.items()}
    taken = take_turns(alive, rounds=arguments.rounds, stretch=arguments.stretch)
    flops = 4 * arguments.tokens**2 * HEADS * HEAD_DIM
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.tokens:,} tokens")
    rows = {
        name: {"ms": seconds * 1e3, "tflops": flops / seconds / 1e12, "error": errors[name]}
        for name, seconds in taken.items()
    }
    for name, row in rows.items():
        print(f"{name:<46}{row['ms']:>9.3f} ms{row['tflops']:>7.0f} TFLOP/s{row['error']:>10.2e}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
