"""The UMT5 encoder (arXiv 2304.09151), and prompts made into the context that the transformers attend to.

A T5 v1.1 encoder (RMS norm before each half of a block, gated GELU, no biases) whose relative position bias belongs to
every layer instead of to the first alone. Parameter names are those of the official checkpoint, `models_t5_umt5-xxl`.

What bites: attention scores are not divided by sqrt(head_dim), the weights were trained with the scale inside. The
residual stream is float32 whatever the weights are: in float16 it would overflow, and the rest costs nothing.
Context is cut to the real tokens and padded with exact zeros; the transformer attends to all of it, padding included.

Shapes: x (B, L, D) residual stream; q, k, v (B, N, L, H) with N heads of width H; bias (B, N, L, L) over (query, key).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import InputError
from ..specs import TextEncoderSpec
from .layers import Linear, RmsNorm
from .tokenizer import Tokenizer

# A power of two, so that it rounds nothing but what is already negligible: room up to 4.2 million in float16.
FLOAT16_FRACTION = 2.0**-6


class Umt5Encoder(nn.Module):
    """Token ids -> one float32 vector per token. May be built on the meta device."""

    def __init__(self, spec: TextEncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.token_embedding = nn.Embedding(spec.vocab_size, spec.dim)
        self.blocks = nn.ModuleList(Umt5Block(spec) for _ in range(spec.num_layers))
        self.norm = RmsNorm(spec.dim, spec.eps)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (B, L) int64, mask (B, L) bool, true at real tokens -> (B, L, dim) float32; rows of padding are noise."""
        x = self.token_embedding(ids).float()
        buckets = relative_buckets(ids.shape[1], self.spec, ids.device)
        for block in self.blocks:
            x = block(x, buckets, mask)
        return self.norm(x)


class Umt5Block(nn.Module):
    def __init__(self, spec: TextEncoderSpec) -> None:
        super().__init__()
        self.norm1 = RmsNorm(spec.dim, spec.eps)
        self.attn = Umt5Attention(spec)
        self.norm2 = RmsNorm(spec.dim, spec.eps)
        self.ffn = GatedFeedForward(spec)
        self.pos_embedding = RelativeBias(spec)

    def forward(self, x: Tensor, buckets: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), self.pos_embedding(buckets), mask)
        return x + self.ffn(self.norm2(x))


class Umt5Attention(nn.Module):
    def __init__(self, spec: TextEncoderSpec) -> None:
        super().__init__()
        self.num_heads = spec.num_heads
        self.q = Projection(spec.dim, spec.attention_dim)
        self.k = Projection(spec.dim, spec.attention_dim)
        self.v = Projection(spec.dim, spec.attention_dim)
        self.o = Projection(spec.attention_dim, spec.dim)

    def forward(self, x: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            rearrange(project(x), "B L (N H) -> B N L H", N=self.num_heads) for project in (self.q, self.k, self.v)
        )
        # The lowest finite number and not -inf: a row of nothing but padding must not become NaN.
        bias = bias.to(q.dtype).masked_fill(~mask[:, None, None, :], torch.finfo(q.dtype).min)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(rearrange(out, "B N L H -> B L (N H)"))


class GatedFeedForward(nn.Module):
    """fc2(gelu(gate(x)) * fc1(x)), the place where T5's activations outgrow float16: there it runs on a fraction."""

    def __init__(self, spec: TextEncoderSpec) -> None:
        super().__init__()
        self.gate = nn.Sequential(Projection(spec.dim, spec.ffn_dim), nn.GELU(approximate="tanh"))
        self.fc1 = Projection(spec.dim, spec.ffn_dim)
        self.fc2 = Projection(spec.ffn_dim, spec.dim)

    def forward(self, x: Tensor) -> Tensor:
        fraction = FLOAT16_FRACTION if self.fc2.weight.dtype is torch.float16 else 1.0
        hidden = saturate(self.gate(x) * (self.fc1(x) * fraction))
        return self.fc2(hidden).float() / fraction


class RelativeBias(nn.Module):
    """One learned bias per head and bucket of distance."""

    def __init__(self, spec: TextEncoderSpec) -> None:
        super().__init__()
        self.embedding = nn.Embedding(spec.num_buckets, spec.num_heads)

    def forward(self, buckets: Tensor) -> Tensor:
        return rearrange(self.embedding(buckets), "Q K N -> 1 N Q K")


class Projection(Linear):
    """A linear layer without bias, saturating in float16."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return saturate(super().forward(x))


def saturate(x: Tensor) -> Tensor:
    """Infinities of float16 become its largest value, without asking the device whether there are any."""
    limit = torch.finfo(torch.float16).max
    return x.clamp(-limit, limit) if x.dtype is torch.float16 else x


def relative_buckets(length: int, spec: TextEncoderSpec, device: torch.device) -> Tensor:
    """(L, L) int64: the bucket of each (query, key) distance, those of keys ahead of the query in the upper half."""
    per_side = spec.num_buckets // 2
    position = torch.arange(length, device=device)
    ahead = position[None, :] - position[:, None]
    distance, bucket = ahead.abs(), per_side * (ahead > 0)
    # Edges as numbers, not as a tensor: a copy to the device would make it wait, and cannot be recorded.
    for edge in bucket_edges(per_side, spec.max_distance)[1:]:
        bucket += distance >= edge
    return bucket


def bucket_edges(per_side: int, max_distance: int) -> list[int]:
    """The first distance of each bucket: exact up to half of them, then in equal ratios towards `max_distance`.

    In integers, because the logarithm of the usual formula sits on the edges and rounds differently per device.
    """
    exact = per_side // 2
    steps = per_side - exact
    edges = list(range(exact))
    distance = exact
    for step in range(steps):
        # distance >= exact * (max_distance / exact) ** (step / steps), both sides raised to `steps`
        while distance**steps < exact ** (steps - step) * max_distance**step:
            distance += 1
        edges.append(distance)
    return edges


@torch.no_grad()
def encode_prompts(encoder: Umt5Encoder, tokenizer: Tokenizer, prompts: Sequence[str], text_len: int = 512) -> Tensor:
    """Prompts -> context (B, text_len, dim) float32 on the encoder's device, exactly zero past each prompt's tokens.

    Every prompt runs alone over its real tokens: the same as a masked batch (padding keys get no weight), less work,
    and a prompt's context never depends on its neighbours.
    """
    check_vocabulary(encoder.spec, tokenizer)
    device = encoder.token_embedding.weight.device
    context = torch.zeros(len(prompts), text_len, encoder.spec.dim, device=device)
    for row, prompt in zip(context, prompts, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt, max_tokens=text_len).ids], device=device)
        row[: ids.shape[1]] = encoder(ids, torch.ones_like(ids, dtype=torch.bool))[0]
    return context


def check_vocabulary(spec: TextEncoderSpec, tokenizer: Tokenizer) -> None:
    """Raise `InputError` where a tokenizer cannot be the one of an encoder.

    An embedding may have some rows more than the vocabulary has pieces (UMT5-XXL is padded), never many.
    """
    if not 0.95 * spec.vocab_size <= tokenizer.vocab_size <= spec.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} pieces and the text encoder {spec.vocab_size} embeddings, so "
            f"they belong to different models; expected the spiece.model that came with this text encoder"
        )
