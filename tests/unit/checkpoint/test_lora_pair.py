"""Which LoRA file goes on which expert: partners by name, by hand, by their keys, or none."""

from pathlib import Path

import pytest
import torch

from tests.unit.checkpoint.synthetic import TRANSFORMER, write
from wan_core.checkpoint.lora_pair import LoraChoice, choose_lora, lora_for
from wan_core.checkpoint.partner import find_partner
from wan_core.errors import CheckpointError, InputError
from wan_core.specs import Expert


def lora(path: Path, prefixes: tuple[str, ...] = ("diffusion_model.blocks.0.self_attn.q",)) -> Path:
    tensors = {f"{p}.{end}.weight": torch.ones(16, 16) for p in prefixes for end in ("lora_down", "lora_up")}
    return write(path, tensors)


def names(choice: LoraChoice) -> tuple[str | None, str | None]:
    return tuple(choice[expert].path.name if choice[expert] else None for expert in Expert)


PAIRS = [
    ("wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise", "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise"),
    ("Wan2.2-Lightning_T2V-A14B-4steps-lora_HIGH_fp16", "Wan2.2-Lightning_T2V-A14B-4steps-lora_LOW_fp16"),
    ("Style-HighNoise-e20", "Style-LowNoise-e20"),
    ("style_highnoise", "style_lownoise"),
    ("wan22_style_h", "wan22_style_l"),
    ("Style_H_v2", "Style_L_v2"),
    ("high_noise_model", "low_noise_model"),
    ("high res style high noise", "high res style low noise"),
]


@pytest.mark.parametrize(("high", "low"), PAIRS)
def test_partners_in_one_folder(tmp_path, high, low):
    files = {
        name: lora(tmp_path / f"{name}.safetensors") for name in (high, low, "other_high_noise", "other_low_noise")
    }
    assert find_partner(files[high]) == files[low]
    assert find_partner(files[low]) == files[high]
    for given in (high, low):
        choice = choose_lora(files[given], TRANSFORMER, strength_high=0.5, strength_low=2.0)
        assert names(choice) == (f"{high}.safetensors", f"{low}.safetensors")
        assert [choice.strength(expert) for expert in Expert] == [0.5, 2.0]
        assert choice.notes == ()


def test_versions_in_folders_of_their_own(tmp_path):
    for version in ("V1", "V1.1"):
        for name in ("high_noise_model", "low_noise_model"):
            lora(tmp_path / f"Wan2.2-T2V-A14B-4steps-lora-rank32-{version}" / f"{name}.safetensors")
    given = tmp_path / "Wan2.2-T2V-A14B-4steps-lora-rank32-V1.1" / "low_noise_model.safetensors"
    assert find_partner(given) == given.with_name("high_noise_model.safetensors")


def test_a_folder_for_each_expert(tmp_path):
    high, low = lora(tmp_path / "high_noise" / "style.safetensors"), lora(tmp_path / "low_noise" / "style.safetensors")
    lora(tmp_path / "low_noise" / "other.safetensors")
    assert find_partner(high) == low
    choice = choose_lora(low, TRANSFORMER)
    assert (choice.high.path, choice.low.path) == (high, low)


@pytest.mark.parametrize(
    "other", ["style_low_noise_v2", "Style2_low_noise", "style_low_noise.part", "style_high_noise2"]
)
def test_names_that_differ_in_more_are_no_partners(tmp_path, other):
    high = lora(tmp_path / "style_high_noise.safetensors")
    lora(tmp_path / f"{other}.safetensors")
    assert find_partner(high) is None
    choice = choose_lora(high, TRANSFORMER)
    assert names(choice) == ("style_high_noise.safetensors", None)
    assert "no partner was found by its name" in choice.notes[0]


def test_two_partners_are_named(tmp_path):
    high = lora(tmp_path / "style_high_noise.safetensors")
    lora(tmp_path / "style_low_noise.safetensors")
    lora(tmp_path / "style_LOW_noise.safetensors")
    with pytest.raises(CheckpointError, match="several files have the name of .*partner"):
        choose_lora(high, TRANSFORMER)


