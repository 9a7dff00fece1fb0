"""Weights to begin with. Every block begins as the identity (adaLN-Zero, arXiv:2212.09748), and the velocity as zero.

The normal scales of the text encoder are T5's own: its scores are not divided by the width of a head, so the queries
are drawn that much smaller.
"""

import torch
from torch import nn

from wan_core.models.t5 import Umt5Encoder
from wan_core.models.transformer import WanTransformer

_TIME_STD = 0.02
# Nearly all text positions are padding, with a score of zero: sharper scores let a caption be heard among it from the
# first step.
_CROSS_SHARPNESS = 1.5


@torch.no_grad()
def init_transformer(model: WanTransformer) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(model.patch_embedding.weight.flatten(1))
    nn.init.zeros_(model.patch_embedding.bias)
    for layer in (model.time_embedding[0], model.time_embedding[2]):
        nn.init.normal_(layer.weight, std=_TIME_STD)
    nn.init.zeros_(model.time_projection[1].weight)
    for block in model.blocks:
        nn.init.zeros_(block.modulation)
        nn.init.zeros_(block.cross_attn.o.weight)
        nn.init.constant_(block.cross_attn.norm_q.weight, _CROSS_SHARPNESS)
        nn.init.constant_(block.cross_attn.norm_k.weight, _CROSS_SHARPNESS)
    nn.init.zeros_(model.head.modulation)
    nn.init.zeros_(model.head.head.weight)


@torch.no_grad()
def init_text_encoder(encoder: Umt5Encoder) -> None:
    spec = encoder.spec
    nn.init.normal_(encoder.token_embedding.weight)
    for block in encoder.blocks:
        nn.init.normal_(block.attn.q.weight, std=(spec.dim * spec.attention_dim / spec.num_heads) ** -0.5)
        for layer in (block.attn.k, block.attn.v, block.ffn.gate[0], block.ffn.fc1):
            nn.init.normal_(layer.weight, std=spec.dim**-0.5)
        nn.init.normal_(block.attn.o.weight, std=spec.attention_dim**-0.5)
        nn.init.normal_(block.ffn.fc2.weight, std=spec.ffn_dim**-0.5)
        nn.init.normal_(block.pos_embedding.embedding.weight, std=spec.dim**-0.5)
