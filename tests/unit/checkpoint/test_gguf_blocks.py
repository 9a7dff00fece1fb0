"""Blocks of GGUF against the package `gguf`: the same bytes, the same numbers, bit by bit."""

import sys

import gguf
import numpy as np
import pytest
import torch

from tests.unit.checkpoint.gguf_files import quantise
from wan_core.checkpoint import gguf_blocks
from wan_core.checkpoint.gguf_blocks import BLOCK_FORMATS, decode_by_package, why_not
from wan_core.checkpoint.gguf_header import _PLAIN_TYPES, _TYPES
from wan_core.errors import CheckpointError
from wan_core.kernels.decode import KNOWN_BLOCKS, decode

OURS = list(KNOWN_BLOCKS)


def test_types_and_sizes_are_those_of_the_package() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    for number, name in _TYPES.items():
        form = BLOCK_FORMATS[name]
        assert theirs[number] == (name, form.size, form.nbytes)
    assert set(_TYPES.values()) == BLOCK_FORMATS.keys()
    for number, (_, nbytes) in _PLAIN_TYPES.items():
        assert theirs[number][1:] == (1, nbytes)
    # Of intermediate results: no file holds them.
    assert {theirs[number][0] for number in theirs.keys() - {*_TYPES, *_PLAIN_TYPES}} == {"Q8_1", "Q8_K"}


@pytest.mark.parametrize("name", OURS)
def test_any_bytes_decode_as_the_package_decodes_them(name: str) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (400, BLOCK_FORMATS[name].nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        theirs = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name])
    ours = torch.empty(400, BLOCK_FORMATS[name].size)
    decode(ours, torch.from_numpy(blocks), None, name)
    # Random bytes make infinite scales too; not even their nan differ.
    assert np.array_equal(ours.numpy(), theirs, equal_nan=True)
    assert np.isfinite(theirs).mean() > 0.8


def test_what_is_not_decoded_here_is_left_to_the_package() -> None:
    for name in BLOCK_FORMATS.keys() - {*OURS, "Q1_0"}:
        # One byte pattern that is finite in every format.
        blocks = np.full((3, BLOCK_FORMATS[name].nbytes), 17, dtype=np.uint8)
        theirs = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name])
        ours = decode_by_package(torch.from_numpy(blocks), name)
        assert np.array_equal(ours.numpy(), theirs, equal_nan=True)
    with pytest.raises(CheckpointError, match="Q1_0 blocks are unknown to this version of the package gguf"):
        decode_by_package(torch.zeros(1, 18, dtype=torch.uint8), "Q1_0")


def test_without_the_package_the_common_formats_still_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(gguf_blocks.importlib.util, "find_spec", lambda name: None)
    assert [name for name in BLOCK_FORMATS if why_not(name) is None] == OURS
    reason = why_not("IQ4_XS")
    assert reason == "holds IQ4_XS blocks, which need the package gguf: install it with `pip install gguf`"
    with pytest.raises(CheckpointError, match="Q3_K blocks need the package gguf, which this Python cannot import"):
        decode_by_package(torch.zeros(1, 110, dtype=torch.uint8), "Q3_K")


@pytest.mark.parametrize(("name", "largest"), [("Q4_K", 0.1), ("Q5_K", 0.05), ("Q6_K", 0.025)])
def test_the_packing_of_these_tests_is_near_what_it_packs(name: str, largest: float) -> None:
    values = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[name]
    error = gguf.dequantize(quantise(values, kind), kind) - values
    assert np.linalg.norm(error) < largest * np.linalg.norm(values)
