"""What a file is by the names of its tensors, whether or not anything here can use it.

Naming a file that was given in the wrong place is half of its error message. The patterns are of names as they stand in
the file; the first that fits decides.
"""

import re
from dataclasses import dataclass
from typing import Literal

from ..errors import CheckpointError
from .keys import Kind
from .read import Checkpoint
from .sentences import quoted

LookKind = Literal["transformer", "text_encoder", "vae", "lora", "unknown"]


@dataclass(frozen=True, slots=True)
class Look:
    """A kind of file and, for a sentence, what it is."""

    kind: LookKind
    what: str


_KNOWN = {
    "transformer": Look("transformer", "a Wan transformer"),
    "text_encoder": Look("text_encoder", "a T5 text encoder"),
    "vae": Look("vae", "a Wan VAE"),
}
_LOOKS: tuple[tuple[str, Look], ...] = (
    (r"\.(lora_(up|down|A|B)\b|lokr_w|hada_w|dora_scale|diff(_b|_m)?$)", Look("lora", "a LoRA")),
    (r"^(decoder|encoder)\.(mid_block|down_blocks|up_blocks)\.", Look("unknown", "a VAE of an image model")),
    (r"^(first_stage_model\.)?(decoder|encoder)\.mid\.block_1\.", Look("unknown", "a VAE of an image model")),
    (r"^(taesd_)?(decoder|encoder)\.[0-9]+\.", Look("unknown", "a small preview decoder")),
    (r"text_model\.(encoder|embeddings)\.", Look("unknown", "a CLIP text encoder")),
    (r"vision_model\.|^visual\.", Look("unknown", "an image encoder")),
    (r"^(model\.)?layers\.[0-9]+\.(self_attn|mlp|input_layernorm)\b", Look("unknown", "a language model")),
    (r"\b(double_blocks|single_blocks)\.[0-9]", Look("unknown", "a transformer of another family (Flux, Hunyuan)")),
    (r"\bjoint_blocks\.[0-9]", Look("unknown", "a transformer of another family (Stable Diffusion 3)")),
    (r"\binput_blocks\.[0-9]", Look("unknown", "a Stable Diffusion model")),
    (r"^samples$|^latent_tensor$", Look("unknown", "a saved latent")),
)


def look(checkpoint: Checkpoint) -> Look:
    """What the file is, best guess first."""
    if checkpoint.namings:
        return _KNOWN[checkpoint.namings[0].kind]
    names = [info.stored_as for info in checkpoint.tensors.values()]
    for pattern, found in _LOOKS:
        if any(re.search(pattern, name) for name in names):
            return found
    return Look("unknown", f"an unknown model (its first tensor is {quoted(names[0])})")


def expect_kind(checkpoint: Checkpoint, kind: Kind, expected: str) -> None:
    """Raise `CheckpointError`, saying what the file is, unless it holds a model of this kind."""
    if checkpoint.naming(kind) is None:
        found = look(checkpoint)
        verb = "is" if found.kind == kind else "looks like"
        raise CheckpointError(f"{checkpoint.label} {verb} {found.what}, expected {expected}")


def expect_decodable(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` for weights that are stored in a way that is not read here."""
    if problem := checkpoint.encoding.problem:
        raise CheckpointError(f"{checkpoint.label} {problem}")
