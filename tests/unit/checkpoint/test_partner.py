"""The other expert's file by the name of one, and pairs opened by one of their files."""

import json
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type

from tests.unit.checkpoint.gguf_files import write_gguf
from tests.unit.checkpoint.models import draw_transformer
from tests.unit.checkpoint.synthetic import expert_tensors, write_expert, write_shards
from wan_core.checkpoint.experts import open_experts
from wan_core.checkpoint.partner import find_partner
from wan_core.errors import CheckpointError

PAIRS = [
    ("wan2.2_t2v_high_noise_14B_fp16.safetensors", "wan2.2_t2v_low_noise_14B_fp16.safetensors"),
    ("Wan2_2-T2V-A14B-HIGH_fp8_e4m3fn_scaled_KJ.safetensors", "Wan2_2-T2V-A14B-LOW_fp8_e4m3fn_scaled_KJ.safetensors"),
    ("Wan2.2-HighNoise-Q4_K_M.gguf", "Wan2.2-LowNoise-Q4_K_M.gguf"),
    ("HighNoise/Wan2.2-HighNoise-Q4_K_M.gguf", "LowNoise/Wan2.2-LowNoise-Q4_K_M.gguf"),
    ("high_noise_model/distill.safetensors", "low_noise_model/distill.safetensors"),
    ("wan22_t2v_h.safetensors", "wan22_t2v_l.safetensors"),
]


def touched(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(("high", "low"), PAIRS)
def test_either_file_finds_the_other(tmp_path: Path, high: str, low: str) -> None:
    touched(tmp_path / high, tmp_path / low, tmp_path / "vae.safetensors", tmp_path / "wan_high_other.gguf")
    assert find_partner(tmp_path / high) == tmp_path / low
    assert find_partner(tmp_path / low) == tmp_path / high


@pytest.mark.parametrize(("high", "low"), [("high_noise_model", "low_noise_model"), ("transformer", "transformer_2")])
def test_either_folder_finds_the_other(tmp_path: Path, high: str, low: str) -> None:
    for name in (high, low, "vae", "text_encoder"):
        (tmp_path / name).mkdir()
    assert find_partner(tmp_path / high) == tmp_path / low
    assert find_partner(tmp_path / low) == tmp_path / high


def test_what_differs_in_more_than_the_expert_is_no_partner(tmp_path: Path) -> None:
    touched(
        tmp_path / "wan_high_noise_Q4_K_M.gguf", tmp_path / "wan_low_noise_Q8_0.gguf", tmp_path / "t2v_low_noise.gguf",
        tmp_path / "wan_low_noise_Q4_K_M.safetensors",
    )  # fmt: skip
    assert find_partner(tmp_path / "wan_high_noise_Q4_K_M.gguf") is None
    (tmp_path / "transformer").mkdir()
    assert find_partner(tmp_path / "transformer") is None


def test_two_that_would_do_are_both_named(tmp_path: Path) -> None:
    touched(tmp_path / "wan_high_noise.gguf", tmp_path / "wan_low_noise.gguf", tmp_path / "wan_lownoise.gguf")
    with pytest.raises(CheckpointError, match="several files have the name of .*wan_low_noise.gguf.*wan_lownoise.gguf"):
        find_partner(tmp_path / "wan_high_noise.gguf")


@pytest.mark.parametrize("given", ["high", "low"])
def test_a_pair_by_one_of_its_files(tmp_path: Path, given: str) -> None:
    high = write_expert(tmp_path / "wan_high_noise.safetensors", 1)
    low = write_expert(tmp_path / "wan_low_noise.safetensors", 2)
    pair = open_experts(high if given == "high" else low)
    assert (pair.high.path, pair.low.path, pair.notes) == (high, low, ())


@pytest.mark.parametrize("given", ["high", "low"])
def test_a_pair_by_one_of_its_folders(tmp_path: Path, given: str) -> None:
    high = write_shards(tmp_path / "high_noise_model", expert_tensors(1))
    low = write_shards(tmp_path / "low_noise_model", expert_tensors(2))
    pair = open_experts(high if given == "high" else low)
    assert (pair.high.path, pair.low.path) == (high, low)


def test_a_pair_of_gguf_in_two_folders_by_one_file(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}Noise" / f"Wan2.2-{name}Noise-Q8_0.gguf" for name in ("High", "Low")]
    for seed, path in enumerate(paths):
        write_gguf(path, draw_transformer(seed), Type.Q8_0)
    for given in paths:
        pair = open_experts(given)
        assert [pair.high.path, pair.low.path] == paths
    pair = open_experts(tmp_path)
    assert {pair.high.path.name, pair.low.path.name} == {"HighNoise", "LowNoise"}


def test_a_folder_called_transformer_is_an_expert_only_beside_the_second(tmp_path: Path) -> None:
    for seed, name in enumerate(("transformer", "transformer_2")):
        write_shards(tmp_path / name, expert_tensors(seed))
    pair = open_experts(tmp_path)
    assert (pair.high.path.name, pair.low.path.name, pair.notes) == ("transformer", "transformer_2", ())
    with pytest.raises(CheckpointError, match="the experts are swapped"):
        open_experts(tmp_path / "transformer_2", tmp_path / "transformer")
    alone = write_shards(tmp_path / "other" / "transformer", expert_tensors(3))
    (alone / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    assert "nothing says which expert" in open_experts(tmp_path / "transformer", alone).notes[0]
