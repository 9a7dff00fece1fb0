"""LoRA files: what is read from them, how much it counts, and one sentence for each that cannot be used."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.lora_files import FAMILIES, write_lora
from tests.unit.checkpoint.synthetic import TRANSFORMER, expert_tensors, raw_file, write
from wan_core.checkpoint.identify import identify
from wan_core.checkpoint.lora import open_lora
from wan_core.checkpoint.lora_file import LoraFile
from wan_core.errors import CheckpointError
from wan_core.specs import T2V_A14B_TRANSFORMER, Expert

Tensors = dict[str, Tensor]
KEY = "diffusion_model.blocks.0.self_attn.q"


def low_rank(rank: int = 4, width: int = 16, key: str = KEY, **more: Tensor) -> Tensors:
    """A change of one layer of the synthetic expert; keywords are further parts, with `_` for dots."""
    parts = {"lora_down.weight": torch.ones(rank, width), "lora_up.weight": torch.ones(width, rank)}
    parts |= {name.replace("__", "."): tensor for name, tensor in more.items()}
    return {f"{key}.{name}": tensor for name, tensor in parts.items()}


def opened(folder: Path, tensors: Tensors, name: str = "style.safetensors", **metadata: str) -> LoraFile:
    return open_lora(write(folder / name, tensors, metadata))


def refusal(folder: Path, tensors: Tensors, *, fit: bool = False, **metadata: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        lora = opened(folder, tensors, **metadata)
        if fit:
            lora.fitted(TRANSFORMER)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_opens_fits_and_is_described(tmp_path, family):
    path, writer = write_lora(tmp_path, family, TRANSFORMER, Expert.HIGH)
    lora = open_lora(path).fitted(TRANSFORMER)
    assert {change.parameter for change in lora.changes} and lora.ignored == {}
    assert len(lora.changes) == len(writer.merges)
    assert lora.describe(Expert.HIGH, 20).startswith("20/20 modules")
    assert lora.expert is Expert.HIGH
    description = identify(path)
    assert description.kind == "lora" and description.is_usable
    assert "20 modules" in description.to_text() and "keys" in description.to_text()


def test_the_facts_of_a_file(tmp_path):
    tensors = low_rank(rank=4, alpha=torch.tensor(2.0)) | low_rank(rank=8, key="diffusion_model.blocks.1.self_attn.q")
    tensors |= {"diffusion_model.blocks.0.norm3.diff": torch.ones(16)}
    tensors |= {f"diffusion_model.blocks.{i}.cross_attn.k_img.diff_b": torch.ones(16) for i in range(3)}
    tensors |= {"text_encoder.x.lora_A.weight": torch.ones(1), "odd": torch.ones(1)}
    lora = opened(tmp_path, tensors)
    assert lora.family == "ComfyUI"
    assert [(change.rank, change.scale) for change in lora.changes if change.rank] == [(4, 0.5), (8, 1.0)]
    assert lora.describe(Expert.LOW, 400) == (
        "2/400 modules and 1 other tensor, 1 diffs, rank 4 to 8, alpha/rank 0.5 to 1"
    )
    assert lora.describe_ignored() == (
        "5 keys ignored (image keys of the I2V model: 3, keys of a text encoder: 1, unknown keys: 1)"
    )


def test_one_reason_needs_no_count_of_its_own(tmp_path):
    tensors = low_rank() | {"diffusion_model.blocks.0.cross_attn.v_img.diff_b": torch.ones(16)}
    assert opened(tmp_path, tensors).describe_ignored() == "1 key ignored (image keys of the I2V model)"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.float32])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_alpha_of_any_dtype(tmp_path, dtype, shape):
    (change,) = opened(tmp_path, low_rank(rank=8, alpha=torch.full(shape, 2, dtype=dtype))).changes
    assert change.scale == 0.25


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"transformer.lora_alpha": 8, "transformer.r": 4}, 2.0),
        ({"transformer.lora_alpha": 8, "transformer.use_rslora": True}, 4.0),
        ({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"blocks.0.attn1.to_q": 2}}, 0.5),
        ({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"attn1.to_k": 2}}, 2.0),
        ({"lora_alpha": 8}, 2.0),
        ({"transformer.r": 4}, 1.0),
        ({"text_encoder.lora_alpha": 8}, 1.0),
    ],
)
def test_alpha_in_the_metadata_of_diffusers(tmp_path, settings, scale):
    key = "transformer.blocks.0.attn1.to_q"
    tensors = {f"{key}.lora_A.weight": torch.ones(4, 16), f"{key}.lora_B.weight": torch.ones(16, 4)}
    (change,) = opened(tmp_path, tensors, lora_adapter_metadata=json.dumps(settings)).changes
    assert change.scale == scale


def test_alpha_in_plain_metadata(tmp_path):
    (change,) = opened(tmp_path, low_rank(rank=4), lora_alpha="8", use_rslora="True").changes
    assert change.scale == 4.0


def test_the_tensor_counts_before_the_metadata(tmp_path):
    (change,) = opened(tmp_path, low_rank(rank=4, alpha=torch.tensor(1.0)), lora_alpha="8").changes
    assert change.scale == 0.25


def test_a_configuration_of_another_file_is_not_read(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8}')
    assert opened(tmp_path, low_rank(), "style.safetensors").changes[0].scale == 1.0
    assert opened(tmp_path, low_rank(), "adapter_model.safetensors").changes[0].scale == 2.0


def lightning(folder: str, name: str, rank: int = 64) -> Callable[[Path], LoraFile]:
    return lambda root: opened(root / folder, low_rank(rank=rank), name)


@pytest.mark.parametrize(
    ("make", "is_early"),
    [
        (lightning("Wan2.2-T2V-A14B-4steps-lora-rank64-V1", "high_noise_model.safetensors"), True),
        (lightning("loras", "Wan2.2-Lightning_T2V-A14B-4steps-lora_HIGH.safetensors"), True),
        (lightning("loras", "my_style_high_noise.safetensors"), False),
        (lightning("Wan2.2-T2V-A14B-4steps-lora", "high_noise_model.safetensors", rank=32), False),
    ],
)
def test_an_early_lightning_upload_is_told_apart(tmp_path, make, is_early):
    notes = make(tmp_path).notes
    assert bool(notes) == is_early
    assert all("0.125" in note for note in notes)


def test_a_lightning_upload_with_alphas_needs_no_note(tmp_path):
    lora = opened(tmp_path, low_rank(rank=64, alpha=torch.tensor(8.0)), "Wan2.2-Lightning_4steps_high.safetensors")
    assert lora.notes == () and lora.changes[0].scale == 0.125


@pytest.mark.parametrize(
    ("name", "is_distilled"),
    [
        ("wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors", True),
        ("Wan21_CausVid_14B_T2V_lora_rank32.safetensors", True),
        ("wan_8step_high.safetensors", True),
        ("rCM_high.safetensors", True),
        ("style_trained_for_1000_steps.safetensors", False),
        ("footsteps_high.safetensors", False),
        ("starcmd.safetensors", False),
        ("film_high.safetensors", False),
    ],
)
def test_distilled_loras_are_told_by_name(tmp_path, name, is_distilled):
    assert opened(tmp_path / "loras", low_rank(), name).is_distilled == is_distilled


def test_the_folder_tells_too(tmp_path):
    assert opened(tmp_path / "Wan2.2-Lightning-V1", low_rank(), "high_noise_model.safetensors").is_distilled


def test_an_expert_said_by_keys_counts_more_than_a_name(tmp_path):
    tensors = low_rank(key="transformer_2.blocks.0.attn1.to_q")
    lora = opened(tmp_path, tensors, "style_high_noise.safetensors")
    assert lora.expert is Expert.LOW
    assert (len(lora.changes_for(Expert.HIGH)), len(lora.changes_for(Expert.LOW))) == (0, 1)


def test_the_identity_changes_with_the_file(tmp_path):
    first = opened(tmp_path, low_rank()).identity
    assert opened(tmp_path, low_rank()).path == Path(first[0][0])
    again = open_lora(tmp_path / "style.safetensors").identity
    assert again == open_lora(tmp_path / "style.safetensors").identity
    assert opened(tmp_path, low_rank(rank=5)).identity != again


def test_a_whole_model_is_no_lora(tmp_path):
    assert "looks like a Wan transformer, expected a LoRA" in refusal(tmp_path, expert_tensors())


def test_other_files_are_no_loras(tmp_path):
    assert "looks like a CLIP text encoder" in refusal(tmp_path, {"text_model.encoder.x": torch.ones(1)})
    (tmp_path / "empty.safetensors").write_bytes(raw_file({}))
    with pytest.raises(CheckpointError, match="holds no tensors"):
        open_lora(tmp_path / "empty.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        open_lora(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", "is a LoRA for the Flux or Hunyuan family"),
        ("lora_unet_input_blocks_1_1_proj_in", "is a LoRA for Stable Diffusion"),
        ("transformer.transformer_blocks.0.attn.to_q", "is a LoRA for another diffusion transformer"),
        (
            "diffusion_model.something",
            "unknown keys: 2; its first tensor is 'diffusion_model.something.lora_down.weight'",
        ),
        ("diffusion_model.blocks.0.cross_attn.k_img", "changes nothing in a Wan text-to-video model"),
    ],
)
def test_loras_of_other_models_are_refused_by_name(tmp_path, key, model):
    assert model in refusal(tmp_path, low_rank(key=key))


def test_only_other_kinds_of_adapters(tmp_path):
    text = refusal(tmp_path, {f"{KEY}.oft_blocks": torch.ones(1), f"{KEY}.dora_scale": torch.ones(16, 1)})
    assert "OFT" in text


@pytest.mark.parametrize(
    ("tensors", "fragment"),
    [
        (low_rank(width=32), "is a LoRA for a model of width 32, these experts have width 16"),
        (low_rank(width=3072), "width 3072 (Wan 2.2 TI2V-5B)"),
        (low_rank(key="diffusion_model.blocks.5.self_attn.q"), "which these experts do not have: they have 2 blocks"),
        (
            {f"{KEY}.lora_down.weight": torch.ones(2, 16), f"{KEY}.lora_up.weight": torch.ones(8, 2)},
            "changes 'blocks.0.self_attn.q.weight' by (8, 16), expected (16, 16)",
        ),
        ({"diffusion_model.blocks.0.norm3.diff": torch.ones(8)}, "by (8,), expected (16,)"),
        ({f"{KEY}.diff_b": torch.ones(1, 17)}, "by (1, 17), expected (16,)"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, tensors, fragment):
    assert fragment in refusal(tmp_path, tensors, fit=True)


def test_a_diff_may_lack_axes_of_size_one(tmp_path):
    tensors = {"diffusion_model.blocks.0.diff_m": torch.ones(6, 16)}
    assert opened(tmp_path, tensors).fitted(TRANSFORMER).changes[0].shape == (6, 16)


def test_the_patch_embedding_of_an_image_model_is_left_out(tmp_path):
    patch = {
        "diffusion_model.patch_embedding.lora_down.weight": torch.ones(2, 36, 1, 2, 2),
        "diffusion_model.patch_embedding.lora_up.weight": torch.ones(16, 2, 1, 1, 1),
    }
    lora = opened(tmp_path, low_rank() | patch).fitted(TRANSFORMER)
    assert len(lora.changes) == 1
    assert "other input channels" in lora.describe_ignored()
    assert "changes nothing but the patch embedding" in refusal(tmp_path, patch, fit=True)


ONES = torch.ones(4, 4)
DAMAGED = {
    "half a product": ({f"{KEY}.lora_down.weight": ONES}, "is incomplete: it has down but not what belongs to it"),
    "half a LoKr": ({f"{KEY}.lokr_w1": ONES}, "is incomplete: it has w1"),
    "half a LoHa": ({f"{KEY}.hada_w{i}_a": torch.ones(4, 4) for i in (1, 2)}, "it has hada_w1_a and hada_w2_a but"),
    "two ranks": (
        {f"{KEY}.lora_down.weight": torch.ones(3, 16), f"{KEY}.lora_up.weight": torch.ones(16, 4)},
        "do not go together: down (3, 16), up (16, 4)",
    ),
    "rank 0": (
        {f"{KEY}.lora_down.weight": torch.ones(0, 16), f"{KEY}.lora_up.weight": torch.ones(16, 0)},
        "do not go together",
    ),
    "a vector": ({f"{KEY}.lora_down.weight": torch.ones(4), f"{KEY}.lora_up.weight": ONES}, "do not go together"),
    "two sizes of LoHa": (
        {f"{KEY}.hada_w{i}_{c}": torch.ones((4, 2) if c == "a" else (2, 3 + i)) for i in (1, 2) for c in "ab"},
        "do not go together: hada_w1_a",
    ),
    "Tucker form": (low_rank(lora_mid__weight=ONES), "in Tucker form"),
    "magnitudes of another size": (low_rank(dora_scale=torch.ones(7, 1)), "do not go together: magnitude (7, 1)"),
    "an alpha that is a vector": (low_rank(alpha=torch.ones(3)), "has shape (3,), expected one number"),
    "an alpha that is no number": (low_rank(alpha=torch.tensor(float("nan"))), "is nan, expected a number"),
    "whole numbers": (
        {f"{KEY}.lora_down.weight": torch.ones(2, 16).int(), f"{KEY}.lora_up.weight": torch.ones(16, 2)},
        "int32",
    ),
    "the same part twice": (
        low_rank() | low_rank(key=f"model.{KEY}"),
        "are the same part of the change of 'blocks.0.self_attn.q.weight'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_told_in_one_sentence(tmp_path, damage):
    tensors, fragment = DAMAGED[damage]
    text = refusal(tmp_path, tensors)
    assert fragment in text and "style.safetensors" in text
    description = identify(tmp_path / "style.safetensors")
    assert description.problems == (text,)


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ('{"lora_alpha": "many"}', "says alpha 'many', expected a number"),
        ('{"lora_alpha": true, "alpha_pattern": 3}', "says alpha_pattern 3"),
        ("[1]", "lora_adapter_metadata in the metadata of"),
        ("{", "lora_adapter_metadata in the metadata of"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, settings, fragment):
    assert fragment in refusal(tmp_path, low_rank(), lora_adapter_metadata=settings)


ENDS = ("lora_down.weight", "lora_up.weight", "alpha", "diff", "diff_b", "diff_m", "dora_scale", "lokr_w1", "lokr_w2_a")
MODULES = ("self_attn.q", "norm3", "modulation", "cross_attn.k_img", "ffn.0", "")


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(MODULES), st.sampled_from(ENDS)),
        st.lists(st.integers(0, 17), max_size=3),
        min_size=1,
        max_size=8,
    )
)
def test_any_parts_open_or_are_refused(tmp_path_factory, parts):
    tensors = {f"diffusion_model.blocks.0.{module}.{end}": torch.ones(shape) for (module, end), shape in parts.items()}
    path = write(tmp_path_factory.mktemp("any") / "style.safetensors", tensors)
    try:
        open_lora(path).fitted(T2V_A14B_TRANSFORMER)
    except CheckpointError as error:
        assert "\n" not in str(error)
