"""The UMT5 encoder by itself: names, precision, and prompts made into context. Its numbers: tests/parity."""

import pytest
import torch

from miniature.vocabulary import train_vocabulary
from miniature.weights import draw_table, text_encoder_table
from wan_core.errors import InputError
from wan_core.models.t5 import Umt5Encoder, bucket_edges, encode_prompts
from wan_core.models.tokenizer import PAD_ID, Tokenizer
from wan_core.specs import UMT5_XXL, TextEncoderSpec

SPEC = TextEncoderSpec(vocab_size=1024, dim=64, attention_dim=48, ffn_dim=80, num_heads=3, num_layers=2)
PROMPTS = ["a red circle", "", "two large green squares fall slowly behind a bright yellow star"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(train_vocabulary(SPEC.vocab_size))


@pytest.fixture
def encoder() -> Umt5Encoder:
    return make_encoder(torch.float32)


def make_encoder(dtype: torch.dtype, gain: float = 1.0) -> Umt5Encoder:
    with torch.device("meta"):
        encoder = Umt5Encoder(SPEC)
    weights = draw_table(text_encoder_table(SPEC), "unit", torch.float32)
    loud = {name: tensor * gain if ".ffn." in name else tensor for name, tensor in weights.items()}
    encoder.load_state_dict({name: tensor.to(dtype) for name, tensor in loud.items()}, assign=True)
    return encoder


def test_parameters_have_the_official_names_and_nothing_else_is_kept() -> None:
    with torch.device("meta"):
        encoder = Umt5Encoder(UMT5_XXL)
    state = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    block = {name.removeprefix("blocks.23."): shape for name, shape in state.items() if name.startswith("blocks.23.")}
    assert block == {
        "norm1.weight": (4096,),
        "attn.q.weight": (4096, 4096),
        "attn.k.weight": (4096, 4096),
        "attn.v.weight": (4096, 4096),
        "attn.o.weight": (4096, 4096),
        "norm2.weight": (4096,),
        "ffn.gate.0.weight": (10240, 4096),
        "ffn.fc1.weight": (10240, 4096),
        "ffn.fc2.weight": (4096, 10240),
        "pos_embedding.embedding.weight": (32, 64),
    }
    assert {name for name in state if not name.startswith("blocks.")} == {"token_embedding.weight", "norm.weight"}
    assert len(state) == 24 * 10 + 2
    assert sum(parameter.numel() for parameter in encoder.parameters()) == UMT5_XXL.num_parameters
    assert not list(encoder.buffers())


def test_bucket_edges_are_exact_then_geometric() -> None:
    assert bucket_edges(16, 128) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]


def test_context_is_zero_past_each_prompt(encoder, tokenizer) -> None:
    context = encode_prompts(encoder, tokenizer, PROMPTS)
    assert context.shape == (3, 512, SPEC.dim) and context.dtype is torch.float32
    assert not context.requires_grad
    for row, prompt in zip(context, PROMPTS, strict=True):
        length = len(tokenizer.encode(prompt).ids)
        assert row[:length].abs().sum(dim=1).min() > 0
        assert torch.count_nonzero(row[length:]) == 0


def test_encoding_the_real_tokens_alone_equals_a_masked_batch(encoder, tokenizer) -> None:
    tokens = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    ids = torch.tensor([ids + (PAD_ID,) * (512 - len(ids)) for ids in map(tuple, tokens)])
    mask = torch.arange(512) < torch.tensor([len(ids) for ids in tokens])[:, None]
    with torch.no_grad():
        padded = encoder(ids, mask) * mask[..., None]
    context = encode_prompts(encoder, tokenizer, PROMPTS)
    assert (context - padded).norm() / padded.norm() <= 1e-6


def test_padding_changes_a_result_where_it_is_not_masked(encoder) -> None:
    ids = torch.tensor([[7, 8, 9, PAD_ID, PAD_ID]])
    with torch.no_grad():
        masked = encoder(ids, torch.tensor([[True, True, True, False, False]]))
        unmasked = encoder(ids, torch.ones(1, 5, dtype=torch.bool))
    assert (masked[:, :3] - unmasked[:, :3]).norm() / masked[:, :3].norm() > 1e-2


def test_a_prompt_does_not_depend_on_its_neighbours(encoder, tokenizer) -> None:
    together = encode_prompts(encoder, tokenizer, PROMPTS)
    alone = torch.cat([encode_prompts(encoder, tokenizer, [prompt]) for prompt in PROMPTS])
    assert torch.equal(together, alone)


def test_long_prompts_are_cut_to_the_text_length(encoder, tokenizer) -> None:
    context = encode_prompts(encoder, tokenizer, ["red " * 100], text_len=32)
    assert context.shape == (1, 32, SPEC.dim)
    assert torch.count_nonzero(context[0, -1]) > 0


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision_stays_near_float32(encoder, tokenizer, dtype: torch.dtype, bound: float) -> None:
    exact = encode_prompts(encoder, tokenizer, PROMPTS)
    half = encode_prompts(make_encoder(dtype), tokenizer, PROMPTS)
    assert half.dtype is torch.float32
    assert 0 < (half - exact).norm() / exact.norm() <= bound


def test_float16_keeps_activations_beyond_its_range(tokenizer) -> None:
    exact_encoder, half_encoder = make_encoder(torch.float32, gain=60.0), make_encoder(torch.float16, gain=60.0)
    peaks: list[float] = []
    exact_encoder.blocks[0].ffn.register_forward_hook(lambda module, inputs, out: peaks.append(out.abs().max().item()))
    exact = encode_prompts(exact_encoder, tokenizer, PROMPTS)
    half = encode_prompts(half_encoder, tokenizer, PROMPTS)
    assert max(peaks) > 2 * torch.finfo(torch.float16).max, "the test must leave the range"
    assert (half - exact).norm() / exact.norm() <= 5e-3


def test_float16_never_gives_infinities(tokenizer) -> None:
    assert torch.isfinite(encode_prompts(make_encoder(torch.float16, gain=3000.0), tokenizer, PROMPTS)).all()


def test_a_row_of_nothing_but_padding_is_finite(encoder) -> None:
    out = encoder(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.bool))
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("vocab_size", [512, 1000, 4096])
def test_a_tokenizer_of_another_model_is_refused(tokenizer, vocab_size: int) -> None:
    spec = TextEncoderSpec(vocab_size=vocab_size, dim=8, attention_dim=8, ffn_dim=8, num_heads=1, num_layers=1)
    with pytest.raises(InputError, match=f"the tokenizer has 1024 pieces and the text encoder {vocab_size}"):
        encode_prompts(Umt5Encoder(spec), tokenizer, ["a red circle"])


def test_an_embedding_padded_by_a_few_rows_is_accepted(tokenizer) -> None:
    spec = TextEncoderSpec(vocab_size=1056, dim=8, attention_dim=8, ffn_dim=8, num_heads=1, num_layers=1)
    assert encode_prompts(Umt5Encoder(spec), tokenizer, ["a red circle"]).shape == (1, 512, 8)
