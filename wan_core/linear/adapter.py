"""What stands beside a linear layer: y = base(x) + sum of strength * adapter(x), whatever computes the base.

Low-rank changes of one layer are stacked, so that a chain of LoRAs costs one pair of products: `down` (R, in) holds the
rows of all of them, `up` (out, R) the columns, and the second product adds to the base's output in its own epilogue. A
change of the bias is one more rank, whose input is the constant 1 (`offset`). R is padded to a multiple of 8, since
other sizes miss the tensor cores. Kronecker products stand beside, one by one: they are not of low rank.

Strengths are numbers in a buffer: changing one changes no graph and moves no weights. Everything is a buffer, nothing a
parameter: it moves with its module, and those who look for the parameters of a checkpoint do not meet it. `attach`
hooks an adapter to a layer without renaming or replacing anything, so that any kind of base will do; that layer has to
answer in the dtype of the adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

_RANK_STEP = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One change beside a layer: of a rank (1 for a bias), or a Kronecker product of two matrices of these shapes."""

    rank: int = 0
    kronecker: tuple[tuple[int, int], tuple[int, int]] | None = None


class Kronecker(nn.Module):
    """x (..., b d) -> x @ kron(left, right).T (..., a c), with left (a, b) and right (c, d), times its coefficient."""

    def __init__(self, left: tuple[int, int], right: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("left", torch.zeros(left, dtype=dtype))
        self.register_buffer("right", torch.zeros(right, dtype=dtype))
        self.register_buffer("coefficient", torch.zeros((), dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        columns = F.linear(rearrange(x, "... (b d) -> ... b d", b=self.left.shape[1]), self.right)
        return rearrange(self.left @ columns, "... a c -> ... (a c)") * self.coefficient


class Adapter(nn.Module):
    """The changes beside one layer (in_features, out_features), in the dtype of its products.

    Made under `torch.device("meta")`; whoever gives it memory calls `clear`, and a term then counts from its `fill_...`
    on, at the coefficient (strength * scale) that `set_coefficient` gives it.
    """

    def __init__(self, in_features: int, out_features: int, terms: Sequence[Term], dtype: torch.dtype) -> None:
        super().__init__()
        self.terms = tuple(terms)
        rank = _padded(sum(term.rank for term in terms))
        self.register_buffer("down", torch.zeros(rank, in_features, dtype=dtype))
        self.register_buffer("up", torch.zeros(out_features, rank, dtype=dtype))
        self.register_buffer("offset", torch.zeros(rank, dtype=dtype))
        self.register_buffer("coefficients", torch.zeros(rank, dtype=torch.float32))
        self.kroneckers = nn.ModuleDict(
            {str(i): Kronecker(*term.kronecker, dtype) for i, term in enumerate(terms) if term.kronecker}
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x: what the layer was given, any float dtype. y: what it answered, in the adapter's dtype; it is changed."""
        x = x.to(self.down.dtype)
        if self.down.shape[0]:
            hidden = (F.linear(x, self.down, self.offset) * self.coefficients).to(y.dtype)
            # In place: a sum of its own would copy y before the product adds to it.
            y = y.flatten(0, -2).addmm_(hidden.flatten(0, -2), self.up.t()).view(y.shape)
        for kronecker in self.kroneckers.values():
            y = y + kronecker(x)
        return y

    def clear(self) -> None:
        """All zeros, once there is memory: nothing is added."""
        for buffer in self.buffers():
            buffer.zero_()

    def fill_low_rank(self, index: int, down: Tensor, up: Tensor) -> None:
        """Give a term its factors (R, in) and (out, R)."""
        ranks = self._ranks(index)
        self.down[ranks] = down.to(self.down)
        self.up[:, ranks] = up.to(self.up)

    def fill_bias(self, index: int, bias: Tensor) -> None:
        """Give a term of rank 1 its vector (out,)."""
        ranks = self._ranks(index)
        self.up[:, ranks] = bias.to(self.up).unsqueeze(1)
        self.offset[ranks] = 1.0

    def fill_kronecker(self, index: int, left: Tensor, right: Tensor) -> None:
        """Give a Kronecker term its two matrices."""
        kronecker = self.kroneckers[str(index)]
        kronecker.left.copy_(left)
        kronecker.right.copy_(right)

    def set_coefficient(self, index: int, coefficient: float) -> None:
        """Make a term count this much from the next call on."""
        if self.terms[index].kronecker:
            self.kroneckers[str(index)].coefficient.fill_(coefficient)
        else:
            self.coefficients[self._ranks(index)] = coefficient

    def _ranks(self, index: int) -> slice:
        start = sum(term.rank for term in self.terms[:index])
        return slice(start, start + self.terms[index].rank)


def attach(linear: nn.Module, adapter: Adapter) -> None:
    """Let the adapter add to what `linear` answers, from now on. To be done before blocks are compiled."""
    assert not hasattr(linear, "adapter"), "a layer has one adapter, which holds all of its terms"
    linear.adapter = adapter
    linear.register_forward_hook(_add_beside)


def is_of_adapter(name: str) -> bool:
    """Whether a tensor of a model, by name, belongs to an attached adapter and so to no checkpoint."""
    return ".adapter." in name


def adapter_bytes(in_features: int, out_features: int, terms: Sequence[Term], itemsize: int) -> int:
    """What an adapter of these terms holds in a dtype of `itemsize` bytes."""
    rank = _padded(sum(term.rank for term in terms))
    kroneckers = sum(a * b + c * d for (a, b), (c, d) in (term.kronecker for term in terms if term.kronecker))
    num_scalars = rank + sum(term.kronecker is not None for term in terms)
    return (rank * (in_features + out_features + 1) + kroneckers) * itemsize + num_scalars * 4


# One function for all layers: the blocks share one compiled graph, and a closure per layer would break that.
def _add_beside(linear: nn.Module, inputs: tuple[Tensor, ...], answer: Tensor) -> Tensor:
    return linear.adapter(inputs[0], answer)


def _padded(rank: int) -> int:
    return -(-rank // _RANK_STEP) * _RANK_STEP
