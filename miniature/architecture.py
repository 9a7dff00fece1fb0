"""Dimensions of the miniature: those of Wan 2.2 T2V-A14B in shape, small in size.

What is kept: heads of width 128, 256 timestep features, 16 latent channels, a VAE of stride (4, 8, 8), 512 text tokens,
UMT5's heads of width 64. What is chosen: sizes that give at most 16 MB per file and 48 MB in all in bfloat16 (experts
14.3 MB each, VAE 7.2, text encoder 6.0 with its vocabulary).
"""

from wan_core.specs import TextEncoderSpec, TransformerSpec, VaeSpec

TRANSFORMER = TransformerSpec(
    dim=256, ffn_dim=768, num_heads=2, num_layers=7, in_dim=16, out_dim=16, text_dim=256
)  # fmt: skip

# 24 would break both limits. 20 would fit, but a GPU's fast convolutions want channels in multiples of 8, and this VAE
# is trained on one: 16 makes them 16, 32 and 64.
VAE = VaeSpec(dim=16)

TEXT_ENCODER = TextEncoderSpec(
    vocab_size=1024, dim=256, attention_dim=256, ffn_dim=512, num_heads=4, num_layers=4
)  # fmt: skip
