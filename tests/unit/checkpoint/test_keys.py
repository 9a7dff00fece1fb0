"""Name tables and inventories: complete, invertible, and equal to what independent implementations hold."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from gguf import GGMLQuantizationType as Type
from transformers import UMT5Config, UMT5EncoderModel

from miniature.write import hugging_face_name
from tests.parity.diffusers_names import to_diffusers
from tests.parity.diffusers_vae_names import to_diffusers as vae_to_diffusers
from tests.unit.checkpoint.gguf_files import text_encoder_name, write_gguf
from wan_core.checkpoint.inventory import text_encoder_shapes, transformer_shapes, vae_shapes
from wan_core.checkpoint.keys import (
    TABLES,
    TEXT_ENCODER_GGUF,
    TEXT_ENCODER_OFFICIAL,
    TEXT_ENCODER_TRANSFORMERS,
    TRANSFORMER_DIFFUSERS,
    TRANSFORMER_OFFICIAL,
    VAE_DIFFUSERS,
    VAE_OFFICIAL,
    NameTable,
    official_names,
    recognise,
)
from wan_core.checkpoint.read import open_checkpoint
from wan_core.errors import CheckpointError
from wan_core.specs import T2V_A14B_TRANSFORMER, UMT5_XXL, WAN21_VAE

EXPERT = transformer_shapes(T2V_A14B_TRANSFORMER)
ENCODER = text_encoder_shapes(UMT5_XXL)
VAE = vae_shapes(WAN21_VAE)
INVENTORIES = [
    (TRANSFORMER_OFFICIAL, EXPERT, 1095),
    (TRANSFORMER_DIFFUSERS, EXPERT, 1095),
    (TEXT_ENCODER_OFFICIAL, ENCODER, 242),
    (TEXT_ENCODER_TRANSFORMERS, ENCODER, 242),
    (TEXT_ENCODER_GGUF, ENCODER, 242),
    (VAE_OFFICIAL, VAE, 194),
    (VAE_DIFFUSERS, VAE, 194),
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


def test_the_vae_equals_the_one_of_diffusers() -> None:
    with torch.device("meta"):
        model = AutoencoderKLWan()
    assert {VAE_DIFFUSERS.from_official(name): shape for name, shape in VAE.items()} == shapes_of(model)


@pytest.mark.parametrize(
    ("table", "inventory", "independent"),
    [
        (TRANSFORMER_DIFFUSERS, EXPERT, to_diffusers),
        (VAE_DIFFUSERS, VAE, vae_to_diffusers),
        (TEXT_ENCODER_TRANSFORMERS, ENCODER, hugging_face_name),
        (TEXT_ENCODER_GGUF, ENCODER, lambda name: text_encoder_name(hugging_face_name(name))),
    ],
)
def test_a_table_agrees_with_an_independent_one(
    table: NameTable, inventory: dict, independent: Callable[[str], str]
) -> None:
    """Key by key and both ways: names and shapes alone would not tell q from k."""
    for name in inventory:
        assert table.from_official(name) == independent(name)
        assert table.to_official(independent(name)) == name


def test_a_gguf_of_the_released_expert_has_official_names(tmp_path: Path) -> None:
    """1095 names through the package's own writer and back."""
    path = tmp_path / "expert.gguf"
    write_gguf(path, {name: torch.zeros(1) for name in EXPERT}, Type.F32)
    checkpoint = open_checkpoint(path)
    assert len(EXPERT) == 1095 and checkpoint.tensors.keys() == EXPERT.keys()
    assert all(info.stored_as == name for name, info in checkpoint.tensors.items())
    (naming,) = checkpoint.namings
    assert (naming.table, naming.num_matches) == (TRANSFORMER_OFFICIAL, 1095)


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


def test_the_norms_of_diffusers_are_numbered_otherwise() -> None:
    """The one with weights is their second and our third; no table may take it for a norm that has none."""
    assert TRANSFORMER_DIFFUSERS.to_official("blocks.7.norm2.weight") == "blocks.7.norm3.weight"
    assert TRANSFORMER_DIFFUSERS.to_official("blocks.7.norm3.weight") is None
    assert TRANSFORMER_OFFICIAL.to_official("blocks.7.norm2.weight") is None


def test_names_that_two_kinds_share_count_for_one() -> None:
    # `blocks.0.norm2.weight` is a text encoder's official name and diffusers' of a transformer.
    (naming,) = recognise(list(ENCODER))
    assert naming.kind == "text_encoder"
