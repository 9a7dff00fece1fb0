"""Official names of a Wan 2.1 VAE's parameters -> the names diffusers gives them.

Written apart from the loader's own tables, so that an error in either shows. Prefixes are replaced, the longest first,
then the layers inside a residual block. The trap: the official decoder numbers its layers through, four to a level,
and diffusers counts levels, with the upsampling of each beside its residual blocks. The encoder counts alike in both.
"""

LEVELS = 4
RESIDUAL_BLOCKS = 3

PREFIXES = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    "encoder.downsamples": "encoder.down_blocks",
    "decoder.upsamples.3": "decoder.up_blocks.0.upsamplers.0",
    "decoder.upsamples.7": "decoder.up_blocks.1.upsamplers.0",
    "decoder.upsamples.11": "decoder.up_blocks.2.upsamplers.0",
}
IN_BOTH = {
    "conv1": "conv_in",
    "middle.0": "mid_block.resnets.0",
    "middle.1": "mid_block.attentions.0",
    "middle.2": "mid_block.resnets.1",
    "head.0": "norm_out",
    "head.2": "conv_out",
}
PREFIXES |= {
    f"{half}.{ours}": f"{half}.{theirs}" for half in ("encoder", "decoder") for ours, theirs in IN_BOTH.items()
}
PREFIXES |= {
    f"decoder.upsamples.{(RESIDUAL_BLOCKS + 1) * level + block}": f"decoder.up_blocks.{level}.resnets.{block}"
    for level in range(LEVELS)
    for block in range(RESIDUAL_BLOCKS)
}
IN_RESIDUAL_BLOCK = {
    ".residual.0.": ".norm1.",
    ".residual.2.": ".conv1.",
    ".residual.3.": ".norm2.",
    ".residual.6.": ".conv2.",
    ".shortcut.": ".conv_shortcut.",
}


def to_diffusers(name: str) -> str:
    """The diffusers name of an official parameter; `KeyError` where no rule covers it."""
    covering = [prefix for prefix in PREFIXES if name.startswith(prefix + ".")]
    if not covering:
        raise KeyError(name)
    prefix = max(covering, key=len)
    name = PREFIXES[prefix] + name.removeprefix(prefix)
    for ours, theirs in IN_RESIDUAL_BLOCK.items():
        name = name.replace(ours, theirs)
    return name
