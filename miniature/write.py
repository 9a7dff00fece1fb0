"""Write a miniature to a folder, in ComfyUI's layout and in the official one.

ComfyUI: `diffusion_models/`, `text_encoders/` (names of Hugging Face, the tokenizer inside as the tensor
`spiece_model`) and `vae/`, one file each. Official: a sharded folder per expert, text encoder and VAE as safetensors
in place of the release's pickles, and the tokenizer's own folder. Experts and VAE have official names in both.

The metadata `config` of the experts is what ComfyUI's own loader needs: it derives the number of heads and assumes a
text width of 4096. Which expert a file is stands in the metadata `wan_velocity.expert`, since tensors cannot tell.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wan_core.profiles import check_choice
from wan_core.specs import Expert, TransformerSpec

from .architecture import TRANSFORMER
from .weights import Parts, random_parts

LAYOUTS = ("comfyui", "official", "both")
LICENCE = "Apache-2.0"
PREFIX = "wan_velocity_mini"
# Below the size of one expert in bfloat16, so that the official layout always has more than one shard.
SHARD_BYTES = 8_000_000

_DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.uint8: "U8"}

# Official name -> Hugging Face's, for the text encoder: outside the blocks, and inside block N after its prefix.
_HF_OUTSIDE = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
_HF_INSIDE = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "attn.q.weight": "layer.0.SelfAttention.q.weight",
    "attn.k.weight": "layer.0.SelfAttention.k.weight",
    "attn.v.weight": "layer.0.SelfAttention.v.weight",
    "attn.o.weight": "layer.0.SelfAttention.o.weight",
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}


def write_miniature(
    folder: str | Path, *, layout: str = "comfyui", seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write a complete miniature with random weights; the same arguments give the same bytes.

    layout: "comfyui" or "official" into `folder`, or "both" into its subfolders of these names.
    """
    check_choice("layout", layout, LAYOUTS)
    write_parts(Path(folder), random_parts(seed, dtype), layout)


def write_parts(folder: Path, parts: Parts, layout: str) -> None:
    """Write given weights, random or trained, in one layout or in both."""
    if layout in ("comfyui", "both"):
        write_comfyui(folder / "comfyui" if layout == "both" else folder, parts)
    if layout in ("official", "both"):
        write_official(folder / "official" if layout == "both" else folder, parts)


def write_comfyui(folder: Path, parts: Parts) -> None:
    """One file per part, in the folders that ComfyUI looks into."""
    for expert, tensors in parts.experts.items():
        path = folder / "diffusion_models" / f"{PREFIX}_{expert.value}_noise.safetensors"
        write_safetensors(path, tensors, _expert_metadata(parts, expert))
    tensors = {hugging_face_name(name): tensor for name, tensor in parts.text_encoder.items()}
    tensors["spiece_model"] = torch.from_numpy(np.frombuffer(parts.vocabulary, np.uint8).copy())
    write_safetensors(folder / "text_encoders" / f"{PREFIX}_text_encoder.safetensors", tensors, _metadata(parts))
    write_safetensors(folder / "vae" / f"{PREFIX}_vae.safetensors", parts.vae, _metadata(parts))


def write_official(folder: Path, parts: Parts) -> None:
    """The file names of the release Wan-AI/Wan2.2-T2V-A14B, without its pickles."""
    for expert, tensors in parts.experts.items():
        write_shards(folder / f"{expert.value}_noise_model", tensors, _expert_metadata(parts, expert))
        _write_json(folder / f"{expert.value}_noise_model" / "config.json", _official_config(TRANSFORMER))
    write_safetensors(folder / "models_t5_umt5-xxl-enc-bf16.safetensors", parts.text_encoder, _metadata(parts))
    write_safetensors(folder / "Wan2.1_VAE.safetensors", parts.vae, _metadata(parts))
    tokenizer = folder / "google" / "umt5-xxl" / "spiece.model"
    tokenizer.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.write_bytes(parts.vocabulary)


def write_shards(folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A model as numbered safetensors files of at most `SHARD_BYTES` each, and the index that says what is where."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    stem = "diffusion_pytorch_model"
    places = {}
    for number, shard in enumerate(shards, start=1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard, metadata)
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file whose bytes depend on its content alone: the library writes metadata in a random order."""
    # Wide dtypes first, as the library does it: every tensor then starts at a multiple of its element's size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    start = 0
    for name, tensor in ordered:
        end = start + tensor.nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]
        }  # fmt: skip
        start = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for _, tensor in ordered:
            file.write(tensor.contiguous().view(torch.uint8).numpy().data)


def hugging_face_name(name: str) -> str:
    """Hugging Face's name of a tensor of the text encoder, which is what ComfyUI's files use."""
    if name in _HF_OUTSIDE:
        return _HF_OUTSIDE[name]
    _, number, rest = name.split(".", 2)
    return f"encoder.block.{number}.{_HF_INSIDE[rest]}"


def _metadata(parts: Parts) -> dict[str, str]:
    return {"format": "pt", "license": LICENCE, "wan_velocity.model": "miniature", "wan_velocity.origin": parts.origin}


def _expert_metadata(parts: Parts, expert: Expert) -> dict[str, str]:
    config = {"transformer": {"num_heads": TRANSFORMER.num_heads, "text_dim": TRANSFORMER.text_dim}}
    return _metadata(parts) | {"wan_velocity.expert": expert.value, "config": json.dumps(config)}


def _official_config(spec: TransformerSpec) -> dict[str, object]:
    names = (
        "dim", "eps", "ffn_dim", "freq_dim", "in_dim", "num_heads", "num_layers", "out_dim", "text_dim", "text_len",
    )  # fmt: skip
    values = asdict(spec)
    return {"_class_name": "WanModel", "model_type": "t2v", **{name: values[name] for name in names}}


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
