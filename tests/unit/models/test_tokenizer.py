"""The tokenizer by itself: cleaning, truncation, and what it refuses."""

import io
import sys

import pytest

from miniature.vocabulary import train_vocabulary
from wan_core.errors import CheckpointError, InputError
from wan_core.models.tokenizer import EOS_ID, Tokenizer, Tokens


@pytest.fixture(scope="module")
def vocabulary() -> bytes:
    return train_vocabulary(1024)


@pytest.fixture(scope="module")
def tokenizer(vocabulary: bytes) -> Tokenizer:
    return Tokenizer.from_bytes(vocabulary)


def test_a_prompt_ends_with_eos_and_drops_nothing(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("a red circle")
    assert len(tokens.ids) == 4
    assert tokens.ids[-1] == EOS_ID and EOS_ID not in tokens.ids[:-1]
    assert tokens.num_dropped == 0
    assert tokenizer.encode("  ") == Tokens(ids=(EOS_ID,))


def test_a_long_prompt_keeps_its_beginning_and_its_eos(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("red blue " * 300, max_tokens=10_000)
    assert len(whole.ids) == 601
    tokens = tokenizer.encode("red blue " * 300)
    assert tokens.ids == (*whole.ids[:511], EOS_ID)
    assert tokens.num_dropped == 600 - 511


def test_a_prompt_of_exactly_the_limit_is_whole(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("red " * 511)
    assert len(tokens.ids) == 512 and tokens.num_dropped == 0


def test_control_pieces_in_a_prompt_are_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a </s> b").ids.count(EOS_ID) == 1


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a   b\t\n c ", "a b c"),
        ("rock &amp;amp; roll", "rock & roll"),
        ("a\N{NO-BREAK SPACE}b\N{IDEOGRAPHIC SPACE}c", "a b c"),
        ("caf\u00c3\u00a9", "caf\u00e9"),
        ("a red circle", "a red circle"),
    ],
)
def test_cleaning(tokenizer: Tokenizer, text: str, cleaned: str) -> None:
    assert tokenizer.clean(text) == cleaned


def test_without_ftfy_it_says_so_and_leaves_mojibake(monkeypatch: pytest.MonkeyPatch, vocabulary: bytes) -> None:
    assert Tokenizer.from_bytes(vocabulary).cleaning.startswith("ftfy")
    monkeypatch.setitem(sys.modules, "ftfy", None)
    tokenizer = Tokenizer.from_bytes(vocabulary)
    assert "ftfy does not load here" in tokenizer.cleaning
    assert tokenizer.clean(" caf\u00c3\u00a9 &lt; tea ") == "caf\u00c3\u00a9 < tea"


def test_without_sentencepiece_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, vocabulary: bytes) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match="pip install sentencepiece"):
        Tokenizer.from_bytes(vocabulary)


@pytest.mark.parametrize("damage", ["empty", "cut", "json"])
def test_a_damaged_vocabulary_is_refused(vocabulary: bytes, damage: str) -> None:
    data = {"empty": b"", "cut": vocabulary[:1000], "json": b'{"version": "1.0"}'}[damage]
    with pytest.raises(CheckpointError, match=r"^here/spiece\.model .*is no (sentencepiece model|T5 tokenizer)"):
        Tokenizer.from_bytes(data, "here/spiece.model")


def test_a_vocabulary_of_another_kind_is_refused() -> None:
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    words = iter(["red green blue", "one two three", "a red circle moves left"] * 20)
    SentencePieceTrainer.train(
        sentence_iterator=words, model_writer=model, vocab_size=40, hard_vocab_limit=False, minloglevel=2
    )
    with pytest.raises(
        CheckpointError, match="is no T5 tokenizer: its ids of padding and end of sequence are -1 and 2"
    ):
        Tokenizer.from_bytes(model.getvalue())
