"""What a file is by the names and dtypes of its tensors, whether or not anything here can use it.

Naming a file that was given in the wrong place is half of its error message. The patterns are of names as they stand in
the file; the first that fits decides.
"""

import re
from dataclasses import dataclass
from typing import Literal

from ..errors import CheckpointError
from .header import FLOATS
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
_DIFFUSERS = "in the naming of diffusers, which is not read here"
_LOOKS: tuple[tuple[str, Look], ...] = (
    (r"\.(lora_(up|down|A|B)\b|lokr_w|hada_w|dora_scale|diff(_b|_m)?$)", Look("lora", "a LoRA")),
    (r"^condition_embedder\.|^blocks\.[0-9]+\.attn1\.", Look("transformer", f"a transformer {_DIFFUSERS}")),
    (r"^(decoder|encoder)\.(mid_block|down_blocks|up_blocks)\.", Look("vae", f"a VAE {_DIFFUSERS}")),
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

# Tensors that only a quantised file has, and what such a file is called.
_QUANTISED: tuple[tuple[str, str], ...] = (
    (r"(^|\.)comfy_quant$", "per-layer quantised weights (comfy_quant)"),
    (r"\.input_global_scale$", "nvfp4 weights"),
    (r"(^|\.)scaled_fp8$|\.scale_weight$|\.scale_input$", "scaled fp8 weights"),
    (r"\.weight_scale(_2)?$", "scaled 8-bit weights"),
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


def quantisation(checkpoint: Checkpoint) -> str | None:
    """How the weights are quantised, in words; `None` where all of them are plain floats."""
    if "_quantization_metadata" in checkpoint.metadata:
        return "per-layer quantised weights (_quantization_metadata)"
    dtypes = sorted({info.dtype for info in checkpoint.tensors.values() if info.dtype.startswith(("float8", "float4"))})
    suffix = f" ({', '.join(dtypes)})" if dtypes else ""
    for pattern, what in _QUANTISED:
        if any(re.search(pattern, name) for name in checkpoint.tensors):
            return what + suffix
    if dtypes:
        return "fp8 weights" + suffix
    integers = [
        info.dtype for name, info in checkpoint.tensors.items() if _is_weight(name) and info.dtype not in FLOATS
    ]
    return f"quantised weights ({integers[0]})" if integers else None


def expect_plain(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` for quantised weights."""
    if found := quantisation(checkpoint):
        raise CheckpointError(
            f"{checkpoint.label} holds {found}, expected plain ones: use its fp16, bf16 or fp32 version"
        )


def _is_weight(name: str) -> bool:
    return name.endswith((".weight", ".bias", ".gamma", "modulation"))
