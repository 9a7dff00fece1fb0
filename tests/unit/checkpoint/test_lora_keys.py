"""The names of LoRA keys: every family covers every module that has weights, both ways, by names written out here."""

from collections.abc import Callable

import pytest
from diffusers.loaders.lora_conversion_utils import (
    _convert_musubi_wan_lora_to_diffusers,
    _convert_non_diffusers_wan_lora_to_diffusers,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import ones

from tests.parity.diffusers_names import to_diffusers
from wan_core.checkpoint.inventory import transformer_shapes
from wan_core.checkpoint.lora_file import block_linears
from wan_core.checkpoint.lora_keys import FAMILIES, IMAGE_REASON, UNKNOWN_REASON, other_model, read_keys
from wan_core.specs import T2V_A14B_TRANSFORMER, Expert

SHAPES = transformer_shapes(T2V_A14B_TRANSFORMER)
LINEARS = block_linears(T2V_A14B_TRANSFORMER)
OTHER_LINEARS = (
    "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2", "time_projection.1", "head.head",
    "patch_embedding",
)  # fmt: skip
Name = Callable[[str], str]


def dots(name: str) -> str:
    return name


def underscores(name: str) -> str:
    return name.replace(".", "_")


def diffusers(name: str) -> str:
    return to_diffusers(f"{name}.weight").removesuffix(".weight")


# Family -> (a module by its official name -> the key's beginning), spelled apart from the tables.
SPELLINGS: dict[str, Name] = {
    "ComfyUI": lambda name: "diffusion_model." + dots(name),
    "diffusers": lambda name: "transformer." + diffusers(name),
    "kohya": lambda name: "lora_unet_" + underscores(name),
    "VideoX-Fun": lambda name: "lora_unet__" + underscores(name),
    "LyCORIS": lambda name: "lycoris_" + underscores(name),
    "LyCORIS, diffusers names": lambda name: "lycoris_" + underscores(diffusers(name)),
    "PEFT": lambda name: "base_model.model." + dots(name),
    "PEFT, diffusers names": lambda name: "base_model.model." + diffusers(name),
    "DiffSynth": lambda name: "pipe.dit." + dots(name),
    "bare": dots,
    "bare, diffusers names": diffusers,
    "transformer, official names": lambda name: "transformer." + dots(name),
    "ComfyUI, diffusers names": lambda name: "diffusion_model." + diffusers(name),
    "kohya, diffusers names": lambda name: "lora_unet_" + underscores(diffusers(name)),
}


def test_every_family_is_spelled_here():
    assert list(SPELLINGS) == [family.name for family in FAMILIES]


def test_there_are_400_linear_layers_in_the_blocks():
    assert len(LINEARS) == 400 == len(set(LINEARS))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_covers_every_module_with_weights_both_ways(family):
    spell = SPELLINGS[family.name]
    modules = {name.rpartition(".")[0] for name in SHAPES if not name.endswith("modulation")}
    assert {*LINEARS, *OTHER_LINEARS} <= modules and len(modules) == 40 * 15 + 7
    for module in modules:
        assert family.from_official(module) == spell(module)
        assert family.locate(spell(module)) == (family.prefixes[0], module)


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_file_is_read_by_its_own_family(name):
    spell = SPELLINGS[name]
    ends = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}
    keys = {f"{spell(module)}.{end}": (f"{module}.weight", role) for module in LINEARS for end, role in ends.items()}
    reading = read_keys(keys)
    assert reading.family.name == name and not reading.ignored
    assert {key.name: (key.parameter, key.role) for key in reading.keys} == keys


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("ComfyUI", "diffusion_model."), ("diffusers", "transformer."), ("PEFT", "base_model.model."), ("bare", "")],
)
def test_differences_reach_all_1095_tensors(name, prefix):
    ends = {"weight": "diff", "bias": "diff_b", "modulation": "diff_m"}
    keys = {}
    for parameter in SHAPES:
        module, _, leaf = parameter.rpartition(".")
        # `.diff_m` stands behind the block or the head that has the modulation.
        begin = prefix + module if leaf == "modulation" else SPELLINGS[name](module)
        keys[f"{begin}.{ends[leaf]}"] = parameter
    reading = read_keys(keys)
    assert {key.name: key.parameter for key in reading.keys} == keys and len(keys) == 1095
    assert {key.role for key in reading.keys} == {"diff"}


def test_modulation_by_its_own_name():
    keys = {
        "diffusion_model.blocks.3.modulation.diff": "blocks.3.modulation",
        "diffusion_model.head.modulation.diff": "head.modulation",
        "diffusion_model.blocks.3.self_attn.q.diff": "blocks.3.self_attn.q.weight",
    }
    assert {key.name: key.parameter for key in read_keys(keys).keys} == keys


def test_attn1_is_self_attention_and_norm2_of_diffusers_is_norm3():
    keys = {
        "transformer.blocks.0.attn1.to_q.lora_A.weight": "blocks.0.self_attn.q.weight",
        "transformer.blocks.0.attn2.to_out.0.lora_A.weight": "blocks.0.cross_attn.o.weight",
        "transformer.blocks.0.norm2.diff": "blocks.0.norm3.weight",
    }
    reading = read_keys([*keys, "transformer.blocks.0.norm3.diff", "transformer.blocks.0.norm1.diff"])
    assert {key.name: key.parameter for key in reading.keys} == keys
    # In diffusers these two have no weights, in the official model norm3 has: by the file's own family it is unknown.
    assert reading.ignored == {UNKNOWN_REASON: ("transformer.blocks.0.norm3.diff", "transformer.blocks.0.norm1.diff")}


