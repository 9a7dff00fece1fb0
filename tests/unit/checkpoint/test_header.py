"""Safetensors headers: what is read, and that every lie is one sentence."""

import json
import os
import resource
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from tests.unit.checkpoint.refusals import sentence_of
from tests.unit.checkpoint.synthetic import entry, raw_file
from wan_core.checkpoint import header as module
from wan_core.checkpoint.header import read_header
from wan_core.checkpoint.identify import identify
from wan_core.checkpoint.json_text import parse_object
from wan_core.errors import CheckpointError

EIGHT = b"\0" * 8
VALID = save(
    {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.ones(4, dtype=torch.bfloat16),
        "c": torch.ones((), dtype=torch.int8),
    },
    {"format": "pt"},
)


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    sentence = sentence_of(lambda: read_header(path))
    assert path.name in sentence and len(sentence) < 400
    return sentence


def test_what_a_valid_header_says(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(VALID)
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    assert {name: (info.shape, info.dtype, info.nbytes) for name, info in header.tensors.items()} == {
        "a": ((2, 3), "float32", 24),
        "b": ((4,), "bfloat16", 8),
        "c": ((), "int8", 1),
    }
    first = header.tensors["a"]
    data = bytearray(VALID[first.start :][: first.nbytes])
    assert torch.frombuffer(data, dtype=torch.float32).tolist() == list(range(6))


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "0 bytes long"),
        (b"abc", "3 bytes long"),
        (b"\0" * 64, "begins with zeros"),
        (raw_file({"a": entry()}, EIGHT, length=2**63), "claims a header of 9223372036854775808 bytes"),
        (raw_file({"a": entry()}, EIGHT, length=50_000), "truncated"),
        (raw_file(b"{"), "not readable JSON"),
        (raw_file(b"[" * 20_000), "nested too deeply"),
        (raw_file(b"\xff\xfe{}"), "not readable JSON"),
        (raw_file([]), "a JSON list, expected an object"),
        (raw_file(b'{"a": 1, "a": 2}'), "'a' appears twice"),
        (raw_file({"__metadata__": {"x": 1}, "a": entry()}, EIGHT), "expected texts only"),
        (raw_file({"__metadata__": ["x"], "a": entry()}, EIGHT), "expected texts only"),
        (raw_file({"a": 3}, EIGHT), "unknown dtype None"),
        (raw_file({"a": entry(dtype="F7")}, EIGHT), "unknown dtype 'F7'"),
        (raw_file({"a": entry(dtype=["F32"])}, EIGHT), "unknown dtype"),
        (raw_file({"a": entry(shape=[-2])}, EIGHT), "impossible shape"),
        (raw_file({"a": entry(shape=[2.0])}, EIGHT), "impossible shape"),
        (raw_file({"a": entry(shape=[True, 2])}, EIGHT), "impossible shape"),
        (raw_file({"a": entry(shape="22")}, EIGHT), "impossible shape"),
        (raw_file({"a": entry(shape=[10**30])}, EIGHT), "impossible shape"),
        (raw_file({"a": entry(shape=[1] * 1000)}, EIGHT), "impossible shape"),
        (raw_file({"a": entry(shape=[2**62] * 40)}, EIGHT), "cannot fill 8 bytes"),
        (raw_file({"a": entry(shape=[3])}, EIGHT), "cannot fill 8 bytes"),
        (raw_file({"a": entry(offsets=[8, 0])}, EIGHT), "impossible byte range"),
        (raw_file({"a": entry(offsets=[0])}, EIGHT), "impossible byte range"),
        (raw_file({"a": entry(offsets=None)}, EIGHT), "impossible byte range"),
        (raw_file({"a": entry(shape=[2**40], offsets=[0, 2**42])}, EIGHT), "truncated"),
        (raw_file({"a": entry(offsets=[8, 16])}, EIGHT + EIGHT), "does not follow"),
        (raw_file({"a": entry(), "b": entry()}, EIGHT), "overlaps"),
        (raw_file({"a": entry(), "b": entry(offsets=[4, 12])}, EIGHT + b"\0" * 4), "overlaps"),
        (raw_file({"a": entry()}, EIGHT + b"xy"), "2 bytes follow"),
        (raw_file({"a": entry()}, EIGHT[:5]), "truncated"),
        (raw_file({"a": entry(shape=[3], offsets=[0, 1], dtype="F4")}, b"\0"), "cannot fill 1 bytes"),
    ],
)
def test_lies(tmp_path: Path, content: bytes, fragment: str) -> None:
    assert fragment in refused(tmp_path / "model.safetensors", content)


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("model.gguf", b"neither of them, but called so", "is called a GGUF but does not begin like one"),
        ("model.pt", b"neither of them, but called so", "is called a PyTorch file but does not begin like one"),
        ("model.ckpt", b"\x80\x02}q\0(X\0" + EIGHT, "is a PyTorch pickle of the old form"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        ("model.safetensors", b"<!DOCTYPE html><html>" + EIGHT, "is a web page"),
    ],
)
def test_foreign_files_are_named(tmp_path: Path, name: str, content: bytes, fragment: str) -> None:
    assert fragment in refused(tmp_path / name, content)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_header(tmp_path / "absent.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path, tmp_path / "pipe.safetensors", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="not a regular file"):
            read_header(path)


def test_long_names_are_cut_and_control_characters_escaped(tmp_path: Path) -> None:
    header = {"\x1b[31m\n" + "x" * 10_000: entry(shape=[3])}
    sentence = refused(tmp_path / "model.safetensors", raw_file(header, EIGHT))
    assert "\x1b" not in sentence and "x" * 100 not in sentence


def test_a_header_of_millions_of_values_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan_core.checkpoint.json_text.json.loads", lambda *a, **k: pytest.fail("was parsed"))
    with pytest.raises(CheckpointError, match="more than 4000000 values"):
        parse_object(b"[" + b"[]," * 4_000_001, "the header")


def test_every_dtype_of_the_format_has_its_size() -> None:
    sizes = {name: bits for name, bits in module.DTYPES.values()}
    for name in (
        "bool",
        "int8",
        "uint16",
        "float16",
        "bfloat16",
        "float32",
        "float8_e4m3fn",
        "float8_e5m2",
        "complex64",
    ):
        assert sizes[name] == getattr(torch, name).itemsize * 8


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A valid file, damaged in its bytes, in its length or in one value of its header."""
    content = bytearray(VALID)
    kind = draw(st.sampled_from(("bytes", "cut", "length", "header")))
    if kind == "bytes":
        for _ in range(draw(st.integers(1, 6))):
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    elif kind == "cut":
        del content[draw(st.integers(0, len(content))) :]
    elif kind == "length":
        content[:8] = draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
    else:
        length = int.from_bytes(VALID[:8], "little")
        fields = json.loads(VALID[8 : 8 + length])
        values = st.recursive(
            st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=6,
        )
        name = draw(st.sampled_from(sorted(fields)))
        key = draw(st.sampled_from(("dtype", "shape", "data_offsets", None)))
        if key is None or name == "__metadata__":
            fields[name] = draw(values)
        else:
            fields[name][key] = draw(values)
        return raw_file(fields, VALID[8 + length :])
    return bytes(content)


@given(content=mutations())
@settings(max_examples=200)
def test_no_mutation_crashes_or_allocates(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        header = read_header(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        data = len(content) - min(info.start for info in header.tensors.values())
        assert sum(info.nbytes for info in header.tensors.values()) == data
    description = identify(path)
    assert json.loads(description.to_json())["path"] == str(path) and description.to_text()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
