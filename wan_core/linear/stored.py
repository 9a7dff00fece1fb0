"""A linear layer whose weight stays in memory as its file stores it: in 8 bits or fewer, decoded before each product.

It holds codes and their scales; what these mean is given as a function. The decoded weight is an ordinary matrix in
the dtype of the products, made anew for each call and gone after it. So the layer computes, to the last bit, what one
computes that was decoded when it was loaded; it takes the memory and the transfers of the codes, and the time of
writing its weight once for each product.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Writes to a place (rows, columns) what codes and scales (one for all rows or one for each; flat, float32) stand for in
# a form, by its name.
Decode = Callable[[Tensor, Tensor, Tensor | None, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How the weight of one layer is stored, and what decodes it.

    codes: their shape (rows, codes of a row), in `dtype`. scale: shape of the scales, `None` where there are none.
    form: the name of the coding, as `decode` knows it.
    """

    codes: tuple[int, ...]
    dtype: torch.dtype
    scale: tuple[int, ...] | None
    form: str
    decode: Decode


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
        scale = None if self.scale is None else self.scale.flatten()
        self._storage.decode(weight, self.codes, scale, self._storage.form)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), self.weight, self.bias)


def _parameter(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
