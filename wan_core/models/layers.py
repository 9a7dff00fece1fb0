"""The pieces of the Wan transformer: linear layers, norms, embeddings and the two kinds of attention.

One rule of precision holds for all of them: matrix products run in the dtype of their weights, everything else (norms,
rotation, modulation) in float32, and what a product is fed is rounded once, at its door. `Linear` is that door.

Layouts: hidden states are (B, L, D); q, k, v are (B, L, N, D) with D the head dimension, at the interface of attention
and nowhere before it. RMSNorm of q and k spans the full width, so it comes before the split into heads.

Attribute names are those of the official checkpoint, because they are the parameters' names.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..attention.interface import Attend
from ..kernels.block import BlockKernels
from ..specs import TransformerSpec
from .rope import Rope

LinearFactory = Callable[[int, int], nn.Module]

MAX_PERIOD = 10000.0


class Linear(nn.Linear):
    """A linear layer that takes any float dtype and computes, and answers, in the dtype of its weight.

    is_plain: weight and bias are all there is, so what follows may be computed in the product's epilogue. A subclass
    does not inherit that (`kernels.triton_block.expand_in_epilogue`).
    """

    is_plain = True

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """Layer norm in float32 whatever comes in; float32 comes out."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (None if value is None else value.float() for value in (self.weight, self.bias))
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)


class RmsNorm(nn.Module):
    """Root mean square norm (arXiv:1910.07467) over the last axis, in float32 whatever comes in; float32 comes out."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps)


class PatchEmbedding(nn.Conv3d):
    """Latent (B, C, T, H, W) -> tokens (B, L, D).

    The parameters are a convolution's; its kernel is its stride, so it is a matrix product over patches, and that is
    how it is computed: the tokens come out in their order, and no convolution algorithm has to be searched for.
    """

    def __init__(self, in_dim: int, dim: int, patch: tuple[int, int, int]) -> None:
        super().__init__(in_dim, dim, kernel_size=patch, stride=patch)

    def forward(self, latent: Tensor) -> Tensor:
        t, h, w = self.kernel_size
        patches = rearrange(latent, "B C (T t) (H h) (W w) -> B (T H W) (C t h w)", t=t, h=h, w=w)
        weight = rearrange(self.weight, "D C t h w -> D (C t h w)")
        return F.linear(patches.to(weight.dtype), weight, self.bias)


def timestep_features(timestep: Tensor, dim: int) -> Tensor:
    """Sinusoids of a timestep in [0, 1000]: (...,) -> (..., dim) float32, cosines before sines.

    Computed in float64, as in the reference: an angle of 1000 radians keeps only four decimals in float32. It is one
    small vector per forward.
    """
    assert dim % 2 == 0, f"an even number of features, got {dim}"
    half = torch.arange(dim // 2, dtype=torch.float64, device=timestep.device)
    angles = timestep.double().unsqueeze(-1) * MAX_PERIOD ** (-half / (dim // 2))
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale normed hidden states, all in float32; shift and scale are (B, 1 or L, D)."""
    return x * (1 + scale) + shift


class KeyValue(NamedTuple):
    """Keys (normed) and values of the text for one block, each (B, L, N, D)."""

    keys: Tensor
    values: Tensor


class _Attention(nn.Module):
    """The projections and norms that self and cross attention share."""

    def __init__(self, spec: TransformerSpec, attend: Attend, linear: LinearFactory, kernels: BlockKernels) -> None:
        super().__init__()
        self.q = linear(spec.dim, spec.dim)
        self.k = linear(spec.dim, spec.dim)
        self.v = linear(spec.dim, spec.dim)
        self.o = linear(spec.dim, spec.dim)
        self.norm_q = RmsNorm(spec.dim, spec.eps)
        self.norm_k = RmsNorm(spec.dim, spec.eps)
        self.num_heads = spec.num_heads
        self.attend = attend
        self.kernels = kernels

    def norm_heads(self, x: Tensor, norm: RmsNorm, rope: Rope | None, dtype: torch.dtype) -> Tensor:
        """q or k (B, L, D) -> (B, L, N, D), normed and rotated in one stretch of float32, rounded once at its end."""
        return self.kernels.rms_norm(x, norm.weight, self.num_heads, rope, norm.eps, dtype)

    def split_heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "B L (N D) -> B L N D", N=self.num_heads)


class SelfAttention(_Attention):
    """Attention among the tokens, with rotary positions on q and k."""

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        v = self.split_heads(self.v(x))
        q = self.norm_heads(self.q(x), self.norm_q, rope, v.dtype)
        k = self.norm_heads(self.k(x), self.norm_k, rope, v.dtype)
        return self.o(rearrange(self.attend(q, k, v), "B L N D -> B L (N D)"))


class CrossAttention(_Attention):
    """Attention from the tokens to the text, without positions. The text side is projected apart, once per run."""

    def project_text(self, context: Tensor) -> KeyValue:
        """Keys and values of the embedded text (B, L, D)."""
        values = self.split_heads(self.v(context))
        return KeyValue(self.norm_heads(self.k(context), self.norm_k, None, values.dtype), values)

    def forward(self, x: Tensor, text: KeyValue) -> Tensor:
        q = self.norm_heads(self.q(x), self.norm_q, None, text.keys.dtype)
        return self.o(rearrange(self.attend(q, text.keys, text.values), "B L N D -> B L (N D)"))
