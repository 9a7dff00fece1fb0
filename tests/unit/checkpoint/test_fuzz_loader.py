"""Damaged files through the whole way: described, opened, and loaded into a module; never a crash, a hang or a flood.

Every example starts from a valid file in its real layout and changes what a header says, or its bytes. Whatever comes
of it is a description; and of the loader either a module that is filled, or one sentence and a module as it was.
"""

import json
import resource
import shutil
from pathlib import Path
from time import perf_counter

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.checkpoint import scaled_files as scaled
from tests.unit.checkpoint.gguf_files import write_gguf
from tests.unit.checkpoint.loading import load
from tests.unit.checkpoint.models import draw_transformer
from tests.unit.checkpoint.synthetic import raw_file, write_shards
from wan_core.checkpoint.identify import identify
from wan_core.checkpoint.read import open_checkpoint
from wan_core.checkpoint.transformer import transformer_spec
from wan_core.errors import CheckpointError
from wan_core.models.transformer import WanTransformer
from wan_core.specs import TransformerSpec

SPEC = TransformerSpec(
    dim=128, ffn_dim=32, num_heads=1, num_layers=1, in_dim=16, out_dim=16, text_dim=32, freq_dim=32
)  # fmt: skip
MAX_SECONDS = 2.0
MAX_BYTES = 2**30

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
SIZES = st.integers(0, 70) | st.sampled_from((2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
DTYPES = st.sampled_from(("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "F4", "BOOL", "C64"))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raise AssertionError("nothing runs in these tests")


class Originals(dict[str, bytes]):
    """Valid files, by format; too long to be printed."""

    def __repr__(self) -> str:
        return "originals"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    folder, weights = tmp_path_factory.mktemp("originals"), draw_transformer(0, SPEC)
    path = folder / "model.safetensors"
    files = Originals()
    for name, write in {
        "plain": lambda: scaled.save(path, weights, {"format": "pt"}),
        "scaled": lambda: scaled.comfy_scaled(path, weights),
        "by layer": lambda: scaled.comfy_quant(path, weights, "int8_tensorwise", rows=True, in_metadata=False),
        "in metadata": lambda: scaled.comfy_quant(path, weights, "float8_e4m3fn", rows=False, in_metadata=True),
    }.items():
        write()
        files[name] = path.read_bytes()
    for name, kind in {"gguf": Type.Q8_0, "gguf plain": Type.F16}.items():
        write_gguf(folder / "model.gguf", weights, kind)
        files[name] = (folder / "model.gguf").read_bytes()
    for name, content in files.items():
        path = folder / f"wan_high_noise.{'gguf' if 'gguf' in name else 'safetensors'}"
        path.write_bytes(content)
        assert comes_through(path), f"{name}: an original must load, or its mutations show nothing"
    return files


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated")


# A module that a refused file has left as it was is good for the next one; making one takes half of a test's time.
UNTOUCHED: list[WanTransformer] = []


def _empty_module() -> WanTransformer:
    with torch.device("meta"):
        return WanTransformer(SPEC, attend=attention, cross_attend=attention)


def comes_through(path: Path) -> bool:
    """Describe, open and load what is at a path; returns whether it could be loaded."""
    found = identify(path)
    assert json.loads(found.to_json()) and found.to_text()
    assert all("\n" not in problem for problem in found.problems)
    module = UNTOUCHED.pop() if UNTOUCHED else _empty_module()
    try:
        checkpoint = open_checkpoint(path)
        transformer_spec(checkpoint)
        load(module, checkpoint, lambda name: torch.bfloat16)
    except CheckpointError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        assert all(parameter.is_meta for parameter in module.parameters())
        UNTOUCHED.append(module)
        return False
    assert not any(parameter.is_meta for parameter in module.parameters())
    return True


def survives(path: Path) -> None:
    """What comes of a path comes within the limits."""
    start, before = perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    comes_through(path)
    assert perf_counter() - start < MAX_SECONDS
    # In kilobytes.
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MAX_BYTES


def changed_bytes(draw: st.DrawFn, content: bytes, header: int) -> bytes:
    """A few bytes of the header or one of its numbers replaced, or the file cut short."""
    damaged = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(4, header - 8))
        kind = draw(st.sampled_from(("byte", "byte", "byte", "u32", "u32", "u64", "u64", "cut")))
        if kind == "byte":
            damaged[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del damaged[draw(st.integers(0, len(damaged))) :]
            break
        else:
            width = 4 if kind == "u32" else 8
            damaged[at : at + width] = (draw(SIZES) % 2 ** (8 * width)).to_bytes(width, "little")
    return bytes(damaged)


def changed_header(draw: st.DrawFn, content: bytes) -> bytes:
    """Some entries of a safetensors header with another dtype, shape, range or name, or gone."""
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    for name in draw(st.lists(st.sampled_from(sorted(entries)), min_size=1, max_size=3, unique=True)):
        entry = entries[name]
        change = draw(st.sampled_from(("dtype", "shape", "transposed", "offsets", "gone", "renamed", "any")))
        if change == "gone":
            del entries[name]
        elif change == "renamed":
            entries[draw(st.sampled_from((name + ".scale_weight", name + "_scale", "x." + name, "")))] = entries.pop(
                name
            )
        elif change == "any" or name == "__metadata__":
            entries[name] = draw(VALUES)
        elif change == "dtype":
            entry["dtype"] = draw(DTYPES)
        elif change == "transposed":
            entry["shape"] = entry["shape"][::-1]
        elif change == "shape":
            entry["shape"] = draw(st.lists(SIZES, max_size=4))
        else:
            entry["data_offsets"] = draw(st.lists(SIZES, min_size=2, max_size=2))
    return raw_file(entries, content[8 + length :])


@given(data=st.data(), name=st.sampled_from(("plain", "scaled", "by layer", "in metadata")))
@settings(max_examples=800)
def test_safetensors(originals: Originals, place: Path, data: st.DataObject, name: str) -> None:
    @st.composite
    def mutation(draw: st.DrawFn) -> bytes:
        content = originals[name]
        length = 8 + int.from_bytes(content[:8], "little")
        return changed_header(draw, content) if draw(st.booleans()) else changed_bytes(draw, content, length)

    path = place / "wan_high_noise.safetensors"
    path.write_bytes(data.draw(mutation()))
    survives(path)


@given(data=st.data(), name=st.sampled_from(("gguf", "gguf plain")))
@settings(max_examples=800)
def test_gguf(originals: Originals, place: Path, data: st.DataObject, name: str) -> None:
    @st.composite
    def mutation(draw: st.DrawFn) -> bytes:
        content = originals[name]
        return changed_bytes(draw, content, content.index(b"time_projection.1.weight") + 60)

    path = place / "wan_high_noise.gguf"
    path.write_bytes(data.draw(mutation()))
    survives(path)


NAMES = st.sampled_from(
    (
        "diffusion_pytorch_model-00001-of-00003.safetensors",
        "diffusion_pytorch_model-00002-of-00003.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
        "../model.safetensors", "/etc/passwd", "loop.safetensors", "folder.safetensors", "absent.safetensors", "",
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_shards(tmp_path_factory.mktemp("indexed") / "high_noise_model", draw_transformer(0, SPEC))
    (folder / "config.json").write_text(json.dumps({"num_heads": 1}))
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    (folder / "folder.safetensors").mkdir()
    shutil.copy(folder / "diffusion_pytorch_model-00001-of-00003.safetensors", folder.parent / "model.safetensors")
    return folder


@given(data=st.data())
@settings(max_examples=400)
def test_index(indexed: Path, data: st.DataObject) -> None:
    path = indexed / "diffusion_pytorch_model.safetensors.index.json"
    original = indexed.parent / "original.json"
    if not original.exists():
        original.write_bytes(path.read_bytes())
    index = json.loads(original.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        change = data.draw(st.sampled_from(("place", "gone", "name", "any", "cut")))
        names = sorted(index["weight_map"])
        if not names or change == "any":
            index["weight_map"] = data.draw(VALUES)
            break
        name = data.draw(st.sampled_from(names))
        if change == "gone":
            del index["weight_map"][name]
        elif change == "name":
            index["weight_map"][data.draw(st.text(max_size=8))] = index["weight_map"].pop(name)
        else:
            index["weight_map"][name] = data.draw(NAMES | VALUES)
    text = json.dumps(index)
    path.write_text(text[: data.draw(st.integers(0, len(text)))] if data.draw(st.integers(0, 9)) == 0 else text)
    survives(indexed)
