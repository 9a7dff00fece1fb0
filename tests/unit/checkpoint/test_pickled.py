"""PyTorch files: tensors found without being read, and everything else in them refused."""

import io
import os
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.checkpoint.refusals import sentence_of
from tests.unit.checkpoint.synthetic import VAE, vae_tensors
from wan_core.checkpoint.identify import identify
from wan_core.checkpoint.read import open_checkpoint
from wan_core.checkpoint.vae import open_vae
from wan_core.errors import CheckpointError


class Trap:
    """What a pickle would run."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("sprung",)


def refusal(path: Path) -> str:
    sentence = sentence_of(lambda: open_checkpoint(path))
    assert path.name in sentence and len(sentence) < 400
    (problem,) = identify(path).problems
    assert problem == sentence
    return sentence


def test_tensors_as_they_were_saved(tmp_path: Path) -> None:
    base = torch.randn(6, 4)
    tensors: dict[str, Tensor] = {
        "float32": base,
        "a part of another": base[2:5],
        "bfloat16": torch.randn(3, 5).bfloat16(),
        "float8": torch.randn(7).to(torch.float8_e4m3fn),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "number": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(4)),
    }
    torch.save(OrderedDict(tensors), tmp_path / "model.pth")
    checkpoint = open_checkpoint(tmp_path / "model.pth")
    assert checkpoint.format == "PyTorch" and checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        loaded = checkpoint.load(name)
        assert loaded.dtype == tensor.dtype and torch.equal(loaded.float(), tensor.float())


def test_a_vae(tmp_path: Path) -> None:
    torch.save(vae_tensors(), tmp_path / "Wan2.1_VAE.pth")
    assert open_vae(tmp_path / "Wan2.1_VAE.pth").spec == VAE


def test_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(2), "trap": Trap()}, tmp_path / "model.pth")
    assert "holds more than tensors ('posix.mkdir'), which would run code of its author" in refusal(Path("model.pth"))
    assert not (tmp_path / "sprung").exists()


def test_what_is_no_table_of_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save([torch.ones(2)], path)
    assert "holds a list, expected a table of tensors" in refusal(path)
    torch.save({"epoch": 3}, path)
    assert "holds no tensors" in refusal(path)
    torch.save({"model": {"a": torch.ones(3)}, "b": torch.zeros(3)}, path)
    assert "holds more than one table of tensors" in refusal(path)
    torch.save({"a": torch.ones(3, 4).t()}, path)
    assert "tensor 'a' of" in refusal(path) and "is not a plain, contiguous one" in refusal(path)
    torch.save({"a": torch.ones(2, 2).to_sparse()}, path)
    assert "is not a plain, contiguous one" in refusal(path)


def rewritten(source: bytes, *, compression: int = zipfile.ZIP_STORED, order: bytes = b"little") -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(source)) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, order if entry.filename.endswith("/byteorder") else old.read(entry))
    return target.getvalue()


def test_files_that_are_damaged_or_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.randn(50, 50), "b": torch.ones(3)}, path)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 100, 5):
        path.write_bytes(whole[:length])
        assert "no whole PyTorch file" in refusal(path)
    path.write_bytes(rewritten(whole, compression=zipfile.ZIP_DEFLATED))
    assert "is a compressed archive" in refusal(path)
    path.write_bytes(rewritten(whole, order=b"big"))
    assert "written by a big-endian machine" in refusal(path)
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert "is a PyTorch pickle of the old form" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no model")
    assert "is damaged, or no PyTorch file of tensors" in refusal(path)


def test_every_damaged_byte_of_the_description_is_told_or_harmless(tmp_path: Path) -> None:
    """Not a byte of the pickle or of the zip's tables can make reading go astray."""
    path = tmp_path / "model.pth"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    torch.save(tensors, path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes((whole[at] ^ 0x55,)) + whole[at + 1 :])
        try:
            checkpoint = open_checkpoint(path)
            for name in checkpoint.tensors:
                checkpoint.load(name)
        except CheckpointError as error:
            assert "\n" not in str(error)
