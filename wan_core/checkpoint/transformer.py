"""Text-to-video experts: their dimensions out of their tensors, and what is refused in their place.

Dimensions come from shapes. Only the number of heads has no tensor that shows it: it is dim / 128 in every released Wan
model, and a file that differs says so in its metadata (`config`, a JSON text whose "transformer" entry holds num_heads,
the convention of ComfyUI's loader) or in the config.json of its folder. High and low experts have the same names and
shapes; which is which is told by `experts.py`.
"""

import math
import re
from collections.abc import Mapping

from ..errors import CheckpointError
from ..specs import T2V_A14B_TRANSFORMER, TransformerSpec
from .complete import expect_exactly, expect_names, num_layers, shape_of
from .inventory import transformer_shapes
from .json_text import parse_object
from .look import expect_decodable, expect_kind
from .read import Checkpoint
from .sentences import quoted

_HEAD_DIM = 128
_WANTED = "a Wan 2.2 text-to-video expert such as wan2.2_t2v_high_noise_14B_fp16.safetensors"

# Tensors that only another member of the family has.
_VARIANTS: tuple[tuple[str, str], ...] = (
    (r"^vace_(patch_embedding|blocks)\b", "a VACE model"),
    (r"^control_adapter\.", "a camera-control model"),
    (r"^casual_audio_encoder\.|^audio_injector\.", "a speech-to-video (S2V) model"),
    (r"^audio_proj\.", "a HuMo model"),
    (r"^(face_adapter|motion_encoder|pose_patch_embedding)\.", "an Animate model"),
    (r"^patch_embedding_(mask|pose|global)\.", "a pose-driven model (SCAIL, WanDancer)"),
    (r"^ref_conv\.", "a Fun control model"),
    (r"^img_emb\.|\.k_img\.|image_embedder\.|\.add_k_proj\.", "a Wan 2.1 image-to-video model"),
)
# What diffusers calls the entries of a configuration.
_DIFFUSERS_CONFIG = {"num_attention_heads": "num_heads", "in_channels": "in_dim", "out_channels": "out_dim"}
# Input and output channels -> the model they belong to.
_BY_CHANNELS: Mapping[tuple[int, int], str] = {
    (36, 16): "a Wan 2.2 image-to-video (I2V-A14B) expert",
    (48, 48): "the Wan 2.2 TI2V-5B model",
    (48, 16): "a Fun control model",
    (52, 16): "a Fun control model",
}


def transformer_spec(checkpoint: Checkpoint) -> TransformerSpec:
    """Dimensions of a text-to-video expert; raises `CheckpointError` in one sentence for anything else."""
    expect_kind(checkpoint, "transformer", _WANTED)
    _expect_text_to_video(checkpoint)
    expect_decodable(checkpoint)
    spec = _dimensions(checkpoint)
    expect_exactly(checkpoint, "transformer", transformer_shapes(spec), "a text-to-video expert")
    return spec


def variant(checkpoint: Checkpoint) -> str | None:
    """Which member of the family this is, in words; `None` for text to video."""
    names = checkpoint.tensors_of("transformer")
    for pattern, what in _VARIANTS:
        if any(re.search(pattern, name) for name in names):
            return what
    embedding, head = names.get("patch_embedding.weight"), names.get("head.head.weight")
    if embedding is None or head is None or len(embedding.shape) != 5 or len(head.shape) != 2:
        return None
    channels = embedding.shape[1], head.shape[0] // max(math.prod(embedding.shape[2:]), 1)
    expected = T2V_A14B_TRANSFORMER.in_dim, T2V_A14B_TRANSFORMER.out_dim
    return None if channels == expected else _BY_CHANNELS.get(channels, "another member of the Wan family")


