"""Every format of the text encoder and of the VAE: a small file in its real layout loads and computes the same.

As for the transformer (`test_formats.py`): weights equal what the file stands for, and the output equals that of the
plain weights within the format's own error. A random encoder multiplies errors more than a random transformer does: T5
does not divide its scores, so they are large, and a small change of one moves much of the attention.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from gguf import GGMLQuantizationType as Type
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from miniature.write import hugging_face_name
from tests.parity.diffusers_vae_names import to_diffusers
from tests.unit.checkpoint.gguf_files import text_encoder_name, write_gguf
from tests.unit.checkpoint.models import (
    TEXT_ENCODER,
    VAE,
    decoded,
    draw_text_encoder,
    draw_vae,
    embedding,
    loaded_text_encoder,
    loaded_vae,
    relative_error,
)
from tests.unit.checkpoint.scaled_files import E4M3, as_bytes, by_row, by_tensor, save, to_float8, value
from tests.unit.checkpoint.synthetic import prefixed
from wan_core.checkpoint.identify import identify
from wan_core.checkpoint.text_encoder import open_text_encoder
from wan_core.checkpoint.vae import open_vae

Weights = dict[str, Tensor]
Writer = Callable[[Path, Weights], tuple[Path, Weights]]
UNQUANTISED = 1e-6


def beside(folder: Path) -> None:
    place = folder / "google" / "umt5-xxl" / "spiece.model"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"words")


def official_pth(folder: Path, weights: Weights) -> tuple[Path, Weights]:
    beside(folder)
    path = folder / "models_t5_umt5-xxl-enc-bf16.pth"
    torch.save({name: tensor.bfloat16() for name, tensor in weights.items()}, path)
    return path, {name: tensor.bfloat16().float() for name, tensor in weights.items()}


def lightx2v_pth(folder: Path, weights: Weights) -> tuple[Path, Weights]:
    """LightX2V quantises the encoder too, into a PyTorch file with a scale for each row."""
    beside(folder)
    file, stand_for = dict(weights), dict(weights)
    for name, tensor in weights.items():
        if ".attn." in name or ".ffn." in name:
            file[name], file[f"{name}_scale"] = by_row(tensor, torch.int8)
            stand_for[name] = value(file[name], file[f"{name}_scale"])
    path = folder / "models_t5_umt5-xxl-enc-int8.pth"
    torch.save(file, path)
    return path, stand_for


def kijai(folder: Path, weights: Weights) -> tuple[Path, Weights]:
    """Official names in safetensors, `umt5-xxl-enc-fp8_e4m3fn`: norms and positions stay wide."""
    beside(folder)
    file = {
        name: tensor.bfloat16() if "norm" in name or "pos_embedding" in name else to_float8(tensor, E4M3)
        for name, tensor in weights.items()
    }
    path = save(folder / "umt5-xxl-enc-fp8_e4m3fn.safetensors", file)
    return path, {name: tensor.float() for name, tensor in file.items()}


def comfy(folder: Path, weights: Weights) -> tuple[Path, Weights]:
    stored = {name: tensor.half() for name, tensor in weights.items()}
    file = {hugging_face_name(name): tensor for name, tensor in stored.items()} | {"spiece_model": as_bytes("words")}
    path = save(folder / "umt5_xxl_fp16.safetensors", file)
    return path, {name: tensor.float() for name, tensor in stored.items()}


def comfy_scaled(folder: Path, weights: Weights) -> tuple[Path, Weights]:
    file, stand_for = {"spiece_model": as_bytes("words"), "scaled_fp8": torch.zeros(2, dtype=E4M3)}, {}
    for name, tensor in weights.items():
        theirs = hugging_face_name(name)
        if ".attn." in name or ".ffn." in name:
            file[theirs], scale = by_tensor(tensor, E4M3)
            file[theirs.replace(".weight", ".scale_weight")] = scale
            stand_for[name] = value(file[theirs], scale)
        else:
            file[theirs] = tensor.half()
            stand_for[name] = file[theirs].float()
    return save(folder / "umt5_xxl_fp8_e4m3fn_scaled.safetensors", file), stand_for


def of_transformers(folder: Path, weights: Weights) -> tuple[Path, Weights]:
    """By transformers itself, as in the folder `text_encoder` of a diffusers model: shards, index, config."""
    config = UMT5Config(
        vocab_size=TEXT_ENCODER.vocab_size, d_model=256, d_kv=64, d_ff=512, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    model = UMT5EncoderModel(config)
    model.load_state_dict({hugging_face_name(name): tensor for name, tensor in weights.items()}, strict=False)
    model.save_pretrained(folder / "text_encoder", max_shard_size="1MB")
    assert len(list((folder / "text_encoder").glob("*.safetensors"))) > 1
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(b"words")
    return folder / "text_encoder", weights


def encoder_gguf(kind: Type) -> Writer:
    def chosen(name: str, tensor: Tensor) -> Type:
        return Type.F32 if "norm" in name or "pos_embedding" in name else kind

    def written(folder: Path, weights: Weights) -> tuple[Path, Weights]:
        beside(folder)
        path = folder / "umt5-xxl-encoder.gguf"
        return path, write_gguf(
            path, weights, chosen, arch="t5encoder", name_of=lambda name: text_encoder_name(hugging_face_name(name))
        )

    return written


ENCODERS: dict[str, tuple[Writer, float]] = {
    "official .pth": (official_pth, 1.5e-2),
    "lightx2v int8 .pth": (lightx2v_pth, 4e-2),
    "kijai fp8": (kijai, 0.2),
    "comfy fp16": (comfy, 2e-3),
    "comfy fp8_scaled": (comfy_scaled, 0.15),
    "transformers shards": (of_transformers, UNQUANTISED),
    "gguf F16": (encoder_gguf(Type.F16), 2e-3),
    "gguf Q8_0": (encoder_gguf(Type.Q8_0), 4e-2),
    "gguf Q5_K": (encoder_gguf(Type.Q5_K), 0.25),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_text_encoder(tmp_path: Path, name: str) -> None:
    weights = draw_text_encoder()
    write, tolerance = ENCODERS[name]
    expected = embedding(loaded_text_encoder(save(tmp_path / "plain.safetensors", weights)))
    path, stands_for = write(tmp_path / "model", weights)
    source = open_text_encoder(path)
    assert source.spec == TEXT_ENCODER and source.vocabulary() == b"words"
    model = loaded_text_encoder(source.checkpoint)
    for parameter, tensor in model.named_parameters():
        assert torch.allclose(tensor, stands_for[parameter], rtol=1e-6, atol=0), parameter
    error = relative_error(embedding(model), expected)
    assert error <= tolerance and (tolerance == UNQUANTISED or error > tolerance / 50)
    assert identify(path).kind == "text_encoder" and identify(path).problems == ()


def vae_pth(folder: Path, weights: Weights) -> tuple[Path, Weights]:
    folder.mkdir()
    torch.save(weights, folder / "Wan2.1_VAE.pth")
    return folder / "Wan2.1_VAE.pth", weights


def vae_file(prefix: str, dtype: torch.dtype) -> Writer:
    def written(folder: Path, weights: Weights) -> tuple[Path, Weights]:
        stored = {name: tensor.to(dtype) for name, tensor in weights.items()}
        path = save(folder / "wan_2.1_vae.safetensors", prefixed(stored, prefix))
        return path, {name: tensor.float() for name, tensor in stored.items()}

    return written


def vae_of_diffusers(folder: Path, weights: Weights) -> tuple[Path, Weights]:
    model = AutoencoderKLWan(base_dim=VAE.dim)
    model.load_state_dict({to_diffusers(name): tensor for name, tensor in weights.items()})
    model.save_pretrained(folder / "vae")
    return folder / "vae", weights


def vae_gguf(folder: Path, weights: Weights) -> tuple[Path, Weights]:
    path = folder / "wan_2.1_vae.gguf"
    return path, write_gguf(path, weights, lambda name, tensor: Type.F16, arch="pig")


VAES: dict[str, tuple[Writer, float]] = {
    "official .pth": (vae_pth, UNQUANTISED),
    "comfy": (vae_file("", torch.float32), UNQUANTISED),
    "kijai bf16": (vae_file("model.", torch.bfloat16), 6e-3),
    "diffusers": (vae_of_diffusers, UNQUANTISED),
    "gguf F16": (vae_gguf, 1e-3),
}


@pytest.mark.parametrize("name", VAES)
def test_a_vae(tmp_path: Path, name: str) -> None:
    weights = draw_vae()
    write, tolerance = VAES[name]
    expected = decoded(loaded_vae(save(tmp_path / "plain.safetensors", weights)))
    path, stands_for = write(tmp_path / "model", weights)
    source = open_vae(path)
    assert source.spec == VAE
    model = loaded_vae(source.checkpoint)
    for parameter, tensor in model.named_parameters():
        assert torch.allclose(tensor, stands_for[parameter], rtol=1e-6, atol=0), parameter
    error = relative_error(decoded(model), expected)
    assert error <= tolerance and (tolerance == UNQUANTISED or error > tolerance / 100)
    assert identify(path).kind == "vae" and identify(path).problems == ()
