"""How a file stores its weights, from what it says beside them: scales, formats by layer, metadata.

A quantised layer `x` is `x.weight` with its scale beside it, under the name that its maker chose:

    ComfyUI until 2025, Kijai     x.scale_weight (one number), x.scale_input, and `scaled_fp8` for the whole file
    Kijai, LightX2V, ComfyUI now  x.weight_scale (one number, or one for each row), x.input_scale
    ComfyUI now                   x.comfy_quant: JSON as bytes, {"format": "float8_e4m3fn"}; or the same for all layers
                                  in the file's metadata, `_quantization_metadata`

All of these mean value = stored number times scale, and the dtype of a tensor is what it is stored in, whatever a
format beside it says: ComfyUI calls every file of the old form e4m3fn. The scale of a layer's input concerns 8-bit
products only and is not used. Formats in which a tensor is more than that are recognised and refused.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import CheckpointError
from .decode import FLOAT8, why_not
from .gguf_blocks import BLOCK_FORMATS
from .header import TensorInfo
from .json_text import parse_object
from .sentences import label, quoted

METADATA_KEY = "_quantization_metadata"

_SCALES = ("scale_weight", "weight_scale")
# Beside a weight, and of no use where products are not of 8 bits.
_UNUSED = ("scale_input", "input_scale", "comfy_quant")
_ROLE = re.compile(r"(?:(.+)\.)?([a-z0-9_]+)")
_MARK = "scaled_fp8"
_MAX_STATED_BYTES = 65536

_PLAIN_FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
_BLACKWELL = "which only GPUs of compute capability 10.0 or newer multiply, and which are not decoded here"
_ROTATED = "which are stored rotated, and are not turned back here"
_WITH_ROTATION = " (convrot)"
_REFUSED: Mapping[str, str] = {
    "nvfp4": f"nvfp4 weights (4 bits), {_BLACKWELL}",
    "mxfp8": f"mxfp8 weights (8 bits in blocks of 32), {_BLACKWELL}",
    "convrot_w4a4": f"convrot_w4a4 weights (4 bits), {_ROTATED}",
    "asym_w4a8_int8": f"asym_w4a8_int8 weights (4 bits), {_ROTATED}",
    "awq_w4a16": "awq_w4a16 weights (4 bits), which are not decoded here",
    "pre_quant_scale": "weights for scaled inputs (pre_quant_scale), which are not scaled here",
}
_INSTEAD = "use its bf16, fp16, fp8_scaled or GGUF version"
# Tensors beside a weight that only one format has -> that format.
_TELLING: Mapping[str, str] = {
    "input_global_scale": "nvfp4",
    "weight_global_scale": "nvfp4",
    "weight_scale_2": "nvfp4",
    "weight_s_rel": "asym_w4a8_int8",
    "weight_s_channel": "asym_w4a8_int8",
    "weight_codebook": "asym_w4a8_int8",
    "wscales": "awq_w4a16",
    "wzeros": "awq_w4a16",
    "pre_quant_scale": "pre_quant_scale",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How weights are stored. text: in words, empty where all are plain floats. problem: why they cannot be used."""

    text: str = ""
    problem: str = ""


@dataclass(slots=True)
class _Sides:
    """What stands beside the weights: by layer (its name without `.weight`), and what is to be left out."""

    scales: dict[str, TensorInfo] = field(default_factory=dict)
    stated: dict[str, TensorInfo] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


def read_encoding(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]
) -> tuple[Mapping[str, TensorInfo], Encoding]:
    """The weights with their scales and without what stands beside them, and how they are stored.

    tensors: by the file's own names. Raises `CheckpointError` where what a file says of its formats is damaged.
    """
    sides = _sides(tensors)
    formats = sides.formats | _from_metadata(tensors, metadata) | _stated(sides.stated)
    weights = {name: info for name, info in tensors.items() if name not in sides.names}
    for layer, scale in sides.scales.items():
        name = _weight(layer)
        weights[name] = replace(weights[name], scale=scale)
    if refused := sorted(set(formats.values()) - set(_PLAIN_FORMATS)):
        return weights, Encoding(text=f"{refused[0]} weights", problem=_refusal(refused[0]))
    return weights, Encoding(text=_in_words(weights.values()), problem=_undecodable(weights))