def _expect_text_to_video(checkpoint: Checkpoint) -> None:
    if (found := variant(checkpoint)) is None:
        return
    embedding = checkpoint.tensors.get("patch_embedding.weight")
    channels = f" ({embedding.shape[1]} input channels)" if embedding and len(embedding.shape) == 5 else ""
    raise CheckpointError(
        f"{checkpoint.label} is {found}{channels}, expected {_WANTED} ({T2V_A14B_TRANSFORMER.in_dim} input channels)"
    )


def _dimensions(checkpoint: Checkpoint) -> TransformerSpec:
    # Names before shapes: of an incomplete file one wants to hear how much of it is missing.
    layers = num_layers(checkpoint, "blocks")
    expect_names(checkpoint, transformer_shapes(_with_layers(max(layers, 1))).keys(), "a text-to-video expert")
    dim, in_dim, *patch = shape_of(checkpoint, "patch_embedding.weight", 5)
    config = _config(checkpoint)
    spec = TransformerSpec(
        dim=dim,
        ffn_dim=shape_of(checkpoint, "blocks.0.ffn.0.weight", 2)[0],
        num_heads=_num_heads(checkpoint, dim, config),
        num_layers=layers,
        in_dim=in_dim,
        out_dim=shape_of(checkpoint, "head.head.weight", 2)[0] // math.prod(patch),
        text_dim=shape_of(checkpoint, "text_embedding.0.weight", 2)[1],
        freq_dim=shape_of(checkpoint, "time_embedding.0.weight", 2)[1],
        text_len=_number(checkpoint, config, "text_len", T2V_A14B_TRANSFORMER.text_len),
        patch=tuple(patch),
        eps=_number(checkpoint, config, "eps", T2V_A14B_TRANSFORMER.eps),
    )
    for name in ("dim", "ffn_dim", "num_layers", "in_dim", "out_dim", "freq_dim"):
        stated = config.get(name, getattr(spec, name))
        if stated != getattr(spec, name):
            raise CheckpointError(
                f"the configuration of {checkpoint.label} says {name} {stated!r}, its tensors say {getattr(spec, name)}"
            )
    return spec


def _with_layers(layers: int) -> TransformerSpec:
    """A spec whose tensors have the right names; their shapes do not matter yet."""
    return TransformerSpec(dim=1, ffn_dim=1, num_heads=1, num_layers=layers, in_dim=1, out_dim=1, text_dim=1)


def _num_heads(checkpoint: Checkpoint, dim: int, config: Mapping[str, object]) -> int:
    if "num_heads" not in config and dim < _HEAD_DIM:
        raise CheckpointError(
            f"{checkpoint.label} is {dim} wide, which does not show its number of heads: expected num_heads in its "
            "metadata or in the config.json of its folder"
        )
    num_heads = _number(checkpoint, config, "num_heads", max(dim // _HEAD_DIM, 1))
    if dim % num_heads or (dim // num_heads) % 2:
        raise CheckpointError(
            f"{checkpoint.label} is {dim} wide, which {num_heads} heads do not divide into heads of even width"
        )
    return num_heads


def _config(checkpoint: Checkpoint) -> Mapping[str, object]:
    """What the file says about itself, its own metadata before the folder's config.json."""
    folder = {_DIFFUSERS_CONFIG.get(name, name): value for name, value in checkpoint.config.items()}
    stated = checkpoint.metadata.get("config")
    if stated is None:
        return folder
    what = f"the config in the metadata of {checkpoint.label}"
    entry = parse_object(stated.encode("utf-8", "replace"), what).get("transformer", {})
    return {**folder, **entry} if isinstance(entry, dict) else folder


def _number(checkpoint: Checkpoint, config: Mapping[str, object], name: str, default: float) -> float:
    """A number out of a configuration, of the kind of its default: a whole one, or any."""
    value = config.get(name, default)
    kinds = (int,) if isinstance(default, int) else (int, float)
    if type(value) not in kinds or not 0 < value < 2**31:
        raise CheckpointError(
            f"the configuration of {checkpoint.label} says {name} {quoted(value)}, expected a number such as {default}"
        )
    return value
