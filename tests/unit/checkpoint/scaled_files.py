"""Files with 8-bit weights as their makers write them: ComfyUI, Kijai, LightX2V. Written after their rules, not ours.

Each writer takes the weights of a model and returns those that the file then stands for, computed on the side.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_LARGEST = {E4M3: 448.0, E5M2: 57344.0}

# ComfyUI's scripts quantise the big matrices of the blocks; Kijai's list of what stays wide is by words.
_KIJAI_KEEPS = ("norm", "bias", "time_in", "patch_embedding", "vector_in", "img_emb", "time_", "modulation",
                "text_embedding", "adapter", "add", "ref_conv", "audio_proj")  # fmt: skip


def is_block_matrix(name: str, tensor: Tensor) -> bool:
    return name.startswith("blocks.") and tensor.dim() == 2


def kijai_quantises(name: str, tensor: Tensor) -> bool:
    return tensor.dim() == 2 and not any(word in name for word in _KIJAI_KEEPS)


def to_float8(tensor: Tensor, dtype: torch.dtype, scale: Tensor | float = 1.0) -> Tensor:
    return (tensor / scale).clamp(-_LARGEST[dtype], _LARGEST[dtype]).to(dtype)


def by_tensor(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    scale = tensor.abs().max() / (127.0 if dtype is torch.int8 else _LARGEST[dtype])
    return _stored(tensor, dtype, scale), scale


def by_row(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """LightX2V's rule: the largest of each row, never below 1e-5."""
    scale = tensor.abs().amax(dim=1, keepdim=True).clamp(min=1e-5) / (127.0 if dtype is torch.int8 else _LARGEST[dtype])
    return _stored(tensor, dtype, scale), scale


def _stored(tensor: Tensor, dtype: torch.dtype, scale: Tensor) -> Tensor:
    if dtype is torch.int8:
        return (tensor / scale).round().clamp(-128, 127).to(torch.int8)
    return to_float8(tensor, dtype, scale)


def value(stored: Tensor, scale: Tensor) -> Tensor:
    return stored.float() * scale.float()


def comfy_scaled(
    path: Path, weights: Mapping[str, Tensor], dtype: torch.dtype = E4M3, prefix: str = ""
) -> dict[str, Tensor]:
    """The form of 2025, `fp8_scaled`: `.scale_weight`, `.scale_input` and the mark `scaled_fp8` of the whole file."""
    file, stand_for = {}, dict(weights)
    for name, tensor in weights.items():
        if is_block_matrix(name, tensor):
            stored, scale = by_tensor(tensor, dtype)
            layer = name.removesuffix(".weight")
            file |= {name: stored, f"{layer}.scale_weight": scale, f"{layer}.scale_input": torch.tensor(0.7)}
            stand_for[name] = value(stored, scale)
        else:
            file[name] = tensor
    file["scaled_fp8"] = torch.zeros(2, dtype=dtype)
    save(path, {prefix + name: tensor for name, tensor in file.items()})
    return stand_for


def kijai_scaled(path: Path, weights: Mapping[str, Tensor], dtype: torch.dtype, key: str) -> dict[str, Tensor]:
    """Scaled fp8 as in Kijai/WanVideo_comfy_fp8_scaled: an empty mark, one scale a tensor, the rest in bfloat16."""
    file, stand_for = {"scaled_fp8": torch.zeros(0, dtype=dtype)}, {}
    for name, tensor in weights.items():
        if kijai_quantises(name, tensor):
            stored, scale = by_tensor(tensor, dtype)
            file |= {name: stored, f"{name.removesuffix('.weight')}.{key}": scale}
            stand_for[name] = value(stored, scale)
        else:
            file[name] = tensor.bfloat16()
            stand_for[name] = file[name].float()
    save(path, file)
    return stand_for


def kijai_plain(path: Path, weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Plain fp8: every large tensor is cast, and there are no scales."""
    file = {name: t.to(dtype) if kijai_quantises(name, t) else t.half() for name, t in weights.items()}
    save(path, file)
    return {name: tensor.float() for name, tensor in file.items()}


def comfy_quant(
    path: Path, weights: Mapping[str, Tensor], form: str, *, rows: bool, in_metadata: bool
) -> dict[str, Tensor]:
    """ComfyUI's form by layer: `.weight_scale`, and the format as JSON in a tensor beside it or in the metadata."""
    dtype = {"float8_e4m3fn": E4M3, "float8_e5m2": E5M2, "int8_tensorwise": torch.int8}[form]
    file, stand_for, layers = {}, dict(weights), {}
    for name, tensor in weights.items():
        if not is_block_matrix(name, tensor):
            file[name] = tensor
            continue
        stored, scale = by_row(tensor, dtype) if rows else by_tensor(tensor, dtype)
        layer = name.removesuffix(".weight")
        layers[layer] = {"format": form}
        file |= {name: stored, f"{layer}.weight_scale": scale.float()}
        stand_for[name] = value(stored, scale)
    metadata = {"format": "pt"}
    if in_metadata:
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})
    else:
        file |= {f"{layer}.comfy_quant": as_bytes(json.dumps(entry)) for layer, entry in layers.items()}
    save(path, file, metadata)
    return stand_for


def lightx2v(folder: Path, weights: Mapping[str, Tensor], dtype: torch.dtype, *, with_index: bool) -> dict[str, Tensor]:
    """LightX2V's shards by block: `.weight_scale` a row, (out, 1); everything that is no block in a file of its own."""
    tensors, stand_for = {}, dict(weights)
    for name, tensor in weights.items():
        tensors[name] = tensor
        if is_block_matrix(name, tensor):
            tensors[name], tensors[f"{name}_scale"] = by_row(tensor, dtype)
            stand_for[name] = value(tensors[name], tensors[f"{name}_scale"])
    files: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        file = f"block_{parts[1]}.safetensors" if parts[0] == "blocks" else "non_block.safetensors"
        files.setdefault(file, {})[name] = tensor
    for file, held in files.items():
        save(folder / file, held)
    if with_index:
        places = {name: file for file, held in files.items() for name in held}
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return stand_for


def as_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, path, metadata=dict(metadata) if metadata else None
    )
    return path
