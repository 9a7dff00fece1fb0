"""A linear layer whose weight stays in memory as its file stores it: in 8 bits or fewer, decoded before each product.

It holds codes and their scales; what these mean is given as a function. The decoded weight is an ordinary matrix in
the dtype of the products, made anew for each call and gone after it. So the layer computes, to the last bit, what one
computes that was decoded when it was loaded; it takes the memory and the transfers of the codes, and the time of
writing its weight once for each product.

Rows are decoded in pieces, so that float32 numbers in between, where there are any, stay small. A compiler fuses them
away by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Writes to a place (rows, columns) the numbers of some rows' codes of 8 bits and scales (one for all or one for each;
# flat, float32).
DecodeBytes = Callable[[Tensor, Tensor, Tensor | None], None]
# The same for codes of any form, by its name; those of 8 bits as it is told.
DecodeInto = Callable[[Tensor, Tensor, Tensor | None, str, DecodeBytes], None]

_PIECE_NUMBERS = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How the weight of one layer is stored, and what decodes it.

    codes: their shape (rows, codes of a row), in `dtype`. scale: shape of the scales, `None` where there are none.
    form: the name of the coding, as `decode_into` knows it. decode_bytes: what that one calls.
    """

    codes: tuple[int, ...]
    dtype: torch.dtype
    scale: tuple[int, ...] | None
    form: str
    decode_into: DecodeInto
    decode_bytes: DecodeBytes


class StoredLinear(nn.Module):
    """A linear layer that takes any float dtype and computes, and answers, in `dtype`.

    is_plain: weight and bias are all there is, as in `models.layers.Linear`; each look at `weight` decodes it.
    """

    is_plain = True

    def __init__(
        self, in_features: int, out_features: int, storage: Storage, dtype: torch.dtype, *, bias: bool
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.dtype = dtype
        self._storage = storage
        self.codes = _parameter(storage.codes, storage.dtype)
        self.scale = None if storage.scale is None else _parameter(storage.scale, torch.float32)
        self.bias = _parameter((out_features,), dtype) if bias else None

    @property
    def weight(self) -> Tensor:
        """The decoded weight (out, in)."""
        weight = torch.empty(self.out_features, self.in_features, dtype=self.dtype, device=self.codes.device)
        step = self.out_features if torch.compiler.is_compiling() else max(_PIECE_NUMBERS // self.in_features, 1)
        for first in range(0, self.out_features, step):
            last = min(first + step, self.out_features)
            place, codes, scales = weight[first:last], self.codes[first:last], self._scales(first, last)
            self._storage.decode_into(place, codes, scales, self._storage.form, self._storage.decode_bytes)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), self.weight, self.bias)

    def _scales(self, first: int, last: int) -> Tensor | None:
        """Of some rows: the one of all, or their own."""
        scale = None if self.scale is None else self.scale.flatten()
        return scale if scale is None or scale.numel() == 1 else scale[first:last]


def _parameter(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
