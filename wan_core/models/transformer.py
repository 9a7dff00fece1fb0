"""The Wan 2.2 transformer: one expert, from latent and timestep to velocity (Wan, arXiv:2503.20314).

Patches -> blocks of (self attention, cross attention to the text, feed-forward) -> head -> patches put back. The
timestep reaches every block as six modulation vectors (shift, scale and gate, for attention and feed-forward), one set
per sample or, where a model wants it, per token. All 512 text positions are attended, padding included: the padding is
what the model was trained on.

Parameter names are exactly those of the official checkpoint, and a model holds no tensor but its parameters, so it can
be built under `torch.device("meta")` and receive them one by one. The blocks are called one after the other from a
plain loop: forward hooks on them and a `torch.compile` of each, sharing one graph, work.

Deliberately not here: loading, devices, guidance, the choice of kernels (`attend` and `linear` are given), and the
concatenation of an image's latent channels, which the caller does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..attention.interface import Attend
from ..errors import InputError
from ..kernels.block import TORCH, BlockKernels
from ..specs import TransformerSpec
from .layers import (
    CrossAttention,
    KeyValue,
    LayerNorm,
    Linear,
    LinearFactory,
    PatchEmbedding,
    SelfAttention,
    modulate,
    timestep_features,
)
from .rope import Rope, RopeCache

_FLOAT32_PARTS = frozenset({"modulation", "patch_embedding", "time_embedding", "time_projection", "head"})


def wants_float32(name: str) -> bool:
    """Whether a parameter, by its official name, stays in float32 whatever the dtype of the weights.

    Modulation and norms act on the float32 side; the embeddings of patch and time and the head are 1.3% of an A14B
    expert and stand where every later number depends on them.
    """
    return any(part in _FLOAT32_PARTS or part.startswith("norm") for part in name.split("."))


@dataclass(frozen=True, slots=True)
class TextContext:
    """A prompt as the blocks see it: keys and values per block, in the dtype of the matrix products.

    419 MB per prompt for an A14B expert in bfloat16; it belongs to the expert that made it.
    """

    blocks: tuple[KeyValue, ...]

    @property
    def batch(self) -> int:
        return self.blocks[0].keys.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.blocks[0].keys.dtype

    def videos(self, start: int, stop: int) -> "TextContext":
        """The contexts of some videos of the batch, as views."""
        if start == 0 and stop >= self.batch:
            return self
        return TextContext(tuple(KeyValue(each.keys[start:stop], each.values[start:stop]) for each in self.blocks))

    def concatenate(self, other: "TextContext") -> "TextContext":
        """Both as one batch, this one first: two passes of guidance in one forward."""
        pairs = zip(self.blocks, other.blocks, strict=True)
        return TextContext(
            tuple(
                KeyValue(torch.cat((mine.keys, its.keys)), torch.cat((mine.values, its.values))) for mine, its in pairs
            )
        )


@dataclass(slots=True, kw_only=True, eq=False)
class _Stream:
    """The residual stream x (B, L, D) on its way through the blocks, and what every block is given beside it."""

    x: Tensor
    time: Tensor
    modulation: Tensor
    rope: Rope
    grid: tuple[int, int, int]


class WanBlock(nn.Module):
    """Self attention, cross attention and feed-forward around the residual stream."""

    def __init__(
        self,
        spec: TransformerSpec,
        attend: Attend,
        cross_attend: Attend,
        linear: LinearFactory,
        kernels: BlockKernels = TORCH,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(spec.dim, spec.eps, elementwise_affine=False)
        self.self_attn = SelfAttention(spec, attend, linear, kernels)
        self.norm3 = LayerNorm(spec.dim, spec.eps)
        self.cross_attn = CrossAttention(spec, cross_attend, linear, kernels)
        self.norm2 = LayerNorm(spec.dim, spec.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            linear(spec.dim, spec.ffn_dim), nn.GELU(approximate="tanh"), linear(spec.ffn_dim, spec.dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, spec.dim) * spec.dim**-0.5)
        self.kernels = kernels
        self.eps = spec.eps

    def forward(self, x: Tensor, time: Tensor, rope: Rope, text: KeyValue) -> Tensor:
        """x: residual stream (B, L, D), kept in its dtype. time: (B, 1 or L, 6, D) float32."""
        kernels, eps, dtype = self.kernels, self.eps, text.keys.dtype
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.modulation.float() + time).unbind(dim=2)
        # What a product is fed is rounded where it is made, and every sum is joined with the norm that reads it.
        h = kernels.norm(x, 1 + scale, shift, eps, dtype)
        h = self.self_attn(h, rope)
        x, h = kernels.add_norm(x, h, gate, self.norm3.weight.float(), self.norm3.bias.float(), eps, dtype)
        h = self.cross_attn(h, text)
        x, h = kernels.add_norm(x, h, None, 1 + ffn_scale, ffn_shift, eps, dtype)
        # The GELU in between is the kernels': it may run inside the first product.
        expand, _, contract = self.ffn
        return kernels.add(x, contract(kernels.expand(expand, h)), ffn_gate)


class Head(nn.Module):
    """Tokens (B, L, D) -> the numbers of their patches (B, L, t * h * w * C), channels fastest."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        t, h, w = spec.patch
        self.norm = LayerNorm(spec.dim, spec.eps, elementwise_affine=False)
        self.head = Linear(spec.dim, t * h * w * spec.out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, spec.dim) * spec.dim**-0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """time: the time embedding before its projection, (B, 1 or L, D) float32."""
        shift, scale = (self.modulation.float() + time.unsqueeze(2)).unbind(dim=2)
        return self.head(modulate(self.norm(x), shift, scale))


