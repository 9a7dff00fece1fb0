"""Modules of transformers built from our specs."""

from transformers import UMT5Config, UMT5EncoderModel

from wan_core.specs import TextEncoderSpec


def make_text_encoder(spec: TextEncoderSpec) -> UMT5EncoderModel:
    """A text encoder of these dimensions, its weights not yet given."""
    config = UMT5Config(
        vocab_size=spec.vocab_size,
        d_model=spec.dim,
        d_kv=spec.attention_dim // spec.num_heads,
        d_ff=spec.ffn_dim,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        relative_attention_num_buckets=spec.num_buckets,
        relative_attention_max_distance=spec.max_distance,
        feed_forward_proj="gated-gelu",
        attn_implementation="eager",
    )
    return UMT5EncoderModel(config).eval()
