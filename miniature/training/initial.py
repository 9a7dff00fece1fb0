"""Weights to begin with.

Experts: every block begins as the identity (adaLN-Zero, arXiv:2212.09748), and the velocity as zero. VAE: every
residual block begins as the identity too, and changes of frame rate as copies, so that what the decoder first sees of a
picture has come through a few linear maps. Text encoder: T5's own scales; its scores are not divided by the width of a
head, so the queries are drawn that much smaller.
"""

import torch
from torch import nn

from wan_core.models.t5 import Umt5Encoder
from wan_core.models.transformer import WanTransformer
from wan_core.models.vae21 import WanVae
from wan_core.models.vae_layers import AttentionBlock, Downsample, ResidualBlock, Upsample

_TIME_STD = 0.02
# Nearly all text positions are padding, with a score of zero: sharper scores let a caption be heard among it from the
# first step.
_CROSS_SHARPNESS = 1.5
# The norms see directions only: without a constant beside it, a bright pixel and a dim one would look alike.
_BIAS_STD = 0.5
# A latent that is mostly noise would teach the decoder to ignore it.
_FIRST_LOG_VARIANCE = -5.0


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


@torch.no_grad()
def init_vae(vae: WanVae) -> None:
    for module in vae.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=fan_in**-0.5)
            nn.init.normal_(module.bias, std=_BIAS_STD)
    for module in vae.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.residual["6"].weight)
            nn.init.zeros_(module.residual["6"].bias)
        elif isinstance(module, AttentionBlock):
            nn.init.zeros_(module.proj.weight)
            nn.init.zeros_(module.proj.bias)
        elif isinstance(module, Upsample | Downsample) and module.time_conv is not None:
            _copy_frames(module.time_conv)
    nn.init.zeros_(vae.conv1.bias)
    nn.init.constant_(vae.conv1.bias[vae.spec.latent_channels :], _FIRST_LOG_VARIANCE)


def _copy_frames(conv: nn.Conv3d) -> None:
    """Each output channel takes its input channel at the newest frame; an upsampling has two outputs for each."""
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    for output in range(conv.out_channels):
        conv.weight[output, output % conv.in_channels, -1] = 1.0
