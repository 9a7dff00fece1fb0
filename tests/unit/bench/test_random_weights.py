"""Weights by name: the same numbers in every dtype and module, of a size that computes like a model."""

import pytest
import torch
from torch import nn

from tests.unit.checkpoint.loading import load
from wan_core.bench import random_weights
from wan_core.bench.random_weights import fill, fill_module, moments, random_checkpoint
from wan_core.checkpoint.inventory import text_encoder_shapes, transformer_shapes, vae_shapes
from wan_core.errors import CheckpointError
from wan_core.specs import T2V_A14B_TRANSFORMER, UMT5_XXL, WAN21_VAE


def drawn(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    target = torch.empty(shape, dtype=dtype)
    fill(name, target)
    return target


def test_a_name_has_its_numbers_in_every_dtype():
    first = drawn("blocks.0.ffn.0.weight", 64, 32)
    assert torch.equal(first, drawn("blocks.0.ffn.0.weight", 64, 32))
    assert torch.equal(first, drawn("blocks.0.ffn.0.weight", 64, 32, dtype=torch.bfloat16).float())
    assert not torch.equal(first, drawn("blocks.1.ffn.0.weight", 64, 32))


def test_large_tensors_are_drawn_in_pieces(monkeypatch):
    monkeypatch.setattr(random_weights, "_PIECE", 100)
    values = drawn("blocks.0.ffn.0.weight", 64, 32)
    assert values.std() == pytest.approx(32**-0.5, rel=0.05)
    assert not torch.equal(values.view(-1)[:100], values.view(-1)[100:200])


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blocks.0.self_attn.q.weight", (5120, 5120), (0.0, 5120**-0.5)),
        ("blocks.0.self_attn.q.bias", (5120,), (0.0, 0.05)),
        ("blocks.0.self_attn.norm_q.weight", (5120,), (1.0, 0.1)),
        ("blocks.0.norm3.weight", (5120,), (1.0, 0.1)),
        ("blocks.0.norm3.bias", (5120,), (0.0, 0.05)),
        ("blocks.0.modulation", (1, 6, 5120), (0.0, 0.3)),
        ("patch_embedding.weight", (5120, 16, 1, 2, 2), (0.0, 64**-0.5)),
        ("token_embedding.weight", (1000, 4096), (0.0, 1.0)),
        ("blocks.0.pos_embedding.embedding.weight", (32, 64), (0.0, 1.0)),
        ("blocks.0.attn.q.weight", (4096, 4096), (0.0, 0.25 * 4096**-0.5)),
        ("decoder.middle.0.residual.0.gamma", (384, 1, 1, 1), (1.0, 0.1)),
        ("decoder.conv1.weight", (384, 16, 3, 3, 3), (0.0, 432**-0.5)),
    ],
)
def test_moments(name, shape, expected):
    assert moments(name, shape) == pytest.approx(expected)


def test_no_tensor_of_the_real_models_is_out_of_scale():
    shapes = {
        **transformer_shapes(T2V_A14B_TRANSFORMER), **text_encoder_shapes(UMT5_XXL), **vae_shapes(WAN21_VAE),
    }  # fmt: skip
    assert [name for name, shape in shapes.items() if not 0.002 < moments(name, shape)[1] <= 1.0] == []


def test_somebodys_module_under_other_names_holds_the_same_numbers():
    theirs = nn.ModuleDict({"to_q": nn.Linear(16, 16)}).to(torch.bfloat16)
    fill_module(theirs, {"to_q.weight": "q.weight", "to_q.bias": "q.bias"}.get)
    assert torch.equal(theirs["to_q"].weight.float(), drawn("q.weight", 16, 16))
    assert not theirs["to_q"].weight.requires_grad
    assert not theirs.training


def test_a_name_that_nobody_knows_is_a_defect():
    with pytest.raises(AssertionError, match="no official name for weight"):
        fill_module(nn.Linear(2, 2), {}.get)


def test_a_checkpoint_without_a_file_is_loaded_like_one():
    with torch.device("meta"):
        module = nn.ModuleDict({"q": nn.Linear(16, 8)})
    checkpoint = random_checkpoint({"q.weight": (8, 16), "q.bias": (8,)})
    seen = []
    load(module, checkpoint, lambda name: torch.bfloat16, on_progress=lambda done, total: seen.append((done, total)))
    assert torch.equal(module["q"].weight.float(), drawn("q.weight", 8, 16))
    assert seen == [(256, 272), (272, 272)]


def test_a_checkpoint_of_another_shape_is_refused_as_a_file_would_be():
    with torch.device("meta"):
        module = nn.ModuleDict({"q": nn.Linear(16, 8)})
    with pytest.raises(CheckpointError, match=r"'random weights' holds 1 tensor of another shape"):
        load(module, random_checkpoint({"q.weight": (8, 9), "q.bias": (8,)}), lambda name: torch.float32)
