"""Official names of a Wan transformer's parameters -> the names diffusers gives them.

Written apart from the loader's own tables, so that an error in either shows. Each rule is a whole name with `*` for the
block's number; a name that no rule covers is an error, not a guess. The trap: diffusers numbers the norms of a block by
their order of use, so the affine one before cross attention, `norm3` of the checkpoint, is `norm2` there.
"""

OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "head.head": "proj_out",
}
IN_BLOCK = {
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
IN_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
ATTENTIONS = {"self_attn": "attn1", "cross_attn": "attn2"}


def _rules() -> dict[str, str]:
    rules = {"head.modulation": "scale_shift_table", "blocks.*.modulation": "blocks.*.scale_shift_table"}
    layers = dict(OUTSIDE)
    layers |= {f"blocks.*.{official}": f"blocks.*.{theirs}" for official, theirs in IN_BLOCK.items()}
    for attention, their_attention in ATTENTIONS.items():
        ours, theirs = f"blocks.*.{attention}", f"blocks.*.{their_attention}"
        layers |= {f"{ours}.{name}": f"{theirs}.{their_name}" for name, their_name in IN_ATTENTION.items()}
        rules |= {f"{ours}.{norm}.weight": f"{theirs}.{norm}.weight" for norm in ("norm_q", "norm_k")}
    for official, theirs in layers.items():
        rules |= {f"{official}.{leaf}": f"{theirs}.{leaf}" for leaf in ("weight", "bias")}
    return rules


RULES = _rules()


def to_diffusers(name: str) -> str:
    """The name in diffusers of an official parameter name; `KeyError` for a name that is not Wan's."""
    parts = name.split(".")
    if parts[0] != "blocks":
        return RULES[name]
    number = parts[1]
    return RULES[".".join(("blocks", "*", *parts[2:]))].replace("*", number)
