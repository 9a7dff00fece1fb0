"""Files that are well formed and make no sense, and indexes that name anything: described, never a crash."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from tests.unit.checkpoint.synthetic import TEXT_ENCODER, TRANSFORMER, VAE, raw_file
from wan_core.checkpoint.experts import open_experts
from wan_core.checkpoint.identify import identify
from wan_core.checkpoint.inventory import text_encoder_shapes, transformer_shapes, vae_shapes
from wan_core.checkpoint.text_encoder import open_text_encoder
from wan_core.checkpoint.vae import open_vae
from wan_core.errors import CheckpointError

INVENTORIES = tuple(
    dict(shapes) for shapes in (transformer_shapes(TRANSFORMER), text_encoder_shapes(TEXT_ENCODER), vae_shapes(VAE))
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
SHAPES = st.lists(st.integers(0, 4), max_size=6).map(tuple)


@st.composite
def misfits(draw: st.DrawFn) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Most names of a model, some of their shapes and some names changed, and any metadata."""
    shapes = dict(draw(st.sampled_from(INVENTORIES)))
    for name in draw(st.lists(st.sampled_from(sorted(shapes)), max_size=6)):
        shape = shapes.pop(name, None)
        change = draw(st.sampled_from(("gone", "shape", "renamed")))
        if change == "shape":
            shapes[name] = draw(SHAPES)
        elif change == "renamed" and shape is not None:
            shapes[draw(st.text(max_size=8)) + name.replace("0", str(draw(st.integers(0, 10**6))))] = shape
    prefix = draw(st.sampled_from(("", "model.diffusion_model.", "model.", "vae.")))
    config = {"transformer": draw(st.fixed_dictionaries({"num_heads": VALUES}) | VALUES)}
    keys = st.sampled_from(("config", "wan_velocity.expert", "_quantization_metadata", "x"))
    metadata = draw(st.dictionaries(keys, st.text(max_size=5) | st.just(json.dumps(config)), max_size=3))
    return {prefix + name: shape for name, shape in shapes.items()}, metadata


@given(misfit=misfits())
@settings(max_examples=100)
def test_no_well_formed_file_crashes(tmp_path_factory: pytest.TempPathFactory, misfit: tuple) -> None:
    shapes, metadata = misfit
    path = tmp_path_factory.getbasetemp() / "misfit.safetensors"
    path.write_bytes(save({name: np.zeros(shape, np.int8) for name, shape in shapes.items()}, metadata))
    described(path)
    for open_file in (
        open_vae,
        open_text_encoder,
        lambda path: open_experts(path, path.with_name("other.safetensors")),
    ):
        with pytest.raises(CheckpointError) as caught:
            open_file(path)
        assert "\n" not in str(caught.value)


@given(misfit=misfits(), dtype=st.sampled_from((np.float32, np.float16)))
@settings(max_examples=100)
def test_no_well_formed_file_of_floats_crashes(
    tmp_path_factory: pytest.TempPathFactory, misfit: tuple, dtype: type
) -> None:
    shapes, metadata = misfit
    path = tmp_path_factory.getbasetemp() / "misfit.safetensors"
    path.write_bytes(save({name: np.zeros(shape, dtype) for name, shape in shapes.items()}, metadata))
    described(path)


@given(weight_map=st.dictionaries(st.text(max_size=4), st.text(max_size=12) | VALUES, max_size=4) | VALUES)
@settings(max_examples=100)
def test_no_index_crashes_or_leaves_its_folder(tmp_path_factory: pytest.TempPathFactory, weight_map: object) -> None:
    folder = tmp_path_factory.getbasetemp() / "indexed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(raw_file({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"x"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    described(folder)


def described(path: Path) -> None:
    found = identify(path)
    assert json.loads(found.to_json()) and found.to_text()
    assert all("\n" not in problem for problem in found.problems)