def test_without_a_partner_where_none_is_wanted(tmp_path):
    high = lora(tmp_path / "style_high_noise.safetensors")
    lora(tmp_path / "style_low_noise.safetensors")
    choice = choose_lora(high, TRANSFORMER, partner="none")
    assert names(choice) == ("style_high_noise.safetensors", None)
    assert choice.notes == (f"'{tmp_path.name}/style_high_noise.safetensors' is on the high-noise expert only",)


@pytest.mark.parametrize("partner", ["by name", "none"])
def test_a_file_for_either_goes_on_both(tmp_path, partner):
    choice = choose_lora(lora(tmp_path / "wan21_style.safetensors"), TRANSFORMER, partner=partner)
    assert choice.high is choice.low
    assert "nothing says which expert" in choice.notes[0] and "it is on both" in choice.notes[0]


def test_a_file_that_names_both_in_its_keys(tmp_path):
    path = lora(tmp_path / "s.safetensors", ("transformer.blocks.0.attn1.to_q", "transformer_2.blocks.0.attn1.to_k"))
    choice = choose_lora(path, TRANSFORMER)
    assert choice.notes == ()
    found = {expert: [change.parameter for change in choice[expert].changes_for(expert)] for expert in Expert}
    assert found == {Expert.HIGH: ["blocks.0.self_attn.q.weight"], Expert.LOW: ["blocks.0.self_attn.k.weight"]}


def test_partners_given_by_hand(tmp_path):
    low, other = lora(tmp_path / "a_low_noise.safetensors"), lora(tmp_path / "b.safetensors")
    assert names(choose_lora(low, TRANSFORMER, partner=other)) == ("b.safetensors", "a_low_noise.safetensors")
    assert names(choose_lora(other, TRANSFORMER, partner=low)) == ("b.safetensors", "a_low_noise.safetensors")
    third = lora(tmp_path / "c.safetensors")
    unknown = choose_lora(other, TRANSFORMER, partner=third)
    assert names(unknown) == ("b.safetensors", "c.safetensors")
    assert "as given, " in unknown.notes[0]


def test_two_files_for_the_same_expert(tmp_path):
    first, second = lora(tmp_path / "a_high_noise.safetensors"), lora(tmp_path / "b_high_noise.safetensors")
    with pytest.raises(CheckpointError, match="are both for the high-noise expert, expected one file for each"):
        choose_lora(first, TRANSFORMER, partner=second)


def test_one_expert_as_asked_whatever_the_name_says(tmp_path):
    low = lora(tmp_path / "style_low_noise.safetensors")
    choice = lora_for(Expert.HIGH, low, TRANSFORMER, 0.7)
    assert names(choice) == ("style_low_noise.safetensors", None) and choice.strength_high == 0.7
    assert "says that it is for the low-noise expert; as asked, it is on the high-noise expert" in choice.notes[0]
    assert lora_for(Expert.LOW, low, TRANSFORMER).notes == ()


def test_keys_of_the_other_expert_alone_cannot_be_asked_for(tmp_path):
    path = lora(tmp_path / "s.safetensors", ("transformer_2.blocks.0.attn1.to_q",))
    with pytest.raises(CheckpointError, match="holds changes of the low-noise expert only"):
        lora_for(Expert.HIGH, path, TRANSFORMER)
    assert names(choose_lora(path, TRANSFORMER)) == (None, "s.safetensors")


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_is_a_number(tmp_path, strength):
    with pytest.raises(InputError, match="the strength of a LoRA is"):
        choose_lora(lora(tmp_path / "s.safetensors"), TRANSFORMER, strength_low=strength)


def test_what_does_not_fit_is_refused_when_it_is_chosen(tmp_path):
    path = lora(tmp_path / "s.safetensors", ("diffusion_model.blocks.9.self_attn.q",))
    with pytest.raises(CheckpointError, match="they have 2 blocks"):
        choose_lora(path, TRANSFORMER)
