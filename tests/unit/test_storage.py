"""Layers that keep the codes of their file: the same numbers, to the last bit, as those decoded while loading."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.checkpoint.models import TRANSFORMER, draw_transformer, velocity
from tests.unit.checkpoint.test_formats import FORMATS
from wan_core.attention.backends import BACKENDS
from wan_core.build import typed
from wan_core.checkpoint.codes import Coding, as_stored
from wan_core.checkpoint.experts import ExpertPair
from wan_core.checkpoint.load import ParameterSource
from wan_core.checkpoint.read import Checkpoint, open_checkpoint
from wan_core.linear.stored import StoredLinear
from wan_core.models.transformer import WanTransformer, wants_float32
from wan_core.offload.weights import Weights
from wan_core.storage import StoredLayers, keep_as_stored, storable

ENCODED = [name for name in FORMATS if any(word in name for word in ("fp8", "e4m3", "e5m2", "int8", "gguf Q"))]


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return draw_transformer()


def opened(folder: Path, weights: dict[str, Tensor], name: str) -> Checkpoint:
    path, _ = FORMATS[name][0](folder, weights)
    return open_checkpoint(path)


def pair_of(high: Checkpoint, low: Checkpoint | None = None) -> ExpertPair:
    return ExpertPair(high=high, low=low or high, spec=TRANSFORMER)


def module(checkpoint: Checkpoint, dtype: torch.dtype, layers: Mapping[str, Coding]) -> Weights:
    """An expert on the CPU, some of its layers as they are stored."""
    attend = next(backend for backend in BACKENDS if backend.name == "sdpa").load()
    with torch.device("meta"):
        transformer = WanTransformer(TRANSFORMER, attend=attend, cross_attend=attend)
    typed(transformer, lambda name: torch.float32 if wants_float32(name) else dtype)
    keep_as_stored(transformer, layers, dtype)
    fill = ParameterSource(transformer, as_stored(checkpoint, layers), "cpu").fill
    weights = Weights(transformer, fill, device="cpu", dtype=dtype)
    weights.to_device()
    return weights


def block_bytes(weights: Weights) -> int:
    return sum(unit.nbytes for unit in weights.units if unit.block is not None)


# In bfloat16 all of them; what has no scales is not computed in float32 in between.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.bfloat16) for name in ENCODED),
        *((name, torch.float16) for name in ("plain e4m3", "plain e5m2", "comfy_quant int8 by row")),
        *((name, torch.float32) for name in ("plain e4m3", "comfy fp8_scaled e4m3")),
    ],
)
def test_what_is_decoded_late_is_what_is_decoded_early(tmp_path, weights, name, dtype):
    checkpoint = opened(tmp_path, weights, name)
    layers = dict(storable(pair_of(checkpoint)).codings)
    assert len(layers) == 20, "all linear layers of two blocks"
    late, early = module(checkpoint, dtype, layers), module(checkpoint, dtype, {})
    for layer in layers:
        stored = late.module.get_submodule(layer)
        assert isinstance(stored, StoredLinear)
        assert torch.equal(stored.weight, early.module.get_submodule(layer).weight), layer
    assert torch.equal(velocity(late.module), velocity(early.module))
    assert late.bytes_on_device == late.nbytes and block_bytes(late) < 0.6 * block_bytes(early)


def test_a_large_layer_is_decoded_in_pieces(tmp_path, weights, monkeypatch):
    """Pieces that no number of rows divides, of three kinds of blocks."""
    checkpoint = opened(tmp_path, weights, "gguf Q4_K_M")
    layers = dict(storable(pair_of(checkpoint)).codings)
    late = module(checkpoint, torch.bfloat16, layers).module
    whole = [late.get_submodule(layer).weight for layer in layers]
    monkeypatch.setattr("wan_core.kernels.decode._PIECE_NUMBERS", 7 * 256 + 1)
    assert all(torch.equal(late.get_submodule(layer).weight, each) for layer, each in zip(layers, whole, strict=True))


def test_a_compiler_decodes_to_the_same_bits(tmp_path, weights):
    checkpoint = opened(tmp_path, weights, "comfy fp8_scaled e4m3")
    layers = dict(storable(pair_of(checkpoint)).codings)
    stored = module(checkpoint, torch.float32, layers).module.blocks[0].ffn[0]
    assert isinstance(stored, StoredLinear)
    x = torch.randn(1, 6, stored.in_features, generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    assert torch.equal(torch.compile(stored, fullgraph=True)(x), stored(x))
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16", "gguf F16", "official shards"])
def test_plain_numbers_are_not_stored_otherwise(tmp_path, weights, name):
    assert not storable(pair_of(opened(tmp_path, weights, name)))


def test_what_the_files_store_in_two_ways_is_decoded(tmp_path, weights):
    fp8, int8 = (
        opened(tmp_path / name, weights, name) for name in ("comfy fp8_scaled e4m3", "comfy_quant int8 by row")
    )
    stored = storable(pair_of(fp8, int8))
    assert not stored and stored.left == ("20 layers stored in another way by the other expert's file",)
    assert len(storable(pair_of(fp8)).codings) == 20


def test_blocks_of_two_kinds_are_told(tmp_path, weights):
    stored = storable(pair_of(opened(tmp_path, weights, "gguf Q4_K_M")))
    assert str(stored) == (
        "Q4_K in 14 of 26 linear layers and Q6_K in 4 of 26 linear layers and Q5_K in 2 of 26 linear layers"
    )
    (layout,) = stored.layouts
    assert layout["self_attn.v"] == Coding(dtype="Q6_K") and layout["ffn.2"] == Coding(dtype="Q5_K")
    odd = stored.without({"blocks.1.ffn.2"}, "changed by a merged LoRA")
    assert odd.left == ("1 layer changed by a merged LoRA",) and len(odd.layouts) == 2
    assert odd.without({"no such layer"}, "") is odd
    assert isinstance(odd, StoredLayers)