class WanTransformer(nn.Module):
    """One expert of a Wan 2.2 model.

    attend, cross_attend: attention over (B, L, N, D) for self and cross attention.
    linear: makes the ten linear layers of each block (400 in A14B, 98.4% of its parameters); it gets (in, out). The
    six outside the blocks are always plain.
    residual: dtype of the residual stream between the blocks; `None` takes the dtype of the matrix products.
    kernels: what computes the blocks' work between the products.
    """

    def __init__(
        self,
        spec: TransformerSpec,
        *,
        attend: Attend,
        cross_attend: Attend,
        linear: LinearFactory = Linear,
        residual: torch.dtype | None = torch.float32,
        kernels: BlockKernels = TORCH,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.residual = residual
        self.patch_embedding = PatchEmbedding(spec.in_dim, spec.dim, spec.patch)
        self.text_embedding = nn.Sequential(
            Linear(spec.text_dim, spec.dim), nn.GELU(approximate="tanh"), Linear(spec.dim, spec.dim)
        )
        self.time_embedding = nn.Sequential(Linear(spec.freq_dim, spec.dim), nn.SiLU(), Linear(spec.dim, spec.dim))
        self.time_projection = nn.Sequential(nn.SiLU(), Linear(spec.dim, 6 * spec.dim))
        self.blocks = nn.ModuleList(
            WanBlock(spec, attend, cross_attend, linear, kernels) for _ in range(spec.num_layers)
        )
        self.head = Head(spec)
        self.rope = RopeCache(spec.head_dim)

    def prepare_text(self, context: Tensor) -> TextContext:
        """Keys and values of every block for a text embedding (B, L <= 512, text_dim), computed once per run.

        Shorter texts are padded with zeros. Raises `InputError` for another width or more tokens.
        """
        self._check_text(context)
        padding = self.spec.text_len - context.shape[1]
        embedded = self.text_embedding(F.pad(context, (0, 0, 0, padding)))
        return TextContext(tuple(block.cross_attn.project_text(embedded) for block in self.blocks))

    def forward(self, latent: Tensor, timestep: Tensor, text: TextContext) -> Tensor:
        """Velocity (B, C_out, T, H, W) float32.

        latent: (B, C_in, T, H, W), normalised, any float dtype. timestep: 1000 * sigma, (B,) or per token (B, L).
        Raises `InputError` for a latent that this expert cannot take.
        """
        stream = self._enter(latent, timestep, text)
        for block, keys_values in zip(self.blocks, text.blocks, strict=True):
            stream.x = block(stream.x, stream.modulation, stream.rope, keys_values)
        return self._leave(stream)

    def in_turns(self, latent: Tensor, timestep: Tensor, text: TextContext) -> Iterator[Tensor]:
        """The same forward with a pause before the first block and after each, so that two can run side by side.

        What comes last is the velocity.
        """
        stream = self._enter(latent, timestep, text)
        yield stream.x
        for block, keys_values in zip(self.blocks, text.blocks, strict=True):
            stream.x = block(stream.x, stream.modulation, stream.rope, keys_values)
            yield stream.x
        yield self._leave(stream)

    def _enter(self, latent: Tensor, timestep: Tensor, text: TextContext) -> "_Stream":
        grid = self._check_inputs(latent, timestep, text)
        # (B, 1) stands for one timestep per sample: everything below broadcasts over the tokens.
        features = timestep_features(timestep if timestep.ndim == 2 else timestep.unsqueeze(1), self.spec.freq_dim)
        time = self.time_embedding(features)
        return _Stream(
            x=self.patch_embedding(latent).to(self.residual or text.dtype),
            time=time,
            modulation=rearrange(self.time_projection(time), "B L (six D) -> B L six D", six=6),
            rope=self.rope(grid, latent.device),
            grid=grid,
        )

    def _leave(self, stream: "_Stream") -> Tensor:
        return self._unpatchify(self.head(stream.x, stream.time), stream.grid).float()

    def _unpatchify(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        (t, h, w), (num_t, num_h, num_w) = self.spec.patch, grid
        pattern = "B (T H W) (t h w C) -> B C (T t) (H h) (W w)"
        return rearrange(x, pattern, T=num_t, H=num_h, W=num_w, t=t, h=h, w=w)

    def _check_text(self, context: Tensor) -> None:
        spec = self.spec
        if context.ndim != 3 or context.shape[2] != spec.text_dim:
            raise InputError(
                f"the text embedding has shape {tuple(context.shape)}, expected (batch, tokens, {spec.text_dim}); "
                f"the text encoder that belongs to this transformer is {spec.text_dim} wide"
            )
        if context.shape[1] > spec.text_len:
            raise InputError(f"the text embedding has {context.shape[1]} tokens, expected at most {spec.text_len}")

    def _check_inputs(self, latent: Tensor, timestep: Tensor, text: TextContext) -> tuple[int, int, int]:
        """The token grid (T, H, W) of a latent that is what this expert takes."""
        spec = self.spec
        if latent.ndim != 5 or latent.shape[1] != spec.in_dim:
            raise InputError(
                f"the latent has shape {tuple(latent.shape)}, expected (batch, {spec.in_dim} channels, frames, rows, "
                f"columns)"
            )
        size = tuple(latent.shape[2:])
        grid = tuple(length // step for length, step in zip(size, spec.patch, strict=True))
        if any(length % step or not length for length, step in zip(size, spec.patch, strict=True)):
            nearest = tuple(max(1, round(n / step)) * step for n, step in zip(size, spec.patch, strict=True))
            raise InputError(
                f"the latent is {size} in frames, rows and columns, expected multiples of {spec.patch}; "
                f"the nearest is {nearest}"
            )
        if text.batch != latent.shape[0]:
            raise InputError(f"{text.batch} prompts came with a batch of {latent.shape[0]} latents, expected as many")
        num_tokens = spec.num_tokens(size)
        assert timestep.shape in ((latent.shape[0],), (latent.shape[0], num_tokens)), f"timestep {timestep.shape}"
        return grid
