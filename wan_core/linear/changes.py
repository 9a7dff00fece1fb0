"""The algebra of weight changes: low-rank, Kronecker and Hadamard products, and the magnitudes of DoRA.

A weight is (out, in), a change has its shape once flattened, and everything here is float32 in and out.

- low-rank (LoRA, arXiv:2106.09685): up @ down, with down (R, in) and up (out, R).
- lokr (LoKr, arXiv:2309.14859): kron(w1, w2); each of the two may itself be a product w_a @ w_b.
- loha (LoHa, arXiv:2108.06098): (w1_a @ w1_b) * (w2_a @ w2_b), entry by entry. It is of rank R^2: the row-wise products
  of the columns of w1_a and w2_a make its up, those of the rows of w1_b and w2_b its down.
- DoRA (arXiv:2402.09353): the direction of weight + change at a learned magnitude per output (or per input) feature.
  The norm is that of the changed weight, as in the paper, in PEFT and in LyCORIS.

Scales (alpha / rank) and strengths are the caller's.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

ChangeKind = Literal["low-rank", "lokr", "loha", "diff"]
Parts = Mapping[str, Tensor]


def full_change(kind: ChangeKind, parts: Parts) -> Tensor:
    """The change itself: (out, in), or of the shape it is stored in for a diff."""
    if kind == "diff":
        return parts["diff"]
    if kind == "lokr":
        return torch.kron(*kronecker_factors(parts))
    if kind == "loha":
        return (parts["w1_a"] @ parts["w1_b"]) * (parts["w2_a"] @ parts["w2_b"])
    return parts["up"].flatten(1) @ parts["down"].flatten(1)


def low_rank_factors(kind: ChangeKind, parts: Parts) -> tuple[Tensor, Tensor]:
    """(down, up) of a low-rank change, or of a loha as one."""
    if kind == "low-rank":
        return parts["down"].flatten(1), parts["up"].flatten(1)
    assert kind == "loha", f"{kind} is not of low rank"
    down = rearrange(parts["w1_b"].unsqueeze(1) * parts["w2_b"], "R S I -> (R S) I")
    up = rearrange(parts["w1_a"].unsqueeze(2) * parts["w2_a"].unsqueeze(1), "O R S -> O (R S)")
    return down, up


def kronecker_factors(parts: Parts) -> tuple[Tensor, Tensor]:
    """(w1, w2) of a lokr, multiplied out where they are stored as products."""
    first, second = (parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"] for name in ("w1", "w2"))
    return first, second


def decomposed(weight: Tensor, change: Tensor, magnitude: Tensor) -> Tensor:
    """The weight that DoRA stands for; magnitude is (1, in) per input feature, any other shape per output feature."""
    moved = weight + change
    if magnitude.ndim > 1 and magnitude.shape[0] == 1:
        return moved * (magnitude.reshape(1, -1) / _norm(moved, axis=0))
    return moved * (magnitude.reshape(-1, 1) / _norm(moved, axis=1))


def _norm(weight: Tensor, axis: int) -> Tensor:
    return weight.norm(dim=axis, keepdim=True) + torch.finfo(weight.dtype).eps
