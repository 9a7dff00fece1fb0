"""Two prompts of a known length, and a small vocabulary in which they have it.

Random weights need no real vocabulary, and the size of the embedding table does not change how long a lookup takes. In
a word model every word is one piece, so the number of tokens is the number of words and the end of the sequence.
"""

import io
from functools import cache
from itertools import product

from ..errors import UnsupportedError
from ..models.tokenizer import Tokenizer
from .task import NUM_PROMPTS, PROMPT_TOKENS

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORDS = tuple(map("".join, product(_LETTERS, repeat=2)))[: NUM_PROMPTS * PROMPT_TOKENS]


def prompts() -> list[str]:
    """Prompts without a word in common."""
    size = PROMPT_TOKENS - 1  # the end of the sequence is a token
    return [" ".join(_WORDS[first : first + size]) for first in range(0, NUM_PROMPTS * size, size)]


def prompt_ids() -> list[tuple[int, ...]]:
    """Their token ids."""
    tokenizer = Tokenizer.from_bytes(vocabulary())
    return [tokenizer.encode(prompt).ids for prompt in prompts()]


def vocabulary_size() -> int:
    return Tokenizer.from_bytes(vocabulary()).vocab_size


@cache
def vocabulary() -> bytes:
    """The bytes of a `spiece.model` with T5's control pieces."""
    try:
        from sentencepiece import SentencePieceTrainer
    except ImportError as error:
        raise UnsupportedError(f"encoding prompts needs the package sentencepiece: {error}") from error
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(_WORDS), model_writer=model, model_type="word", vocab_size=len(_WORDS) + 3,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()
