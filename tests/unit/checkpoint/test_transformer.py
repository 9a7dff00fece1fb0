"""Dimensions of an expert out of its file, and everything that is refused in its place."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.checkpoint.refusals import sentence_of
from tests.unit.checkpoint.synthetic import (
    CONFIG,
    TRANSFORMER,
    expert_tensors,
    hugging_face,
    prefixed,
    text_encoder_tensors,
    vae_tensors,
    write,
    write_expert,
    write_shards,
)
from wan_core.checkpoint.read import open_checkpoint
from wan_core.checkpoint.transformer import transformer_spec
from wan_core.errors import CheckpointError


def refusal(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    write(path / "model.safetensors", tensors, CONFIG if metadata is None else metadata)
    sentence = sentence_of(lambda: transformer_spec(open_checkpoint(path / "model.safetensors")))
    assert "model.safetensors" in sentence
    return sentence


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_dimensions_come_from_the_tensors(tmp_path: Path, prefix: str) -> None:
    spec = replace(TRANSFORMER, dim=24, num_heads=3, ffn_dim=40, num_layers=3, text_dim=20, freq_dim=10)
    config = {"config": json.dumps({"transformer": {"num_heads": 3}})}
    path = write(tmp_path / "model.safetensors", prefixed(expert_tensors(spec=spec), prefix), config)
    assert transformer_spec(open_checkpoint(path)) == spec


def test_heads_are_128_wide_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    spec = replace(TRANSFORMER, dim=256, num_heads=2, ffn_dim=8)
    tensors = expert_tensors(spec=spec)
    assert transformer_spec(open_checkpoint(write(tmp_path / "a.safetensors", tensors))) == spec
    config = {"config": json.dumps({"transformer": {"num_heads": 4, "eps": 1e-5}})}
    stated = transformer_spec(open_checkpoint(write(tmp_path / "b.safetensors", tensors, config)))
    assert stated == replace(spec, num_heads=4, eps=1e-5)


def test_the_config_of_an_official_folder(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "high_noise_model", expert_tensors())
    assert transformer_spec(open_checkpoint(folder)) == TRANSFORMER
    (folder / "config.json").write_text(json.dumps({"num_heads": 4, "text_len": 256}))
    assert transformer_spec(open_checkpoint(folder)) == replace(TRANSFORMER, num_heads=4, text_len=256)
    (folder / "config.json").write_text(json.dumps({"num_heads": 2, "ffn_dim": 13824}))
    with pytest.raises(CheckpointError, match="says ffn_dim 13824, its tensors say 24"):
        transformer_spec(open_checkpoint(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json' is not readable JSON"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("metadata", "fragment"),
    [
        ({}, "16 wide, which does not show its number of heads"),
        ({"config": "nonsense"}, "is not readable JSON"),
        ({"config": json.dumps({"transformer": {"num_heads": "two"}})}, "num_heads 'two', expected a number such as 1"),
        ({"config": json.dumps({"transformer": {"num_heads": True}})}, "num_heads True"),
        ({"config": json.dumps({"transformer": {"num_heads": 0}})}, "num_heads 0"),
        ({"config": json.dumps({"transformer": {"num_heads": 3}})}, "16 wide, which 3 heads do not divide"),
        ({"config": json.dumps({"transformer": {"num_heads": 16}})}, "heads of even width"),
        ({"config": json.dumps({"transformer": {"num_heads": 2, "eps": float("nan")}})}, "eps nan"),
        ({"config": json.dumps({"transformer": {"num_heads": 2, "dim": 32}})}, "says dim 32, its tensors say 16"),
    ],
)
def test_a_configuration_that_cannot_be(tmp_path: Path, metadata: dict[str, str], fragment: str) -> None:
    assert fragment in refusal(tmp_path, expert_tensors(), metadata)


@pytest.mark.parametrize(
    ("in_dim", "out_dim", "fragment"),
    [
        (36, 16, "is a Wan 2.2 image-to-video (I2V-A14B) expert (36 input channels), expected"),
        (48, 48, "is the Wan 2.2 TI2V-5B model (48 input channels)"),
        (52, 16, "is a Fun control model"),
        (20, 16, "is another member of the Wan family (20 input channels)"),
    ],
)
def test_models_of_other_channels(tmp_path: Path, in_dim: int, out_dim: int, fragment: str) -> None:
    sentence = refusal(tmp_path, expert_tensors(spec=replace(TRANSFORMER, in_dim=in_dim, out_dim=out_dim)))
    assert fragment in sentence and "wan2.2_t2v_high_noise_14B_fp16.safetensors (16 input channels)" in sentence


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ("vace_patch_embedding.weight", "a VACE model"),
        ("control_adapter.conv.weight", "a camera-control model"),
        ("casual_audio_encoder.encoder.final_linear.weight", "a speech-to-video (S2V) model"),
        ("audio_proj.audio_proj_glob_1.layer.bias", "a HuMo model"),
        ("face_adapter.fuser_blocks.0.k_norm.weight", "an Animate model"),
        ("ref_conv.weight", "a Fun control model"),
        ("img_emb.proj.0.bias", "a Wan 2.1 image-to-video model"),
        ("blocks.0.cross_attn.k_img.weight", "a Wan 2.1 image-to-video model"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_other_members_of_the_family(tmp_path: Path, extra: str, what: str, prefix: str) -> None:
    tensors = expert_tensors() | {extra: torch.ones(2)}
    assert f"is {what} (16 input channels), expected a Wan 2.2 text-to-video expert" in refusal(
        tmp_path, prefixed(tensors, prefix)
    )


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({"diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.ones(2)}, "looks like a LoRA"),
        ({"blocks.0.attn1.to_q.lora_A.weight": torch.ones(2)}, "looks like a LoRA"),
        ({"blocks.0.norm3.diff": torch.ones(2), "blocks.0.diff_m": torch.ones(2)}, "looks like a LoRA"),
        (vae_tensors(), "looks like a Wan VAE"),
        (hugging_face(text_encoder_tensors()), "looks like a T5 text encoder"),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": torch.ones(2)}, "looks like a CLIP text encoder"),
        ({"double_blocks.0.img_attn.qkv.weight": torch.ones(2)}, "another family (Flux, Hunyuan)"),
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2)}, "looks like a Stable Diffusion model"),
        ({"something.else": torch.ones(2)}, "an unknown model (its first tensor is 'something.else')"),
    ],
)
def test_files_that_are_no_transformer(tmp_path: Path, tensors: dict[str, Tensor], what: str) -> None:
    assert what in refusal(tmp_path, tensors)


def test_incomplete_files(tmp_path: Path) -> None:
    tensors = expert_tensors()
    for name in ("blocks.1.modulation", "head.head.bias", "blocks.0.self_attn.q.weight"):
        del tensors[name]
    expected = "lacks 3 of the 69 tensors of a text-to-video expert, the first is 'blocks.0.self_attn.q.weight'"
    assert expected in refusal(tmp_path, tensors)


def test_a_shard_alone_says_so(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "high_noise_model", expert_tensors())
    shard = open_checkpoint(folder / "diffusion_pytorch_model-00001-of-00003.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 46 of the 69 tensors .* one shard of several, give their folder"):
        transformer_spec(shard)


def test_a_layer_number_out_of_all_proportion(tmp_path: Path) -> None:
    tensors = expert_tensors() | {"blocks.9999.modulation": torch.ones(1, 6, 16)}
    assert "lacks 26946 of the 27015 tensors" in refusal(tmp_path, tensors)


def test_wrong_shapes(tmp_path: Path) -> None:
    tensors = expert_tensors() | {"blocks.1.ffn.2.weight": torch.ones(16, 25), "blocks.1.norm3.bias": torch.ones(2)}
    sentence = refusal(tmp_path, tensors)
    assert "has 2 tensors of the wrong shape, the first is 'blocks.1.norm3.bias': (2,), expected (16,)" in sentence
    assert "expected 5 sizes" in refusal(tmp_path, expert_tensors() | {"patch_embedding.weight": torch.ones(16, 64)})


def test_tensors_that_no_expert_has(tmp_path: Path) -> None:
    tensors = expert_tensors() | {"mystery.weight": torch.ones(2)}
    assert "holds 1 tensor that a text-to-video expert does not have, the first is 'mystery.weight'" in refusal(
        tmp_path, tensors
    )


def test_other_models_beside_a_prefixed_expert_are_no_strangers(tmp_path: Path) -> None:
    full = prefixed(expert_tensors(), "model.diffusion_model.") | prefixed(vae_tensors(), "first_stage_model.")
    full["cond_stage_model.something"] = torch.ones(2)
    assert transformer_spec(open_checkpoint(write(tmp_path / "full.safetensors", full, CONFIG))) == TRANSFORMER


def test_write_expert_is_what_these_tests_take_it_for(tmp_path: Path) -> None:
    assert transformer_spec(open_checkpoint(write_expert(tmp_path / "e.safetensors"))) == TRANSFORMER
