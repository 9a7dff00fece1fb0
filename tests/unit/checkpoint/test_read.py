"""Opening checkpoints: files, folders and shards; an index that lies; tensors as they were written."""

import json
from pathlib import Path

import pytest
import torch

from tests.unit.checkpoint.refusals import sentence_of
from tests.unit.checkpoint.synthetic import (
    entry,
    expert_tensors,
    hugging_face,
    prefixed,
    raw_file,
    text_encoder_tensors,
    vae_tensors,
    write,
    write_expert,
    write_index,
    write_shards,
)
from wan_core.checkpoint.read import open_checkpoint
from wan_core.errors import CheckpointError


def refusal(path: Path) -> str:
    return sentence_of(lambda: open_checkpoint(path))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_file_goes_by_official_names(tmp_path: Path, prefix: str) -> None:
    tensors = expert_tensors()
    checkpoint = open_checkpoint(write(tmp_path / "expert.safetensors", prefixed(tensors, prefix), {"a": "b"}))
    assert checkpoint.tensors.keys() == tensors.keys()
    assert checkpoint.tensors["head.modulation"].stored_as == f"{prefix}head.modulation"
    assert (checkpoint.layout, checkpoint.metadata, checkpoint.config) == ("file", {"a": "b"}, {})
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    assert all(torch.equal(checkpoint.load(name), tensor) for name, tensor in tensors.items())


def test_a_text_encoder_in_the_names_of_transformers_with_its_tokenizer(tmp_path: Path) -> None:
    tensors = text_encoder_tensors()
    checkpoint = open_checkpoint(write(tmp_path / "umt5.safetensors", hugging_face(tensors, b"vocabulary")))
    assert checkpoint.tensors.keys() == {*tensors, "spiece_model"}
    assert all(torch.equal(checkpoint.load(name), tensor) for name, tensor in tensors.items())
    assert bytes(checkpoint.load("spiece_model").numpy()) == b"vocabulary"


@pytest.mark.parametrize("given", ["folder", "index"])
def test_shards(tmp_path: Path, given: str) -> None:
    tensors = expert_tensors()
    folder = write_shards(tmp_path / "high_noise_model", tensors)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    checkpoint = open_checkpoint(folder if given == "folder" else index)
    assert (checkpoint.path, checkpoint.layout, checkpoint.config["num_heads"]) == (folder, "sharded", 2)
    assert len({info.file for info in checkpoint.tensors.values()}) == 3
    assert all(torch.equal(checkpoint.load(name), tensor) for name, tensor in tensors.items())


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    write(tmp_path / "vae" / "model.safetensors", vae_tensors())
    checkpoint = open_checkpoint(tmp_path / "vae")
    assert (checkpoint.path, checkpoint.layout) == (tmp_path / "vae", "folder")


def test_load_casts_and_refuses_absent_names(tmp_path: Path) -> None:
    tensors = expert_tensors()
    checkpoint = open_checkpoint(write(tmp_path / "expert.safetensors", tensors))
    loaded = checkpoint.load("head.modulation", dtype=torch.bfloat16)
    assert torch.equal(loaded, tensors["head.modulation"].bfloat16())
    with pytest.raises(CheckpointError, match="holds no tensor 'nothing'"):
        checkpoint.load("nothing")


def test_a_loaded_tensor_outlives_its_file(tmp_path: Path) -> None:
    tensors = expert_tensors()
    path = write(tmp_path / "expert.safetensors", tensors)
    loaded = open_checkpoint(path).load("head.modulation")
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(loaded, tensors["head.modulation"])


def test_a_file_that_changed_since_it_was_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "expert.safetensors", expert_tensors())
    checkpoint = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="has changed since it was opened"):
        checkpoint.load("head.modulation")
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load("head.modulation")


def test_a_path_that_does_not_exist_says_how_far_it_exists(tmp_path: Path) -> None:
    assert repr(str(tmp_path)) in refusal(tmp_path / "modles" / "x.safetensors")


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    assert "holds no checkpoint, expected a file ending in .safetensors" in refusal(tmp_path)
    write_expert(tmp_path / "a.safetensors")
    write_expert(tmp_path / "b.safetensors")
    assert "2 .safetensors files and no index (a.safetensors, b.safetensors)" in refusal(tmp_path)
    (tmp_path / "a.safetensors.index.json").write_text("{}")
    (tmp_path / "b.safetensors.index.json").write_text("{}")
    assert "several indexes" in refusal(tmp_path)


def test_a_file_without_tensors(tmp_path: Path) -> None:
    assert "holds no tensors" in refusal(write(tmp_path / "empty.safetensors", {}))


@pytest.mark.parametrize(
    "place",
    ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..\\model.safetensors", "C:\\model.safetensors",
     "C:model.safetensors", "..", "", ".", "model.safetensors\0"],
)  # fmt: skip
def test_an_index_names_files_beside_it_only(tmp_path: Path, place: str) -> None:
    write_expert(tmp_path / "model.safetensors")
    write_expert(tmp_path / "folder" / "sub" / "model.safetensors")
    write_index(tmp_path / "folder", {"head.modulation": place})
    assert "expected files beside the index and nowhere else" in refusal(tmp_path / "folder")


@pytest.mark.parametrize(
    ("weight_map", "fragment"),
    [
        (None, "has no weight_map"),
        ({}, "has no weight_map"),
        (["a"], "has no weight_map"),
        ({"a": 1}, "expected a file name for each tensor"),
        ({"a": None, "b": "x.safetensors"}, "expected a file name for each tensor"),
        ({"a": "x.safetensors", "b": "y.safetensors"}, "2 files, of which 2 are absent: 'x.safetensors', 'y.safe"),
    ],
)
def test_a_damaged_index(tmp_path: Path, weight_map: object, fragment: str) -> None:
    write_index(tmp_path, weight_map)
    assert fragment in refusal(tmp_path)


def test_an_index_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": ')
    assert "not readable JSON" in refusal(tmp_path)


def test_an_absent_shard(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "expert", expert_tensors())
    (folder / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    assert "3 files, of which 1 is absent: 'diffusion_pytorch_model-00002-of-00003" in refusal(folder)


@pytest.mark.parametrize("change", ["added", "removed", "moved"])
def test_an_index_that_disagrees_with_its_shards(tmp_path: Path, change: str) -> None:
    folder = write_shards(tmp_path / "expert", expert_tensors())
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    first, last = min(weight_map), max(weight_map)
    if change == "added":
        weight_map["blocks.7.modulation"] = weight_map[first]
    elif change == "removed":
        del weight_map[first]
    else:
        weight_map[first] = weight_map[last]
    write_index(folder, weight_map)
    expected = "lacks 1 tensor that its index" if change == "added" else "holds 1 tensor that its index does not place"
    assert expected in refusal(folder)


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "expert", expert_tensors())
    shard = folder / "diffusion_pytorch_model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "'expert/diffusion_pytorch_model-00002-of-00003.safetensors' is truncated" in refusal(folder)


def test_numbers_that_share_a_byte_are_not_read_by_themselves(tmp_path: Path) -> None:
    for dtype, nbytes in (("F4", 4), ("F6_E2M3", 6)):
        path = tmp_path / f"{dtype}.safetensors"
        path.write_bytes(raw_file({"a": entry((8,), (0, nbytes), dtype)}, b"\0" * nbytes))
        with pytest.raises(CheckpointError, match="is packed float"):
            open_checkpoint(path).load("a")
