"""Captions in training: token ids, some of them missing, and attention to 512 positions at the cost of 64.

The transformers attend to 512 text positions, nearly all of them padding. The context of padding is zero, so all its
keys are equal, and so are its values: `n` equal keys weigh as much as one whose score is raised by log(n). Training
therefore computes `text_len` positions of which the last is always padding and stands for all that were left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from wan_core.attention.interface import Attend
from wan_core.models.t5 import Umt5Encoder
from wan_core.models.tokenizer import PAD_ID, Tokenizer
from wan_core.specs import DEFAULT_NEGATIVE_PROMPT

# What stands for "no caption": an empty prompt, and the prompt that an empty negative prompt is replaced by.
UNCONDITIONAL = ("", DEFAULT_NEGATIVE_PROMPT)


def padded_attention(text_len: int, full_len: int, device: torch.device, dtype: torch.dtype) -> Attend:
    """Cross attention over `text_len` positions, equal to attention over `full_len` with more padding at the end."""
    bias = torch.zeros(1, 1, 1, text_len, device=device, dtype=dtype)
    bias[..., -1] = math.log(full_len - text_len + 1)
    return partial(_attend, bias=bias)


def _attend(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor) -> Tensor:
    # Written out: 64 keys make a small score matrix, and no fused kernel with a bias is fast in both directions.
    q, k, v = (rearrange(each, "B L N D -> B N L D") for each in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.mT + bias
    return rearrange(scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v, "B N L D -> B L N D")


def token_rows(tokenizer: Tokenizer, captions: Sequence[str], length: int) -> Tensor:
    """Ids (N, length) int64, padded; a caption that does not fit is a mistake of the grammar or the vocabulary."""
    rows = torch.full((len(captions), length), PAD_ID, dtype=torch.int64)
    for row, caption in zip(rows, captions, strict=True):
        tokens = tokenizer.encode(caption)
        assert len(tokens.ids) <= length, f"{len(tokens.ids)} tokens, room for {length}: {caption!r}"
        row[: len(tokens.ids)] = torch.tensor(tokens.ids)
    return rows


@dataclass(frozen=True, slots=True)
class TextPath:
    """Ids to context (B, text_len, D), zero past the tokens of each caption; gradients reach the encoder."""

    encoder: Umt5Encoder
    unconditional: Tensor  # (2, text_len)
    text_len: int

    def context(self, ids: Tensor) -> Tensor:
        """Context of captions (B, L)."""
        mask = ids != PAD_ID
        return F.pad(self.encoder(ids, mask) * mask.unsqueeze(-1), (0, 0, 0, self.text_len - ids.shape[1]))

    def context_with_drops(self, ids: Tensor, drop: float, generator: torch.Generator) -> Tensor:
        """The same with a share `drop` of the captions replaced by one of the unconditional prompts, in equal parts."""
        batch, device = len(ids), ids.device
        dropped = torch.rand(batch, 1, 1, generator=generator, device=device) < drop
        kind = torch.randint(len(self.unconditional), (batch,), generator=generator, device=device)
        return torch.where(dropped, self.context(self.unconditional)[kind], self.context(ids))


def make_text_path(encoder: Umt5Encoder, tokenizer: Tokenizer, text_len: int, device: torch.device) -> TextPath:
    """`text_len` must leave at least one position of padding behind every prompt."""
    unconditional = token_rows(tokenizer, UNCONDITIONAL, text_len)
    assert bool((unconditional[:, -1] == PAD_ID).all()), f"text_len {text_len} leaves no padding"
    return TextPath(encoder, unconditional.to(device), text_len)
