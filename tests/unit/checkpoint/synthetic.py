"""Miniature checkpoints for these tests: random weights in the right names and shapes, and raw files that lie."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from wan_core.checkpoint.inventory import Shapes, text_encoder_shapes, transformer_shapes, vae_shapes
from wan_core.specs import TextEncoderSpec, TransformerSpec, VaeSpec

TRANSFORMER = TransformerSpec(
    dim=16, ffn_dim=24, num_heads=2, num_layers=2, in_dim=16, out_dim=16, text_dim=12, freq_dim=8
)
TEXT_ENCODER = TextEncoderSpec(vocab_size=40, dim=12, attention_dim=16, ffn_dim=20, num_heads=2, num_layers=3)
VAE = VaeSpec(dim=4)
CONFIG = {"config": json.dumps({"transformer": {"num_heads": TRANSFORMER.num_heads}})}

# Hugging Face's names, written out for layer 0 and not taken from the tables under test.
_HUGGING_FACE = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def random_tensors(shapes: Shapes, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def expert_tensors(seed: int = 0, spec: TransformerSpec = TRANSFORMER) -> dict[str, Tensor]:
    return random_tensors(transformer_shapes(spec), seed)


def text_encoder_tensors(spec: TextEncoderSpec = TEXT_ENCODER) -> dict[str, Tensor]:
    return random_tensors(text_encoder_shapes(spec))


def vae_tensors(spec: VaeSpec = VAE) -> dict[str, Tensor]:
    return random_tensors(vae_shapes(spec))


def prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def hugging_face(tensors: Mapping[str, Tensor], vocabulary: bytes = b"words") -> dict[str, Tensor]:
    """A text encoder as ComfyUI's files hold it: the names of transformers, and the tokenizer inside."""
    renamed = {}
    for name, tensor in tensors.items():
        if name == "token_embedding.weight":
            renamed["shared.weight"] = tensor
        elif name == "norm.weight":
            renamed["encoder.final_layer_norm.weight"] = tensor
        else:
            _, number, rest = name.split(".", 2)
            renamed[f"encoder.block.{number}.{_HUGGING_FACE[rest.removesuffix('.weight')]}.weight"] = tensor
    return renamed | {"spiece_model": torch.tensor(list(vocabulary), dtype=torch.uint8)}


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    return path


def write_expert(path: Path, seed: int = 0, **metadata: str) -> Path:
    """An expert in one file; `expert="high"` says which in its metadata."""
    stated = {"wan_velocity.expert": metadata["expert"]} if "expert" in metadata else {}
    return write(path, expert_tensors(seed), CONFIG | stated)


def write_shards(folder: Path, tensors: Mapping[str, Tensor], num_shards: int = 3) -> Path:
    """An official folder: shards, their index and config.json."""
    names = sorted(tensors)
    weight_map = {}
    for shard in range(num_shards):
        file = f"diffusion_pytorch_model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        held = names[shard::num_shards]
        write(folder / file, {name: tensors[name] for name in held})
        weight_map |= dict.fromkeys(held, file)
    write_index(folder, weight_map)
    config = {"model_type": "t2v", "num_heads": TRANSFORMER.num_heads, "dim": TRANSFORMER.dim}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_index(folder: Path, weight_map: object) -> Path:
    path = folder / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def official_model(folder: Path) -> Path:
    """A whole model as the official release lays it out, with safetensors in place of its pickles."""
    write_shards(folder / "high_noise_model", expert_tensors(1))
    write_shards(folder / "low_noise_model", expert_tensors(2))
    write(folder / "models_t5_umt5-xxl-enc-bf16.safetensors", text_encoder_tensors())
    write(folder / "Wan2.1_VAE.safetensors", vae_tensors())
    tokenizer = folder / "google" / "umt5-xxl"
    tokenizer.mkdir(parents=True)
    (tokenizer / "spiece.model").write_bytes(b"official words")
    return folder


def comfyui_model(folder: Path) -> Path:
    """A whole model in ComfyUI's models folder, among files of other models."""
    write_expert(folder / "diffusion_models" / "wan2.2_t2v_high_noise_14B_fp16.safetensors", 1)
    write_expert(folder / "diffusion_models" / "wan2.2_t2v_low_noise_14B_fp16.safetensors", 2)
    write(folder / "text_encoders" / "umt5_xxl_fp16.safetensors", hugging_face(text_encoder_tensors()))
    write(
        folder / "text_encoders" / "clip_l.safetensors", {"text_model.encoder.layers.0.mlp.fc1.weight": torch.ones(2)}
    )
    write(folder / "vae" / "wan_2.1_vae.safetensors", vae_tensors())
    write(folder / "vae" / "ae.safetensors", {"decoder.mid.block_1.conv1.weight": torch.ones(2)})
    return folder


def raw_file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a safetensors file with any header, whatever it claims."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape: object = (2,), offsets: object = (0, 8), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}
