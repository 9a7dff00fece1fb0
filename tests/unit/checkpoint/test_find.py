"""Whole models in folders: both layouts, what is missing, and what is doubtful."""

from pathlib import Path

import pytest
import torch

from miniature.write import write_miniature
from tests.unit.checkpoint.refusals import sentence_of
from tests.unit.checkpoint.synthetic import (
    comfyui_model,
    hugging_face,
    official_model,
    text_encoder_tensors,
    vae_tensors,
    write,
    write_expert,
)
from wan_core.checkpoint.find import find_model


def refusal(folder: Path) -> str:
    return sentence_of(lambda: find_model(folder))


def test_the_official_layout(tmp_path: Path) -> None:
    folder = official_model(tmp_path / "Wan2.2-T2V-A14B")
    files = find_model(folder)
    assert (files.high, files.low) == (folder / "high_noise_model", folder / "low_noise_model")
    assert files.text_encoder == folder / "models_t5_umt5-xxl-enc-bf16.safetensors"
    assert files.tokenizer == folder / "google" / "umt5-xxl" / "spiece.model"
    assert files.vae == folder / "Wan2.1_VAE.safetensors"


@pytest.mark.parametrize("given", ["models", "ComfyUI"])
def test_the_models_folder_of_comfyui(tmp_path: Path, given: str) -> None:
    models = comfyui_model(tmp_path / "ComfyUI" / "models")
    files = find_model(models if given == "models" else tmp_path / "ComfyUI")
    assert [path.relative_to(models).as_posix() for path in files.weights] == [
        "diffusion_models/wan2.2_t2v_high_noise_14B_fp16.safetensors",
        "diffusion_models/wan2.2_t2v_low_noise_14B_fp16.safetensors",
        "text_encoders/umt5_xxl_fp16.safetensors",
        "vae/wan_2.1_vae.safetensors",
    ]
    assert files.tokenizer is None


def test_older_places_and_subfolders(tmp_path: Path) -> None:
    write_expert(tmp_path / "unet" / "wan" / "HighNoise" / "model.safetensors", 1)
    write_expert(tmp_path / "unet" / "wan" / "LowNoise" / "model.safetensors", 2)
    encoder = write(tmp_path / "clip" / "wan" / "umt5.safetensors", hugging_face(text_encoder_tensors()))
    vae = write(tmp_path / "vae" / "wan" / "vae.safetensors", vae_tensors())
    files = find_model(tmp_path)
    assert (files.high, files.low) == (tmp_path / "unet/wan/HighNoise", tmp_path / "unet/wan/LowNoise")
    assert (files.text_encoder, files.vae) == (encoder, vae)


def test_the_miniature_in_both_layouts(tmp_path: Path) -> None:
    write_miniature(tmp_path, layout="both")
    assert find_model(tmp_path / "comfyui").tokenizer is None
    assert find_model(tmp_path / "official").tokenizer == tmp_path / "official" / "google" / "umt5-xxl" / "spiece.model"


def test_an_empty_folder_names_every_part_and_where_it_was_sought(tmp_path: Path) -> None:
    sentence = refusal(tmp_path)
    assert "no high and no low-noise text-to-video expert" in sentence
    assert "no text encoder (looked in the folder itself and 'text_encoders' and 'clip' and 'text_encoder')" in sentence
    assert "no VAE (looked in the folder itself and 'vae')" in sentence


def test_one_missing_part_is_the_only_one_named(tmp_path: Path) -> None:
    models = comfyui_model(tmp_path / "models")
    (models / "vae" / "wan_2.1_vae.safetensors").unlink()
    sentence = refusal(models)
    assert "holds no VAE" in sentence and "text encoder" not in sentence and "expert" not in sentence


def test_files_that_are_meant_but_cannot_be_used_are_explained(tmp_path: Path) -> None:
    models = comfyui_model(tmp_path / "models")
    vae, encoder = models / "vae" / "wan_2.1_vae.safetensors", models / "text_encoders" / "umt5_xxl_fp16.safetensors"
    vae.write_bytes(vae.read_bytes()[:-1])
    name = "encoder.block.0.layer.0.SelfAttention.q"
    write(encoder, hugging_face(text_encoder_tensors()) | {f"{name}.weight_scale_2": torch.ones(())})
    sentence = refusal(models)
    assert "wan_2.1_vae.safetensors' is truncated" in sentence and "holds nvfp4 weights" in sentence
    assert "/ae.safetensors" not in sentence and "clip_l" not in sentence


def test_two_candidates_are_listed(tmp_path: Path) -> None:
    models = comfyui_model(tmp_path / "models")
    write(models / "vae" / "Wan2_1_VAE_bf16.safetensors", vae_tensors())
    sentence = refusal(models)
    assert "several files for the VAE" in sentence
    assert "'vae/Wan2_1_VAE_bf16.safetensors', 'vae/wan_2.1_vae.safetensors'" in sentence


def test_experts_that_are_no_pair_are_refused_here_already(tmp_path: Path) -> None:
    models = comfyui_model(tmp_path / "models")
    high, low = (
        models / "diffusion_models" / f"wan2.2_t2v_{each}_noise_14B_fp16.safetensors" for each in ("high", "low")
    )
    low.write_bytes(high.read_bytes())
    assert "hold the same weights" in refusal(models)


def test_what_is_no_folder(tmp_path: Path) -> None:
    assert "does not exist, expected the folder of a model" in refusal(tmp_path / "absent")
    assert "is a file, expected the folder of a model" in refusal(write_expert(tmp_path / "high.safetensors"))