@pytest.mark.parametrize("style", ["comfyui", "musubi"])
def test_agrees_with_the_converters_of_diffusers(style):
    linears = block_linears(T2V_A14B_TRANSFORMER)[:30]
    ours = {SPELLINGS["ComfyUI" if style == "comfyui" else "kohya"](module): module for module in linears}
    tensors = {f"{key}.{end}": ones(1, 1) for key in ours for end in ("lora_down.weight", "lora_up.weight")}
    tensors |= {f"{key}.alpha": ones(()) for key in ours}
    convert = (
        _convert_non_diffusers_wan_lora_to_diffusers if style == "comfyui" else _convert_musubi_wan_lora_to_diffusers
    )
    theirs = read_keys(convert(dict(tensors)))
    mine = read_keys(tensors)
    found = [{(key.parameter, key.role) for key in reading.keys if key.role != "alpha"} for reading in (mine, theirs)]
    assert found[0] == found[1] and len(found[0]) == 60
    assert theirs.family.name == "diffusers" and not theirs.ignored


@pytest.mark.parametrize(
    ("end", "role", "leaf"),
    [
        ("lora_A.weight", "down", "weight"),
        ("lora_B.default.weight", "up", "weight"),
        ("lora_A.my-style_2.weight", "down", "weight"),
        ("lora_B.bias", "up_bias", "bias"),
        ("lora_B.default.bias", "up_bias", "bias"),
        ("dora_scale", "magnitude", "weight"),
        ("lora_magnitude_vector", "magnitude", "weight"),
        ("lora_magnitude_vector.default.weight", "magnitude", "weight"),
        ("lokr_w1", "w1", "weight"),
        ("lokr_w2_b", "w2_b", "weight"),
        ("hada_w1_a", "hada_w1_a", "weight"),
        ("diff", "diff", "weight"),
        ("diff_b", "diff", "bias"),
        ("w_norm", "diff", "weight"),
        ("b_norm", "diff", "bias"),
    ],
)
def test_the_parts_of_a_change(end, role, leaf):
    (key,) = read_keys([f"diffusion_model.blocks.0.ffn.0.{end}"]).keys
    assert (key.role, key.parameter) == (role, f"blocks.0.ffn.0.{leaf}")


@pytest.mark.parametrize(
    ("prefixes", "expected"),
    [
        (("transformer.", "transformer_2."), {Expert.HIGH, Expert.LOW}),
        (("transformer_2.",), {Expert.LOW}),
        (("transformer.",), {None}),
        (("pipe.dit.", "pipe.dit2."), {Expert.HIGH, Expert.LOW}),
    ],
)
def test_keys_that_say_which_expert_they_are_for(prefixes, expected):
    module = "blocks.0.attn1.to_q" if prefixes[0].startswith("transformer") else "blocks.0.self_attn.q"
    reading = read_keys([f"{prefix}{module}.lora_A.weight" for prefix in prefixes])
    assert {key.expert for key in reading.keys} == expected


def test_what_is_ignored_has_a_reason():
    keys = ["diffusion_model.blocks.0.self_attn.q.lora_down.weight"]
    image = [
        "diffusion_model.blocks.0.cross_attn.k_img.lora_down.weight",
        "diffusion_model.blocks.0.cross_attn.v_img.diff_b",
        "diffusion_model.blocks.0.cross_attn.norm_k_img.diff",
        "diffusion_model.img_emb.proj.1.lora_up.weight",
    ]
    text = ["lora_te1_layers_0.lora_down.weight", "text_encoder.layers.0.lora_A.weight"]
    vace = ["diffusion_model.vace_blocks.0.self_attn.q.lora_down.weight"]
    unknown = ["diffusion_model.blocks.0.self_attn.q_loras.down.weight", "something"]
    other = ["diffusion_model.blocks.0.self_attn.q.oft_blocks"]
    reading = read_keys([*keys, *image, *text, *vace, *unknown, *other])
    assert len(reading.keys) == 1
    assert reading.ignored == {
        IMAGE_REASON: tuple(image),
        "keys of a text encoder": tuple(text),
        "keys of a VACE model": tuple(vace),
        UNKNOWN_REASON: tuple(unknown),
        "adapters of a kind that is not applied (OFT, BOFT, GLoRA)": tuple(other),
    }


def test_the_image_keys_of_diffusers_are_recognised_too():
    keys = ["transformer.blocks.0.attn1.to_q.lora_A.weight", "transformer.blocks.0.attn2.add_k_proj.lora_A.weight"]
    assert read_keys(keys).ignored == {IMAGE_REASON: (keys[1],)}


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "the Flux or Hunyuan family"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "the Flux or Hunyuan family"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "Stable Diffusion"),
        ("diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight", "Stable Diffusion 3"),
        ("transformer_blocks.0.attn.to_q.lora_A.weight", "another diffusion transformer"),
        ("diffusion_model.layers.0.attention.qkv.lora_A.weight", "another transformer"),
    ],
)
def test_keys_of_other_models_are_recognised(key, model):
    assert read_keys([key]).family is None
    assert other_model([key]).startswith(model)


@given(st.lists(st.text(max_size=40) | st.sampled_from(["blocks.0", "lora_A.", ".alpha", "x." * 400 + "diff"])))
def test_any_names_are_read(names):
    reading = read_keys(names)
    assert len(set(names)) == len(reading.keys) + sum(map(len, reading.ignored.values()))
