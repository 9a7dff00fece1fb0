"""Modules of diffusers built from our specs."""

from diffusers import WanTransformer3DModel

from wan_core.specs import TransformerSpec


def make_transformer(spec: TransformerSpec) -> WanTransformer3DModel:
    """An expert of these dimensions, its weights not yet given."""
    model = WanTransformer3DModel(
        patch_size=spec.patch,
        num_attention_heads=spec.num_heads,
        attention_head_dim=spec.head_dim,
        in_channels=spec.in_dim,
        out_channels=spec.out_dim,
        text_dim=spec.text_dim,
        freq_dim=spec.freq_dim,
        ffn_dim=spec.ffn_dim,
        num_layers=spec.num_layers,
        cross_attn_norm=True,
        eps=spec.eps,
    )
    return model.eval().requires_grad_(False)