def _sides(tensors: Mapping[str, TensorInfo]) -> _Sides:
    found = _Sides()
    for name, info in tensors.items():
        match = _ROLE.fullmatch(name)
        layer, role = match.groups(default="") if match else ("", "")
        if role == _MARK:
            found.names.add(name)
            continue
        if _weight(layer) not in tensors:
            continue
        if role in _SCALES:
            found.scales[layer] = info
        elif role == "comfy_quant":
            found.stated[layer] = info
        elif role in _TELLING:
            found.formats[layer] = _TELLING[role]
        if role in (*_SCALES, *_UNUSED, *_TELLING):
            found.names.add(name)
    # LightX2V's nvfp4. By itself the name is a LoRA's.
    found.names |= {name for layer in found.formats if (name := f"{layer}.alpha") in tensors}
    return found


def _from_metadata(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> dict[str, str]:
    """Format by layer out of the metadata."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        return {}
    what = f"the metadata {METADATA_KEY} of {label(next(iter(tensors.values())).file)}"
    layers = parse_object(text.encode("utf-8", "replace"), what).get("layers")
    if not isinstance(layers, dict):
        raise CheckpointError(f"{what} name no layers, expected a format for each layer")
    return {layer: _format(entry, what) for layer, entry in layers.items()}


def _stated(infos: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Format by layer out of the tensors that state one."""
    formats = {}
    for path in {info.file for info in infos.values()}:
        here = {layer: info for layer, info in infos.items() if info.file == path}
        formats |= _read_stated(path, here)
    return formats


def _read_stated(path: Path, infos: Mapping[str, TensorInfo]) -> dict[str, str]:
    formats = {}
    try:
        with path.open("rb") as file:
            for layer, info in infos.items():
                what = f"tensor {quoted(info.stored_as)} of {label(path)}"
                if info.dtype != "uint8" or info.nbytes > _MAX_STATED_BYTES:
                    raise CheckpointError(f"{what} is {info.dtype} of shape {info.shape}, expected a short text")
                file.seek(info.start)
                formats[layer] = _format(parse_object(file.read(info.nbytes), what), what)
    except OSError as error:
        raise CheckpointError(f"{label(path)} cannot be read: {error.strerror or error}") from error
    return formats


def _format(entry: object, what: str) -> str:
    stated = entry.get("format") if isinstance(entry, dict) else None
    if not isinstance(stated, str):
        raise CheckpointError(f"{what} names no format, expected one such as {_PLAIN_FORMATS[0]!r}")
    inner = entry.get("params")
    is_rotated = entry.get("convrot") or (isinstance(inner, dict) and inner.get("convrot"))
    return stated + _WITH_ROTATION if is_rotated and stated in _PLAIN_FORMATS else stated


def _refusal(stated: str) -> str:
    if stated.endswith(_WITH_ROTATION):
        return f"holds {stated} weights, {_ROTATED}; {_INSTEAD}"
    unknown = f"weights in the format {quoted(stated)}, which is not known here"
    return f"holds {_REFUSED.get(stated, unknown)}; {_INSTEAD}"


def _undecodable(weights: Mapping[str, TensorInfo]) -> str:
    reasons = (why_not(info) for name, info in weights.items() if _is_weight(name))
    return next((f"{reason}; {_INSTEAD}" for reason in reasons if reason), "")


def _in_words(infos: Iterable[TensorInfo]) -> str:
    """For example "float8_e4m3fn weights with a scale for each tensor in 400 of 1095 tensors"."""
    kinds = Counter(filter(None, map(_kind, infos := list(infos))))
    texts = [f"{kind} in {count} of {len(infos)} tensors" for kind, count in kinds.most_common()]
    return " and ".join(texts)


def _kind(info: TensorInfo) -> str:
    if info.scale is not None:
        by = "row" if info.scale.shape and max(info.scale.shape) > 1 else "tensor"
        return f"{info.dtype} weights with a scale for each {by}"
    if info.dtype in FLOAT8:
        return f"{info.dtype} weights without scales"
    return f"{info.dtype} blocks" if info.dtype in BLOCK_FORMATS else ""


def _weight(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _is_weight(name: str) -> bool:
    return name.endswith((".weight", ".bias", ".gamma", "modulation", "scale_shift_table"))
