"""Pairs of experts: which is which, and every pair that is none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.checkpoint.refusals import sentence_of
from tests.unit.checkpoint.synthetic import (
    CONFIG,
    TRANSFORMER,
    expert_tensors,
    official_model,
    write,
    write_expert,
    write_shards,
)
from wan_core.checkpoint.expert_name import expert_by_name
from wan_core.checkpoint.experts import open_experts
from wan_core.specs import Expert


def refusal(high: Path, low: Path | None = None) -> str:
    return sentence_of(lambda: open_experts(high, low))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wan2.2_t2v_high_noise_14B_fp16.safetensors", "high"),
        ("wan2.2_t2v_low_noise_14B_fp16.safetensors", "low"),
        ("Wan2_2-T2V-A14B-HIGH_fp8_e4m3fn_scaled_KJ.safetensors", "high"),
        ("Wan2_2-T2V-A14B-LOW_bf16.safetensors", "low"),
        ("Wan2.2-T2V-A14B-HighNoise-Q4_K_M.gguf", "high"),
        ("Wan2.2-T2V-A14B-LowNoise-Q4_K_M.gguf", "low"),
        ("wan22T2VHigh.safetensors", "high"),
        ("wan2.2_highnoise14b.safetensors", "high"),
        ("wan_low_noise_high_quality.safetensors", "low"),
        ("high_noise_model/diffusion_pytorch_model.safetensors", "high"),
        ("LowNoise/model.safetensors", "low"),
        ("High/model.safetensors", "high"),
        ("high_noise_model/wan_low_noise.safetensors", "low"),
        ("wan_high_low.safetensors", None),
        ("wan_lowvram.safetensors", None),
        ("wan_low_vram.safetensors", None),
        ("highres_wan.safetensors", None),
        ("slow_wan.safetensors", None),
        ("low_end/wan.safetensors", None),
        ("wan_h.safetensors", None),
        ("wan.safetensors", None),
    ],
)
def test_what_a_name_says(tmp_path: Path, name: str, expected: str | None) -> None:
    found = expert_by_name(tmp_path / "models" / name)
    assert (found and found.expert.value) == expected


def test_two_files_that_say_which_is_which(tmp_path: Path) -> None:
    high = write_expert(tmp_path / "wan_high_noise.safetensors", 1)
    low = write_expert(tmp_path / "wan_low_noise.safetensors", 2)
    pair = open_experts(high, low)
    assert (pair.high.path, pair.low.path, pair.spec, pair.notes) == (high, low, TRANSFORMER, ())
    assert pair[Expert.HIGH] is pair.high and pair[Expert.LOW] is pair.low


@pytest.mark.parametrize("by", ["name", "metadata", "folder", "letter"])
def test_swapped(tmp_path: Path, by: str) -> None:
    names = {
        "name": ("wan_low.safetensors", "wan_high.safetensors"),
        "metadata": ("a.safetensors", "b.safetensors"),
        "folder": ("low_noise_model/a.safetensors", "high_noise_model/a.safetensors"),
        "letter": ("wan22_l_fp16.safetensors", "wan22_h_fp16.safetensors"),
    }[by]
    stated = [{"expert": expert} if by == "metadata" else {} for expert in ("low", "high")]
    first, second = (write_expert(tmp_path / name, i, **stated[i]) for i, name in enumerate(names))
    sentence = refusal(first, second)
    assert sentence.startswith("the experts are swapped: ")
    assert f"{names[0].split('/')[-1]}' is the low-noise one (its " in sentence
    assert f"{names[1].split('/')[-1]}' the high-noise one (its " in sentence
    pair = open_experts(second, first)
    assert pair.high.path == second and pair.notes == ()


def test_two_of_a_kind(tmp_path: Path) -> None:
    first = write_expert(tmp_path / "wan_high_a.safetensors", 1)
    second = write_expert(tmp_path / "wan_high_b.safetensors", 2)
    third = write_expert(tmp_path / "wan_low.safetensors", 3)
    fourth = write_expert(tmp_path / "wan_low_b.safetensors", 4)
    assert "wan_high_b.safetensors' is the high-noise expert (its name says so)" in refusal(first, second)
    assert "wan_low.safetensors' is the low-noise expert (its name says so)" in refusal(third, fourth)


def test_where_nothing_says_which_is_which_the_order_counts_and_a_note_says_so(tmp_path: Path) -> None:
    first, second = write_expert(tmp_path / "a.safetensors", 1), write_expert(tmp_path / "b.safetensors", 2)
    pair = open_experts(first, second)
    assert (pair.high.path, pair.low.path) == (first, second)
    (note,) = pair.notes
    assert "nothing says which expert is which" in note and "a.safetensors' is high noise" in note


def test_one_file_that_says_so_is_enough(tmp_path: Path) -> None:
    first, second = write_expert(tmp_path / "a.safetensors", 1), write_expert(tmp_path / "b_low.safetensors", 2)
    (note,) = open_experts(first, second).notes
    assert "a.safetensors' is; it is taken as the partner of" in note
    assert "is the low-noise expert" in refusal(second, first)


def test_a_folder_of_one_kind_does_not_speak_of_two_files_in_it(tmp_path: Path) -> None:
    files = [
        write_expert(tmp_path / "high_noise" / name, i) for i, name in enumerate(("a.safetensors", "b.safetensors"))
    ]
    assert "nothing says which expert is which" in open_experts(*files).notes[0]


def test_name_and_metadata_that_disagree(tmp_path: Path) -> None:
    high = write_expert(tmp_path / "wan_high.safetensors", 1, expert="low")
    low = write_expert(tmp_path / "other.safetensors", 2)
    assert "contradicts itself: its name says high noise, its metadata says low noise" in refusal(high, low)
    odd = write_expert(tmp_path / "odd.safetensors", 3, expert="medium")
    assert "say wan_velocity.expert 'medium', expected 'high' or 'low'" in refusal(odd, low)


def test_the_same_file_twice(tmp_path: Path) -> None:
    file = write_expert(tmp_path / "wan.safetensors")
    (tmp_path / "link.safetensors").symlink_to(file)
    for again in (file, tmp_path / "x" / ".." / "wan.safetensors", tmp_path / "link.safetensors"):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert "was given as both experts" in refusal(file, again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_weights_twice(tmp_path: Path, dtype: torch.dtype) -> None:
    high = write_expert(tmp_path / "wan_high.safetensors", 1)
    copy = {name: tensor.to(dtype) for name, tensor in expert_tensors(1).items()}
    low = write(tmp_path / "wan_low.safetensors", copy, CONFIG | {"other": "metadata"})
    assert "hold the same weights" in refusal(high, low)


def test_experts_that_share_most_tensors_are_still_two(tmp_path: Path) -> None:
    high = write_expert(tmp_path / "wan_high.safetensors", 1)
    tensors = expert_tensors(1) | {"head.modulation": expert_tensors(2)["head.modulation"]}
    assert open_experts(high, write(tmp_path / "wan_low.safetensors", tensors, CONFIG)).notes == ()


def test_experts_of_two_models(tmp_path: Path) -> None:
    high = write_expert(tmp_path / "wan_high.safetensors", 1)
    other = expert_tensors(2, replace(TRANSFORMER, ffn_dim=32, num_layers=1))
    sentence = refusal(high, write(tmp_path / "wan_low.safetensors", other, CONFIG))
    assert (
        "are not experts of one model: ffn_dim is 24 in one and 32 in the other, num_layers is 2 in one and 1"
        in sentence
    )


def test_a_pair_with_a_file_that_is_no_expert(tmp_path: Path) -> None:
    high = write_expert(tmp_path / "wan_high.safetensors", 1)
    image = write(tmp_path / "i2v_low.safetensors", expert_tensors(2, replace(TRANSFORMER, in_dim=36)), CONFIG)
    assert "i2v_low.safetensors' is a Wan 2.2 image-to-video (I2V-A14B) expert" in refusal(high, image)
    assert "does not exist" in refusal(high, tmp_path / "absent.safetensors")


def test_the_official_folder(tmp_path: Path) -> None:
    folder = official_model(tmp_path / "Wan2.2-T2V-A14B")
    pair = open_experts(folder)
    assert (pair.high.path, pair.low.path) == (folder / "high_noise_model", folder / "low_noise_model")
    assert pair.spec == TRANSFORMER and pair.notes == ()
    assert open_experts(folder / "high_noise_model", folder / "low_noise_model").notes == ()
    assert "swapped" in refusal(folder / "low_noise_model", folder / "high_noise_model")


def test_a_folder_with_both_files_among_others(tmp_path: Path) -> None:
    high = write_expert(tmp_path / "wan_high.safetensors", 1)
    low = write_expert(tmp_path / "wan_low.safetensors", 2)
    lora = {"diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.ones(2)}
    write(tmp_path / "lora_high_noise.safetensors", lora)
    write(tmp_path / "i2v_low_noise.safetensors", expert_tensors(2, replace(TRANSFORMER, in_dim=36)))
    pair = open_experts(tmp_path)
    assert (pair.high.path, pair.low.path) == (high, low)
    write_expert(tmp_path / "wan_high_bf16.safetensors", 3)
    sentence = refusal(tmp_path)
    assert "holds several high-noise experts" in sentence and "wan_high_bf16.safetensors" in sentence


def test_where_no_candidate_can_be_used_the_first_says_why(tmp_path: Path) -> None:
    scaled = expert_tensors(1) | {"blocks.0.ffn.0.input_global_scale": torch.ones(())}
    for name in ("wan_high_a.safetensors", "wan_high_b.safetensors", "wan_low.safetensors"):
        write(tmp_path / name, scaled, CONFIG)
    assert "wan_high_a.safetensors' holds nvfp4 weights" in refusal(tmp_path)


def test_folders_and_files_that_do_not_hold_both(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent")
    assert "holds no high and no low-noise text-to-video expert" in refusal(tmp_path)
    high = write_expert(tmp_path / "wan_high.safetensors", 1)
    assert "holds no low-noise text-to-video expert" in refusal(tmp_path)
    assert "is one expert and no partner was found by its name; give the low-noise expert too" in refusal(high)


def test_a_shard_folder_without_its_config_needs_heads_of_128(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "high_noise_model", expert_tensors(1))
    (folder / "config.json").write_text(json.dumps({}))
    assert "does not show its number of heads" in refusal(folder, write_expert(tmp_path / "low.safetensors", 2))
