"""The text encoder against transformers' UMT5EncoderModel, and the tokenizer against its T5 tokenizer."""

import pytest
import torch
from tokenizers.models import Unigram
from torch import Tensor
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from miniature.vocabulary import train_vocabulary
from miniature.weights import draw_table, text_encoder_table
from miniature.write import hugging_face_name
from tests.parity.transformers_models import make_text_encoder
from tests.protobuf import fields
from wan_core.models.t5 import Umt5Encoder, relative_buckets
from wan_core.models.tokenizer import Tokenizer
from wan_core.specs import DEFAULT_NEGATIVE_PROMPT, TextEncoderSpec

# Heads narrower than dim / num_heads, so that the two widths cannot be confused.
SPEC = TextEncoderSpec(vocab_size=101, dim=64, attention_dim=48, ffn_dim=80, num_heads=3, num_layers=3)

PROMPTS = {
    "english": "A small red circle moves left on a blue background, slowly.",
    "unknown words": "An astronaut's photogenic ocelot zoom-zooms past 3 quasars!",
    "chinese": "一只小猫在蓝色的背景上跳舞，镜头慢慢推近。",
    "default negative": DEFAULT_NEGATIVE_PROMPT,
    "spaces": "  a  red\t\tsquare \n\n falls   down  ",
    "html": "rock &amp;amp; roll &lt;b&gt;bold&lt;/b&gt; 5 &gt; 3 &eacute;",
    "punctuation": "(((red:1.2))), [blue|green], {x}; \"yes\" - 'no'... 100% #1 @home $5 a/b\\c ~^`",
    "emoji": "a \N{BALLOON}\N{BALLOON} floats \N{FAMILY}\N{ZERO WIDTH JOINER}\N{WOMAN}",
    "compatibility forms": "\ufb01ne \uff21\uff22\uff23 \u2167 \u33a1 caf\u00e9 nai\u0308ve \u00bd \u3000\u30b9",
    "empty": "",
    "very long": "two large green triangles bounce quickly across the screen; " * 90,
    "very long bytes": "\u8272\u8c03" * 300,
}


def reference_encoder(spec: TextEncoderSpec, weights: dict[str, Tensor]) -> UMT5EncoderModel:
    model = make_text_encoder(spec)
    renamed = {hugging_face_name(name): tensor for name, tensor in weights.items()}
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected and set(missing) <= {"encoder.embed_tokens.weight"}, "the embedding is tied to `shared`"
    return model


@pytest.fixture(scope="module")
def encoders() -> tuple[Umt5Encoder, UMT5EncoderModel]:
    weights = draw_table(text_encoder_table(SPEC), "parity", torch.float32)
    ours = Umt5Encoder(SPEC)
    ours.load_state_dict(weights)
    return ours, reference_encoder(SPEC, weights)


@pytest.mark.parametrize("length", [1, 9, 40, 300])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_encoder_matches_transformers(encoders, length: int, padded: bool) -> None:
    ours, theirs = encoders
    ids = torch.randint(0, SPEC.vocab_size, (3, length), generator=torch.Generator().manual_seed(length))
    lengths = torch.tensor([length, (length + 1) // 2, 1] if padded else [length] * 3)
    mask = torch.arange(length) < lengths[:, None]
    expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask]
    actual = ours(ids, mask)[mask]
    assert (actual - expected).norm() / expected.norm() <= 1e-5


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (32, 64), (16, 64), (8, 20)])
def test_buckets_match_transformers(num_buckets: int, max_distance: int) -> None:
    config = UMT5Config(
        num_layers=1, d_model=8, d_kv=4, d_ff=8, num_heads=2, vocab_size=8,
        relative_attention_num_buckets=num_buckets, relative_attention_max_distance=max_distance,
    )  # fmt: skip
    attention = UMT5EncoderModel(config).encoder.block[0].layer[0].SelfAttention
    position = torch.arange(512)
    expected = attention._relative_position_bucket(position[None, :] - position[:, None])
    spec = TextEncoderSpec(num_buckets=num_buckets, max_distance=max_distance)
    assert torch.equal(relative_buckets(512, spec, torch.device("cpu")), expected)


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Tokenizer, T5Tokenizer]:
    model = train_vocabulary(1024)
    ours = Tokenizer.from_bytes(model)
    processor = ours._processor
    vocabulary = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.vocab_size())]
    normalizer = dict(fields(dict(fields(model))[3]))
    theirs = T5Tokenizer(vocab=vocabulary, _spm_precompiled_charsmap=normalizer[2], extra_ids=0)
    # UMT5's vocabulary has byte pieces and was trained with them; the class leaves them unused unless told otherwise.
    theirs._tokenizer.model = Unigram(vocabulary, unk_id=2, byte_fallback=True)
    return ours, theirs


@pytest.mark.parametrize("name", PROMPTS)
def test_tokenizer_matches_transformers(tokenizers, name: str) -> None:
    ours, theirs = tokenizers
    cleaned = ours.clean(PROMPTS[name])
    tokens = ours.encode(PROMPTS[name])
    assert list(tokens.ids) == theirs(cleaned, truncation=True, max_length=512).input_ids
    assert len(tokens.ids) + tokens.num_dropped == len(theirs(cleaned).input_ids)
