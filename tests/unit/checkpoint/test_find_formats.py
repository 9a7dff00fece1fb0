"""Whole models in the layouts of the other formats: the official release with its PyTorch files, diffusers, GGUF."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from gguf import GGMLQuantizationType as Type
from transformers import UMT5Config, UMT5EncoderModel

from tests.unit.checkpoint import scaled_files as scaled
from tests.unit.checkpoint.gguf_files import write_gguf
from tests.unit.checkpoint.models import TRANSFORMER, draw_text_encoder, draw_transformer, draw_vae
from tests.unit.checkpoint.synthetic import expert_tensors, text_encoder_tensors, vae_tensors, write, write_shards
from wan_core.checkpoint.find import find_model
from wan_core.checkpoint.identify import identify
from wan_core.checkpoint.locate import locate
from wan_core.checkpoint.read import open_checkpoint
from wan_core.checkpoint.transformer import transformer_spec


def with_tokenizer(folder: Path, place: str) -> Path:
    path = folder / place / "spiece.model"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"words")
    return path


def test_the_official_release_as_it_is_published(tmp_path: Path) -> None:
    write_shards(tmp_path / "high_noise_model", expert_tensors(1))
    write_shards(tmp_path / "low_noise_model", expert_tensors(2))
    torch.save(text_encoder_tensors(), tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(vae_tensors(), tmp_path / "Wan2.1_VAE.pth")
    tokenizer = with_tokenizer(tmp_path, "google/umt5-xxl")
    (tmp_path / "configuration.json").write_text("{}")
    files = find_model(tmp_path)
    assert [path.name for path in files.weights] == [
        "high_noise_model", "low_noise_model", "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth",
    ]  # fmt: skip
    assert files.tokenizer == tokenizer and identify(tmp_path).problems == ()


def test_the_folder_of_diffusers_as_it_writes_it(tmp_path: Path) -> None:
    for seed, name in enumerate(("transformer", "transformer_2")):
        torch.manual_seed(seed)
        model = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=16, out_channels=16, text_dim=32, freq_dim=16,
            ffn_dim=48, num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        )  # fmt: skip
        model.save_pretrained(tmp_path / name, max_shard_size="50KB")
    UMT5EncoderModel(
        UMT5Config(
            vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
        )
    ).save_pretrained(tmp_path / "text_encoder")
    AutoencoderKLWan(base_dim=4).save_pretrained(tmp_path / "vae")
    tokenizer = with_tokenizer(tmp_path, "tokenizer")
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline", "boundary_ratio": 0.875}')
    files = find_model(tmp_path)
    assert (files.high, files.low) == (tmp_path / "transformer", tmp_path / "transformer_2")
    assert files.tokenizer == tokenizer
    # Heads of width 16: from the config.json that diffusers wrote.
    spec = transformer_spec(open_checkpoint(files.high))
    assert (spec.dim, spec.num_heads, spec.ffn_dim, spec.num_layers) == (32, 2, 48, 2)
    found = identify(tmp_path)
    assert found.problems == () and [part.expert for part in found.parts if part.kind == "transformer"] == [
        "high",
        "low",
    ]
    assert {part.naming for part in found.parts} == {"diffusers names", "transformers names"}


def test_a_folder_of_gguf_files(tmp_path: Path) -> None:
    for seed, name in enumerate(("High", "Low")):
        write_gguf(
            tmp_path / f"{name}Noise" / f"Wan2.2-T2V-A14B-{name}Noise-Q8_0.gguf", draw_transformer(seed), Type.Q8_0
        )
    write(tmp_path / "text_encoders" / "umt5-xxl-enc-bf16.safetensors", draw_text_encoder())
    with_tokenizer(tmp_path / "text_encoders", "google/umt5-xxl")
    write(tmp_path / "vae" / "Wan2_1_VAE_bf16.safetensors", draw_vae())
    files = find_model(tmp_path)
    assert [path.name for path in files.weights[:2]] == ["HighNoise", "LowNoise"]
    assert transformer_spec(open_checkpoint(files.high)) == TRANSFORMER
    assert [part.format for part in identify(tmp_path).parts] == ["GGUF", "GGUF", "safetensors", "safetensors"]


def test_shards_by_block(tmp_path: Path) -> None:
    folder = tmp_path / "high_noise_model"
    scaled.lightx2v(folder, draw_transformer(), scaled.E4M3, with_index=False)
    assert locate(folder).layout == "sharded" and identify(folder).problems == ()
    (folder / "block_0.safetensors").unlink()
    (problem,) = identify(folder).problems
    assert "holds shards by block, of which 1 is absent: 'block_0.safetensors'" in problem
    (folder / "block_1.safetensors").rename(folder / "block_0.safetensors")
    (problem,) = identify(folder).problems
    assert "lacks 27 of the 69 tensors of a text-to-video expert, the first is 'blocks.0.modulation'" in problem


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = tmp_path / "high_noise_model"
    scaled.lightx2v(folder, draw_transformer(), scaled.E4M3, with_index=False)
    (folder / "block_2.safetensors").write_bytes((folder / "block_1.safetensors").read_bytes())
    (problem,) = identify(folder).problems
    assert "'high_noise_model/block_1.safetensors' and 'high_noise_model/block_2.safetensors' both hold" in problem
