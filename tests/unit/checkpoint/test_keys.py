"""Name tables and inventories: complete, invertible, and equal to what independent implementations hold."""

import math
from collections import Counter

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from tests.parity.diffusers_names import to_diffusers
from wan_core.checkpoint.inventory import text_encoder_shapes, transformer_shapes, vae_shapes
from wan_core.checkpoint.keys import (
    TABLES,
    TEXT_ENCODER_OFFICIAL,
    TEXT_ENCODER_TRANSFORMERS,
    TRANSFORMER_OFFICIAL,
    VAE_OFFICIAL,
    NameTable,
    official_names,
    recognise,
)
from wan_core.errors import CheckpointError
from wan_core.specs import T2V_A14B_TRANSFORMER, UMT5_XXL, WAN21_VAE

EXPERT = transformer_shapes(T2V_A14B_TRANSFORMER)
ENCODER = text_encoder_shapes(UMT5_XXL)
VAE = vae_shapes(WAN21_VAE)
INVENTORIES = [
    (TRANSFORMER_OFFICIAL, EXPERT, 1095),
    (TEXT_ENCODER_OFFICIAL, ENCODER, 242),
    (TEXT_ENCODER_TRANSFORMERS, ENCODER, 242),
    (VAE_OFFICIAL, VAE, 194),
]


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


@pytest.mark.parametrize(("table", "inventory", "count"), INVENTORIES)
def test_a_table_covers_the_whole_inventory_both_ways(table: NameTable, inventory: dict, count: int) -> None:
    theirs = {name: table.from_official(name) for name in inventory}
    assert len(inventory) == len(set(theirs.values())) == count and None not in theirs.values()
    assert {name: table.to_official(other) for name, other in theirs.items()} == {name: name for name in inventory}


@pytest.mark.parametrize(("table", "inventory", "count"), INVENTORIES)
def test_a_table_has_no_row_that_no_tensor_uses(table: NameTable, inventory: dict, count: int) -> None:
    used = {".".join("*" if part.isdigit() else part for part in name.split(".")) for name in inventory}
    rows = {".".join("*" if part.isdigit() else part for part in official.split(".")) for official, _ in table.rows}
    assert rows == used


def test_an_expert_equals_the_one_of_diffusers() -> None:
    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=40, attention_head_dim=128, in_channels=16, out_channels=16, text_dim=4096,
            freq_dim=256, ffn_dim=13824, num_layers=40, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        )  # fmt: skip
    assert {to_diffusers(name): shape for name, shape in EXPERT.items()} == shapes_of(model)
    assert sum(map(math.prod, EXPERT.values())) == T2V_A14B_TRANSFORMER.num_parameters


def test_the_text_encoder_equals_the_one_of_transformers() -> None:
    config = UMT5Config(
        vocab_size=256384,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    theirs = shapes_of(model)
    assert {TEXT_ENCODER_TRANSFORMERS.from_official(name): shape for name, shape in ENCODER.items()} == theirs
    assert sum(map(math.prod, ENCODER.values())) == UMT5_XXL.num_parameters


def test_the_vae_has_the_shapes_of_the_one_of_diffusers() -> None:
    # Their names and their order of layers are others; the tensors must be the same ones.
    with torch.device("meta"):
        model = AutoencoderKLWan()
    assert Counter(VAE.values()) == Counter(shapes_of(model).values())


@pytest.mark.parametrize(
    "name",
    ["blocks.0.self_attn.q.weight.extra", "x.blocks.0.modulation", "blocks.x.modulation", "blocks.01.modulation",
     "blocks.\u0661.modulation", "blocks.0.modulation\n", "blocks.99999.modulation", "blocks.0.ffn.1.weight", ""],
)  # fmt: skip
def test_names_that_only_resemble_are_not_in_the_table(name: str) -> None:
    assert all(table.to_official(name) is None and table.from_official(name) is None for table in TABLES)


@pytest.mark.parametrize(
    ("prefix", "inventory", "kind"),
    [
        ("", EXPERT, "transformer"),
        ("model.diffusion_model.", EXPERT, "transformer"),
        ("diffusion_model.", EXPERT, "transformer"),
        ("", ENCODER, "text_encoder"),
        ("", VAE, "vae"),
        ("model.", VAE, "vae"),
        ("vae.", VAE, "vae"),
    ],
)
def test_prefixes(prefix: str, inventory: dict, kind: str) -> None:
    names = [prefix + name for name in inventory]
    (naming,) = recognise(names)
    assert (naming.kind, naming.prefix, naming.num_matches) == (kind, prefix, len(names))
    assert official_names(names, [naming]) == {prefix + name: name for name in inventory}


def test_a_full_checkpoint_holds_two_kinds() -> None:
    names = ["model.diffusion_model." + name for name in EXPERT] + ["first_stage_model." + name for name in VAE]
    namings = recognise(names)
    assert [naming.kind for naming in namings] == ["transformer", "vae"]
    assert set(official_names(names, namings).values()) == {*EXPERT, *VAE}


def test_the_tied_embedding_goes_by_either_name() -> None:
    theirs = [TEXT_ENCODER_TRANSFORMERS.from_official(name) for name in ENCODER]
    both = [*theirs, "encoder.embed_tokens.weight"]
    assert official_names(both, recognise(both))["shared.weight"] == "token_embedding.weight"
    alone = [name for name in both if name != "shared.weight"]
    assert official_names(alone, recognise(alone))["encoder.embed_tokens.weight"] == "token_embedding.weight"


def test_names_no_table_knows_stay_and_two_names_of_one_tensor_are_refused() -> None:
    names = [*VAE, "other.thing"]
    assert official_names(names, recognise(names))["other.thing"] == "other.thing"
    mixed = [*("vae." + name for name in VAE), "conv1.weight"]
    with pytest.raises(CheckpointError, match="two tensors"):
        official_names(mixed, recognise(mixed))
