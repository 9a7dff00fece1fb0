"""Prompt -> token ids of UMT5, by sentencepiece.

The vocabulary is a sentencepiece model as bytes; `checkpoint.text_encoder` knows where files keep it. Ids follow T5:
padding 0, end of sequence 1, which closes every prompt.

Prompts are cleaned as the reference does it: ftfy, HTML entities twice, whitespace runs to one space. ftfy is optional,
since it changes nothing in text that was never mis-decoded; `Tokenizer.cleaning` says whether it took part.
Control pieces written out in a prompt ("</s>") are text here, not control.
"""

import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import BROKEN_LIBRARY, CheckpointError, InputError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

PAD_ID = 0
EOS_ID = 1
MAX_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Ids of one prompt, the end of sequence included, and how many did not fit."""

    ids: tuple[int, ...]
    num_dropped: int = 0


class Tokenizer:
    """UMT5's tokenizer. `cleaning` says in words how prompts are cleaned on this machine."""

    def __init__(self, processor: "SentencePieceProcessor") -> None:
        self._processor = processor
        self._fix, self.cleaning = _text_fixer()

    @classmethod
    def from_bytes(cls, data: bytes, origin: str = "the vocabulary") -> "Tokenizer":
        """From the content of a `spiece.model`; `origin` says in an error where it came from."""
        return cls(_load(data, origin))

    @property
    def vocab_size(self) -> int:
        return self._processor.vocab_size()

    def encode(self, text: str, max_tokens: int = MAX_TOKENS) -> Tokens:
        """At most `max_tokens` ids, the last of them the end of sequence."""
        ids = self._processor.encode(self.clean(text), add_bos=False, add_eos=False)
        kept = ids[: max_tokens - 1]
        return Tokens(ids=(*kept, EOS_ID), num_dropped=len(ids) - len(kept))

    def clean(self, text: str) -> str:
        text = html.unescape(html.unescape(self._fix(text)))
        return re.sub(r"\s+", " ", text).strip()


def _load(data: bytes, origin: str) -> "SentencePieceProcessor":
    try:
        from sentencepiece import SentencePieceProcessor
    except BROKEN_LIBRARY as error:
        raise InputError(
            f"prompts need the package sentencepiece, which this Python cannot import ({error}); install it with "
            f"`pip install sentencepiece`"
        ) from error
    try:
        processor = SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise CheckpointError(f"{origin} ({len(data)} bytes) is no sentencepiece model, or it is damaged") from error
    if (processor.pad_id(), processor.eos_id()) != (PAD_ID, EOS_ID):
        raise CheckpointError(
            f"{origin} is no T5 tokenizer: its ids of padding and end of sequence are {processor.pad_id()} and "
            f"{processor.eos_id()}, expected {PAD_ID} and {EOS_ID}"
        )
    return processor


def _text_fixer() -> tuple[Callable[[str], str], str]:
    """ftfy's repair of mis-decoded text if it is installed, and what to say about it."""
    try:
        from ftfy import fix_text
    except BROKEN_LIBRARY:
        return str, "HTML entities and whitespace; ftfy does not load here, so mis-decoded characters stay as they are"
    return fix_text, "ftfy, HTML entities and whitespace"
