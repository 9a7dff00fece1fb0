"""GGUF headers: what is read, and that every lie is one sentence."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from tests.unit.checkpoint.gguf_files import write_gguf
from tests.unit.checkpoint.models import draw_transformer
from tests.unit.checkpoint.refusals import sentence_of
from wan_core.checkpoint.gguf_header import read_fields, read_gguf
from wan_core.checkpoint.read import open_checkpoint
from wan_core.checkpoint.transformer import transformer_spec
from wan_core.errors import CheckpointError

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return U64.pack(len(raw)) + raw


def tensor(name: str = "a", sizes: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + U32.pack(len(sizes)) + b"".join(map(U64.pack, sizes)) + U32.pack(kind) + U64.pack(offset)


def number(name: str, value: int) -> bytes:
    return text(name) + U32.pack(4) + U32.pack(value)


def raw_gguf(
    tensors: tuple[bytes, ...] = (),
    fields: tuple[bytes, ...] = (),
    data: int = 128,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """The bytes of a GGUF with any header, whatever it claims."""
    num_tensors, num_fields = counts or (len(tensors), len(fields))
    head = b"GGUF" + U32.pack(3) + U64.pack(num_tensors) + U64.pack(num_fields) + b"".join((*fields, *tensors))
    return head + b"\0" * (-len(head) % 32) + b"\0" * data


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    sentence = sentence_of(lambda: read_gguf(path))
    assert path.name in sentence and len(sentence) < 400
    return sentence


def test_what_the_package_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "wan")
    writer.add_name("a model")
    writer.add_uint32("a.number", 7)
    writer.add_array("words", ["one", "two"])
    writer.add_array("numbers", [1.5, 2.5])
    writer.add_tensor("a", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("b", gguf.quantize(np.ones((4, 64), np.float32), Type.Q8_0), raw_dtype=Type.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_gguf(path)
    assert header.format == "GGUF"
    assert header.metadata == {"general.architecture": "wan", "general.name": "a model"}
    assert {name: (info.shape, info.dtype, info.nbytes) for name, info in header.tensors.items()} == {
        "a": ((2, 3), "float32", 24),
        "b": ((4, 64), "Q8_0", 4 * 68),
    }
    assert open_checkpoint(path).load("a").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert read_fields(path, ["words", "numbers", "a.number", "absent"]) == {
        "words": ["one", "two"],
        "numbers": [1.5, 2.5],
        "a.number": 7,
    }


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"GGUF", "truncated: its header does not end within its 4 bytes"),
        (b"GGUF" + U32.pack(1) + b"\0" * 64, "of version 1, expected version 2 or 3"),
        (b"GGUF" + struct.pack(">I", 3) + b"\0" * 64, "of a big-endian machine"),
        (raw_gguf((tensor(),))[:-100], "truncated: its header describes"),
        (raw_gguf((tensor(),))[:40], "truncated: its header does not end"),
        (raw_gguf(counts=(2**63, 0)), "announces 9223372036854775808 entries"),
        (raw_gguf(counts=(0, 2**40)), "announces 1099511627776 entries"),
        (raw_gguf((tensor(kind=99),)), "tensor 'a' of 'test_lies_"),
        (raw_gguf((tensor(kind=99),)), "is of the unknown GGUF type 99, expected one such as Q4_K"),
        (raw_gguf((tensor(sizes=(33,), kind=8),)), "does not divide into Q8_0 blocks of 32"),
        (raw_gguf((tensor(sizes=(), kind=12),)), "does not divide into Q4_K blocks"),
        (raw_gguf((tensor(sizes=(2**62, 2**62)),)), "truncated: its header describes"),
        (raw_gguf((tensor(sizes=(1,) * 9),)), "has 9 dimensions, expected at most 8"),
        (raw_gguf((tensor(offset=2**63),)), "truncated"),
        (raw_gguf((tensor(), tensor("b", (8,), offset=64))), "tensor 'b' overlaps the one before it"),
        (raw_gguf((tensor(), tensor())), "holds 'a' twice"),
        (raw_gguf((tensor(b"\xff\xfe"),)), "is not UTF-8"),
        (raw_gguf((tensor(),), (number("x", 1), number("x", 2))), "field 'x' appears twice"),
        (raw_gguf((tensor(),), (text("x") + U32.pack(77),)), "of the unknown type 77"),
        (raw_gguf((tensor(),), (text("x") + U32.pack(9) + U32.pack(9) + U64.pack(1),)), "list of its header is of"),
        (raw_gguf((tensor(),), (text("x") + U32.pack(9) + U32.pack(8) + U64.pack(2**40),)), "announces 1099511627776"),
        (raw_gguf((tensor(),), (text("x") + U32.pack(9) + U32.pack(0) + U64.pack(2**40),)), "truncated"),
        (raw_gguf((tensor(),), (text("x") + U32.pack(8) + U64.pack(2**62),)), "a text of its header is 46116860"),
        (raw_gguf((tensor(),), (number("general.alignment", 0),)), "general.alignment is 0"),
        (raw_gguf((tensor(),), (text("general.alignment") + U32.pack(8) + text("x"),)), "general.alignment is 'x'"),
        (raw_gguf((tensor(),), (number("split.count", 3),)), "is one of 3 parts of a GGUF; join them"),
    ],
)  # fmt: skip
def test_lies(tmp_path: Path, content: bytes, fragment: str) -> None:
    assert fragment in refused(tmp_path / "model.gguf", content)


@pytest.mark.parametrize("shape", [(2, 17), (2**40, 2**40), ()])
def test_a_shape_that_the_tensor_cannot_have_had(tmp_path: Path, shape: tuple[int, ...]) -> None:
    field = text("comfy.gguf.orig_shape.a") + U32.pack(9) + U32.pack(10) + U64.pack(len(shape))
    content = raw_gguf((tensor(),), (field + b"".join(map(U64.pack, shape)),))
    assert "of shape (32,) cannot have had the shape" in refused(tmp_path / "model.gguf", content)


def test_an_expert_that_is_incomplete_or_of_another_model(tmp_path: Path) -> None:
    weights = draw_transformer()
    del weights["blocks.1.ffn.2.weight"]
    write_gguf(tmp_path / "high.gguf", weights, Type.Q8_0)
    with pytest.raises(CheckpointError, match=r"lacks 1 of the 69 tensors .*'blocks.1.ffn.2.weight'"):
        transformer_spec(open_checkpoint(tmp_path / "high.gguf"))
    write_gguf(tmp_path / "llama.gguf", {"blk.0.attn_q.weight": torch.ones(2, 32)}, Type.F32, arch="llama")
    with pytest.raises(CheckpointError, match=r"an unknown model \(its first tensor is 'blk.0.attn_q.weight'\)"):
        transformer_spec(open_checkpoint(tmp_path / "llama.gguf"))
