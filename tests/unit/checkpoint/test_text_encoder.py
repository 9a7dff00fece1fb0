"""UMT5 encoders: dimensions, vocabularies, and what is refused in their place."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.checkpoint.refusals import sentence_of
from tests.unit.checkpoint.synthetic import (
    TEXT_ENCODER,
    expert_tensors,
    hugging_face,
    text_encoder_tensors,
    write,
)
from wan_core.checkpoint.read import open_checkpoint
from wan_core.checkpoint.text_encoder import open_text_encoder, text_encoder_spec
from wan_core.errors import CheckpointError


def refusal(path: Path, tensors: dict[str, Tensor]) -> str:
    return sentence_of(lambda: text_encoder_spec(open_checkpoint(write(path / "model.safetensors", tensors))))


@pytest.mark.parametrize("naming", ["official", "transformers"])
def test_dimensions_come_from_the_tensors(tmp_path: Path, naming: str) -> None:
    tensors = text_encoder_tensors()
    path = write(tmp_path / "umt5.safetensors", hugging_face(tensors) if naming == "transformers" else tensors)
    assert text_encoder_spec(open_checkpoint(path)) == TEXT_ENCODER


def test_a_second_copy_of_the_embedding_is_no_stranger(tmp_path: Path) -> None:
    tensors = hugging_face(text_encoder_tensors())
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    assert text_encoder_spec(open_checkpoint(write(tmp_path / "umt5.safetensors", tensors))) == TEXT_ENCODER


def plain_t5() -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in hugging_face(text_encoder_tensors()).items()
        if "relative_attention_bias" not in name or ".block.0." in name
    }


def test_a_plain_t5_is_told_by_its_positions(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, plain_t5())
    assert "is a T5 encoder (40 words, relative positions in 1 of 3 layers), the kind that Flux and SD3 use" in sentence
    assert "umt5_xxl_fp16.safetensors" in sentence


def test_a_plain_t5_is_told_by_its_vocabulary(tmp_path: Path) -> None:
    tensors = text_encoder_tensors(replace(TEXT_ENCODER, vocab_size=32128, dim=2, num_layers=1))
    assert "is a T5 encoder (32128 words" in refusal(tmp_path, tensors)


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({"text_model.encoder.layers.0.mlp.fc1.weight": torch.ones(2)}, "looks like a CLIP text encoder"),
        ({"model.layers.0.self_attn.q_proj.weight": torch.ones(2)}, "looks like a language model"),
        (expert_tensors(), "looks like a Wan transformer"),
    ],
)
def test_files_that_are_no_t5(tmp_path: Path, tensors: dict[str, Tensor], what: str) -> None:
    sentence = refusal(tmp_path, tensors)
    assert what in sentence and "expected a UMT5-XXL encoder" in sentence


def test_quantised_incomplete_and_misshapen_files(tmp_path: Path) -> None:
    name = "encoder.block.1.layer.0.SelfAttention.q.weight"
    tensors = hugging_face(text_encoder_tensors())
    integers = tensors | {name: tensors[name].to(torch.int8)}
    assert "holds weights as int8 without their scales" in refusal(tmp_path, integers)
    without = {other: tensor for other, tensor in tensors.items() if other != name}
    assert "lacks 1 of the 32 tensors of a UMT5 encoder, the first is 'blocks.1.attn.q.weight'" in refusal(
        tmp_path, without
    )
    assert "'blocks.1.attn.q.weight': (3, 3), expected (16, 12)" in refusal(
        tmp_path, tensors | {name: torch.ones(3, 3)}
    )
    assert "decoder" in refusal(tmp_path, tensors | {"decoder.block.0.x": torch.ones(1)})


def test_a_vocabulary_inside_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "umt5.safetensors", hugging_face(text_encoder_tensors(), b"inside"))
    source = open_text_encoder(path)
    assert (source.tokenizer, source.vocabulary(), source.spec) == (None, b"inside", TEXT_ENCODER)


@pytest.mark.parametrize("place", ["google/umt5-xxl/spiece.model", "tokenizer/spiece.model", "spiece.model"])
def test_a_vocabulary_beside_the_file(tmp_path: Path, place: str) -> None:
    path = write(tmp_path / "umt5.safetensors", text_encoder_tensors())
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(b"beside")
    source = open_text_encoder(path)
    assert (source.tokenizer, source.vocabulary()) == (tmp_path / place, b"beside")


@pytest.mark.parametrize("given", ["file", "folder"])
def test_a_vocabulary_that_is_given_comes_before_the_one_inside(tmp_path: Path, given: str) -> None:
    path = write(tmp_path / "umt5.safetensors", hugging_face(text_encoder_tensors(), b"inside"))
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "spiece.model").write_bytes(b"given")
    tokenizer = tmp_path / "words" if given == "folder" else tmp_path / "words" / "spiece.model"
    assert open_text_encoder(path, tokenizer).vocabulary() == b"given"


def test_no_vocabulary(tmp_path: Path) -> None:
    path = write(tmp_path / "umt5.safetensors", text_encoder_tensors())
    with pytest.raises(CheckpointError, match="carries no tokenizer and none is beside it"):
        open_text_encoder(path)
    with pytest.raises(CheckpointError, match="no tokenizer at .*nowhere"):
        open_text_encoder(path, tmp_path / "nowhere")
    for wrong in (torch.ones(3), torch.ones(2, 2, dtype=torch.uint8), torch.ones(0, dtype=torch.uint8)):
        write(path, text_encoder_tensors() | {"spiece_model": wrong})
        with pytest.raises(CheckpointError, match="expected the bytes of a sentencepiece model"):
            open_text_encoder(path)
