"""Descriptions of files and folders, broken ones included, and the command that prints them."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.checkpoint.synthetic import (
    CONFIG,
    TEXT_ENCODER,
    TRANSFORMER,
    VAE,
    comfyui_model,
    expert_tensors,
    hugging_face,
    official_model,
    raw_file,
    text_encoder_tensors,
    vae_tensors,
    write,
    write_expert,
    write_shards,
)
from wan_core.checkpoint.header import Header, Stamp, TensorInfo
from wan_core.checkpoint.identify import identify
from wan_core.checkpoint.inventory import transformer_shapes
from wan_core.cli import inspect
from wan_core.specs import T2V_A14B_TRANSFORMER


def test_an_expert(tmp_path: Path) -> None:
    found = identify(write_expert(tmp_path / "wan_high_noise.safetensors"))
    assert (found.kind, found.expert, found.layout, found.naming) == ("transformer", "high", "file", "official names")
    assert (found.spec, found.dtypes, found.num_tensors) == (TRANSFORMER, {"float32": 69}, 69)
    assert found.nbytes == 4 * TRANSFORMER.num_parameters and found.problems == ()


def test_a_sharded_expert(tmp_path: Path) -> None:
    found = identify(write_shards(tmp_path / "low_noise_model", expert_tensors()))
    assert (found.kind, found.expert, found.layout, found.spec) == ("transformer", "low", "sharded", TRANSFORMER)


def test_when_encoded_weights_are_decoded(tmp_path: Path) -> None:
    def encoded(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: each.to(torch.float8_e4m3fn) if each.dim() == 2 else each for name, each in tensors.items()}

    expert = identify(write(tmp_path / "wan_high_noise.safetensors", encoded(expert_tensors()), CONFIG))
    (note,) = (note for note in expert.notes if note.startswith("stores "))
    assert note.endswith("; decoded when they are loaded, or before each product where that saves memory")
    encoder = identify(write(tmp_path / "umt5.safetensors", encoded(hugging_face(text_encoder_tensors()))))
    (note,) = (note for note in encoder.notes if note.startswith("stores "))
    assert note.endswith("; decoded when they are loaded")


def test_a_text_encoder_and_a_vae(tmp_path: Path) -> None:
    encoder = identify(write(tmp_path / "umt5.safetensors", hugging_face(text_encoder_tensors())))
    assert (encoder.kind, encoder.spec, encoder.naming) == ("text_encoder", TEXT_ENCODER, "transformers names")
    assert encoder.dtypes == {"float32": 32, "uint8": 1} and encoder.notes == ("carries its tokenizer",)
    vae = identify(write(tmp_path / "vae.safetensors", {f"vae.{n}": t for n, t in vae_tensors().items()}))
    assert (vae.kind, vae.spec, vae.naming) == ("vae", VAE, "official names, prefix 'vae.'")


def test_the_released_expert_by_its_dimensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def header(path: Path) -> Header:
        tensors = {
            name: TensorInfo(shape=shape, dtype="bfloat16", nbytes=2, file=path, stored_as=name, start=0)
            for name, shape in transformer_shapes(T2V_A14B_TRANSFORMER).items()
        }
        return Header(tensors=tensors, metadata={}, stamp=Stamp(0, 0))

    monkeypatch.setattr("wan_core.checkpoint.read.open_header", header)
    (tmp_path / "wan.safetensors").touch()
    found = identify(tmp_path / "wan.safetensors")
    assert (found.family, found.spec, found.num_tensors) == ("Wan 2.2 T2V-A14B", T2V_A14B_TRANSFORMER, 1095)
    assert "Wan 2.1 T2V-14B has the same names and shapes" in found.notes[0]


@pytest.mark.parametrize(
    ("tensors", "kind", "family"),
    [
        (
            expert_tensors(spec=replace(TRANSFORMER, in_dim=36)),
            "transformer",
            "a Wan 2.2 image-to-video (I2V-A14B) expert",
        ),
        (vae_tensors() | {"decoder.upsamples.0.upsamples.0.residual.2.weight": torch.ones(1)}, "vae", "Wan 2.2 VAE"),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": torch.ones(2)}, "unknown", "a CLIP text encoder"),
    ],
)
def test_what_cannot_be_used_is_still_named(tmp_path: Path, tensors: dict, kind: str, family: str) -> None:
    found = identify(write(tmp_path / "model.safetensors", tensors, CONFIG))
    assert (found.kind, found.family, found.spec, len(found.problems)) == (kind, family, None, 1)


def test_a_lora(tmp_path: Path) -> None:
    tensors = {
        f"diffusion_model.blocks.{i}.self_attn.q.lora_{end}.weight": torch.ones(2, 2)
        for i in (0, 1)
        for end in ("up", "down")
    }
    found = identify(write(tmp_path / "lightning_high_noise.safetensors", tensors))
    assert (found.kind, found.family, found.expert, found.problems) == ("lora", "a LoRA", "high", ())


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("model.safetensors", b"", "0 bytes long"),
        ("model.safetensors", raw_file({"a": {}}), "unknown dtype"),
        ("model.gguf", b"GGUF" + b"\0" * 60, "is a GGUF of version 0, expected version 2 or 3"),
        ("model.pth", b"PK\x03\x04" + b"\xff" * 60, "is no whole PyTorch file"),
    ],
)
def test_broken_and_foreign_files(tmp_path: Path, name: str, content: bytes, fragment: str) -> None:
    (tmp_path / name).write_bytes(content)
    found = identify(tmp_path / name)
    assert found.kind == "unknown" and fragment in found.problems[0]


def test_a_whole_model(tmp_path: Path) -> None:
    for folder in (official_model(tmp_path / "official"), comfyui_model(tmp_path / "comfyui")):
        found = identify(folder)
        assert found.kind == "folder" and found.problems == ()
        assert any(note.startswith("a complete model: ") for note in found.notes)
        assert {"transformer", "text_encoder", "vae"} <= {part.kind for part in found.parts}
        assert [part.expert for part in found.parts if part.kind == "transformer"] == ["high", "low"]
        assert found.nbytes == sum(part.nbytes for part in found.parts) > 0


def test_a_folder_of_files_that_are_no_whole_model(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", vae_tensors())
    (tmp_path / "b.safetensors").write_bytes(b"broken")
    found = identify(tmp_path)
    assert found.kind == "folder" and [part.kind for part in found.parts] == ["vae", "unknown"]
    assert found.problems == () and found.parts[1].problems


def test_an_incomplete_model_says_what_is_missing(tmp_path: Path) -> None:
    folder = official_model(tmp_path / "official")
    (folder / "Wan2.1_VAE.safetensors").unlink()
    (problem,) = identify(folder).problems
    assert "holds no VAE" in problem


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    return inspect.run(parser.parse_args(arguments))


def test_the_command_prints_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    high = write_expert(tmp_path / "wan_high_noise.safetensors")
    assert run(str(high)) == 0
    text = capsys.readouterr().out
    for fragment in (str(high), "expert: high noise", "tensors: 69 (69 float32)", "num_layers 2", "size: 0.0"):
        assert fragment in text
    assert run(str(high), str(tmp_path / "absent")) == 1
    assert "problem: " in capsys.readouterr().out


def test_the_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", str(official_model(tmp_path / "official"))) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["kind"] == "folder" and found["parts"][0]["spec"]["dim"] == TRANSFORMER.dim


def test_names_that_no_terminal_can_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "\udcff.safetensors"
    path.write_bytes(raw_file({"\ud800": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"x"))
    assert run(str(path)) == 1
    assert "\\ud800" in capsys.readouterr().out
    assert run("--json", str(path)) == 1
