"""A sentencepiece model taken apart into GGUF fields, as llama.cpp's converter does it, and put together again."""

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from gguf import GGMLQuantizationType as Type

from miniature.vocabulary import train_vocabulary
from miniature.write import hugging_face_name
from tests.protobuf import fields
from tests.unit.checkpoint.gguf_files import text_encoder_name, write_gguf
from tests.unit.checkpoint.models import draw_text_encoder
from wan_core.checkpoint.text_encoder import open_text_encoder
from wan_core.errors import CheckpointError
from wan_core.models.tokenizer import Tokenizer
from wan_core.specs import DEFAULT_NEGATIVE_PROMPT

PROMPTS = (
    "A small red circle moves left on a blue background, slowly.",
    DEFAULT_NEGATIVE_PROMPT,
    "  a  red\t\tsquare \n\n falls   down  ",
    "\ufb01ne \uff21\uff22\uff23 \u2167 caf\u00e9 nai\u0308ve \u00bd \u3000\u30b9",
    "a \N{BALLOON} and an ocelot's (((red:1.2))) 100% #1",
    "",
)


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_vocabulary(1024)


def taken_apart(model: bytes, without: str = "") -> Callable[[gguf.GGUFWriter], None]:
    """What llama.cpp's T5 converter writes for a `spiece.model`."""
    processor = Tokenizer.from_bytes(model)._processor
    ids = range(processor.vocab_size())
    pieces = [dict(fields(value)) for number, value in fields(model) if number == 1]
    normaliser = dict(fields(dict(fields(model))[3]))

    def extend(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("t5")
        writer.add_token_list([processor.id_to_piece(i) for i in ids] + ["[PAD1024]"])
        writer.add_token_scores([processor.get_score(i) for i in ids] + [-1000.0])
        if without != "token_type":
            writer.add_token_types([piece.get(3, 1) for piece in pieces] + [gguf.TokenType.UNUSED])
        writer.add_add_space_prefix(bool(normaliser.get(3, 1)))
        writer.add_remove_extra_whitespaces(bool(normaliser.get(4, 1)))
        if without != "precompiled_charsmap":
            writer.add_precompiled_charsmap(normaliser[2])
        writer.add_eos_token_id(1)
        writer.add_pad_token_id(0)
        writer.add_unk_token_id(2)

    return extend


def written(path: Path, extend: Callable[[gguf.GGUFWriter], None]) -> Path:
    name_of = lambda name: text_encoder_name(hugging_face_name(name))  # noqa: E731
    write_gguf(path, draw_text_encoder(), lambda name, tensor: Type.F16, arch="t5", name_of=name_of, extend=extend)
    return path


def test_the_same_ids_as_the_model_that_was_taken_apart(tmp_path: Path, model: bytes) -> None:
    source = open_text_encoder(written(tmp_path / "umt5.gguf", taken_apart(model)))
    assert source.tokenizer is None
    ours, theirs = Tokenizer.from_bytes(source.vocabulary()), Tokenizer.from_bytes(model)
    for prompt in PROMPTS:
        assert ours.encode(prompt) == theirs.encode(prompt)
        # Without the cleaning of prompts before it, so that the normaliser shows.
        assert ours._processor.encode(prompt) == theirs._processor.encode(prompt)


@pytest.mark.parametrize("without", ["token_type", "precompiled_charsmap"])
def test_a_file_without_all_of_it_needs_another_tokenizer(tmp_path: Path, model: bytes, without: str) -> None:
    path = written(tmp_path / "umt5.gguf", taken_apart(model, without))
    with pytest.raises(CheckpointError, match="carries no tokenizer and none is beside it .*: give its path"):
        open_text_encoder(path)
    (tmp_path / "spiece.model").write_bytes(model)
    assert open_text_encoder(path).vocabulary() == model


def test_lists_that_do_not_fit(tmp_path: Path) -> None:
    def extend(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("t5")
        writer.add_token_list(["a", "b"])
        writer.add_token_scores([1.0])
        writer.add_token_types([1, 1])
        writer.add_precompiled_charsmap(b"table")

    source = open_text_encoder(written(tmp_path / "umt5.gguf", extend))
    with pytest.raises(CheckpointError, match="the tokenizer in .*umt5.gguf' is damaged: its lists do not fit"):
        source.vocabulary()
