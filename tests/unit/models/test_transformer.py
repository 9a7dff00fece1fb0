"""The transformer's contract: names, dtypes, refusals, determinism, hooks and compilation. Parity has its own file."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from wan_core.attention.backends import BACKENDS
from wan_core.errors import InputError
from wan_core.models.layers import Linear
from wan_core.models.transformer import TextContext, WanTransformer, wants_float32
from wan_core.sampling.guidance import GuidedVelocity
from wan_core.specs import T2V_A14B_TRANSFORMER, TransformerSpec

SPEC = TransformerSpec(
    dim=64, ffn_dim=96, num_heads=2, num_layers=3, in_dim=16, out_dim=16, text_dim=24, freq_dim=32, text_len=20
)
SIZE = (2, 6, 8)
NUM_TOKENS = 2 * 3 * 4


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def make_model(spec: TransformerSpec = SPEC, residual: torch.dtype | None = torch.float32, **layers) -> WanTransformer:
    """A model whose every parameter matters: modulation and biases of order one half."""
    torch.manual_seed(0)
    model = WanTransformer(spec, attend=attend, cross_attend=attend, residual=residual, **layers)
    for name, parameter in model.named_parameters():
        if "modulation" in name or name.endswith("bias"):
            nn.init.normal_(parameter, std=0.5)
    return model.eval().requires_grad_(False)


def to_weights_dtype(model: WanTransformer, dtype: torch.dtype) -> WanTransformer:
    """What the loader does: every parameter in `dtype` but those that want float32."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if wants_float32(name) else dtype)
    return model


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw_inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    timestep = torch.tensor([900.0, 437.5, 10.0])[:batch]
    return draw(batch, 16, *SIZE), timestep, draw(batch, 11, SPEC.text_dim, seed=1)


def run(model: WanTransformer, latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
    return model(latent, timestep, model.prepare_text(context))


# Names and dtypes


def test_parameter_names_and_shapes_are_the_official_ones() -> None:
    with torch.device("meta"):
        model = WanTransformer(T2V_A14B_TRANSFORMER, attend=attend, cross_attend=attend)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(shapes) == 1095
    assert sum(math.prod(shape) for shape in shapes.values()) == T2V_A14B_TRANSFORMER.num_parameters
    expected = {
        "patch_embedding.weight": (5120, 16, 1, 2, 2),
        "patch_embedding.bias": (5120,),
        "text_embedding.0.weight": (5120, 4096),
        "text_embedding.2.bias": (5120,),
        "time_embedding.0.weight": (5120, 256),
        "time_embedding.2.weight": (5120, 5120),
        "time_projection.1.weight": (30720, 5120),
        "head.head.weight": (64, 5120),
        "head.modulation": (1, 2, 5120),
        "blocks.39.modulation": (1, 6, 5120),
        "blocks.0.norm3.weight": (5120,),
        "blocks.0.norm3.bias": (5120,),
        "blocks.0.self_attn.q.weight": (5120, 5120),
        "blocks.0.self_attn.norm_q.weight": (5120,),
        "blocks.0.cross_attn.norm_k.weight": (5120,),
        "blocks.0.cross_attn.o.bias": (5120,),
        "blocks.0.ffn.0.weight": (13824, 5120),
        "blocks.0.ffn.2.weight": (5120, 13824),
    }
    assert {name: shapes.get(name) for name in expected} == expected


def test_float32_parameters_are_named() -> None:
    names = Counter(wants_float32(name) for name in make_model().state_dict())
    # 3 x (modulation, norm3 x 2, four q/k norms) + patch, time embedding x 4, projection x 2, head x 3
    assert names[True] == 3 * 7 + 2 + 4 + 2 + 3
    assert not wants_float32("blocks.0.self_attn.q.bias")
    assert not wants_float32("text_embedding.0.weight")


def test_a_model_built_on_meta_and_given_its_parameters_is_the_same() -> None:
    model = make_model()
    with torch.device("meta"):
        built = WanTransformer(SPEC, attend=attend, cross_attend=attend)
    assert all(parameter.is_meta for parameter in built.parameters())
    assert not list(built.buffers())
    built.load_state_dict(model.state_dict(), assign=True)
    inputs = draw_inputs()
    assert torch.equal(run(built, *inputs), run(model, *inputs))


@pytest.mark.parametrize(("residual", "expected"), [(torch.float32, torch.float32), (None, torch.bfloat16)])
def test_residual_stream_keeps_its_dtype(residual: torch.dtype | None, expected: torch.dtype) -> None:
    model = to_weights_dtype(make_model(residual=residual), torch.bfloat16)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    velocity = run(model, *draw_inputs())
    assert seen == [(expected, expected)] * SPEC.num_layers
    assert velocity.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_sees_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    seen = []

    def spy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append((q.dtype, k.dtype, v.dtype, tuple(q.shape), tuple(k.shape)))
        return attend(q, k, v)

    model = WanTransformer(SPEC, attend=spy, cross_attend=spy).eval().requires_grad_(False)
    run(to_weights_dtype(model, dtype), *draw_inputs())
    own = (dtype, dtype, dtype, (2, NUM_TOKENS, 2, 32), (2, NUM_TOKENS, 2, 32))
    text = (dtype, dtype, dtype, (2, NUM_TOKENS, 2, 32), (2, SPEC.text_len, 2, 32))
    assert seen == [own, text] * SPEC.num_layers


def test_low_precision_error_is_that_of_the_products_alone() -> None:
    """bfloat16 weights stay near float32; rounding the residual stream as well costs more."""
    inputs = draw_inputs()
    rounded = make_model()
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16().float()
    exact = run(rounded, *inputs)
    errors = {}
    for residual in (torch.float32, None):
        model = make_model(residual=residual)
        model.load_state_dict(rounded.state_dict())
        errors[residual] = (run(to_weights_dtype(model, torch.bfloat16), *inputs) - exact).norm() / exact.norm()
    assert 0 < errors[torch.float32] < 2e-3
    assert errors[None] > 1.5 * errors[torch.float32]


def test_a_step_holds_nothing_complex_and_no_large_float64() -> None:
    model = make_model()
    latent, timestep, context = draw_inputs()
    text = model.prepare_text(context)
    model(latent, timestep, text)  # the first forward of a grid computes its rotary tables

    class Dtypes(TorchDispatchMode):
        wide = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and (out.is_complex() or out.dtype == torch.float64):
                self.wide = max(self.wide, out.numel())
            return out

    with Dtypes() as seen:
        model(latent, timestep, text)
    assert 0 < seen.wide <= latent.shape[0] * SPEC.freq_dim


def test_linear_layers_of_the_blocks_come_from_the_factory() -> None:
    made = []

    def factory(in_features: int, out_features: int) -> nn.Module:
        made.append((in_features, out_features))
        return Linear(in_features, out_features)

    make_model(linear=factory)
    assert len(made) == 10 * SPEC.num_layers
    assert Counter(made) == {(64, 64): 24, (64, 96): 3, (96, 64): 3}


# Time and text


def test_one_timestep_per_token_equals_one_per_sample() -> None:
    model = make_model()
    latent, timestep, context = draw_inputs()
    expected = run(model, latent, timestep, context)
    got = run(model, latent, timestep[:, None].expand(2, NUM_TOKENS), context)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_token_has_its_own_timestep() -> None:
    """The head alone would already show it, so the change must reach other tokens through the blocks."""
    model = make_model()
    latent, timestep, context = draw_inputs(1)
    uniform = timestep[:, None].repeat(1, NUM_TOKENS)
    changed = uniform.clone()
    changed[:, 0] = 0
    moved = (run(model, latent, changed, context) - run(model, latent, uniform, context)).abs()
    first_patch = moved[0, :, 0, :2, :2].mean()
    assert moved[0, :, 1].mean() > 1e-5
    assert first_patch > 3 * moved[0, :, 1].mean()


def test_text_is_padded_with_zeros_and_the_padding_is_attended() -> None:
    model = make_model()
    latent, timestep, context = draw_inputs()
    text = model.prepare_text(context)
    assert {tuple(kv.keys.shape) for kv in text.blocks} == {(2, SPEC.text_len, 2, 32)}
    padded = F.pad(context, (0, 0, 0, SPEC.text_len - context.shape[1]))
    assert torch.equal(model(latent, timestep, text), run(model, latent, timestep, padded))
    other_padding = padded.clone()
    other_padding[:, -1] = 1.0
    assert not torch.allclose(model(latent, timestep, text), run(model, latent, timestep, other_padding), atol=1e-5)


def test_concatenated_texts_equal_a_batched_text() -> None:
    model = make_model()
    _, _, context = draw_inputs(3)
    joined = model.prepare_text(context[:1]).concatenate(model.prepare_text(context[1:]))
    batched = model.prepare_text(context)
    assert isinstance(joined, TextContext)
    assert (joined.batch, batched.batch) == (3, 3)
    for ours, theirs in zip(joined.blocks, batched.blocks, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.values, theirs.values, rtol=1e-5, atol=1e-6)


# Runs


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    model = make_model()
    latent, timestep, context = draw_inputs(3)
    batched = run(model, latent, timestep, context)
    for i in range(3):
        alone = run(model, latent[i : i + 1], timestep[i : i + 1], context[i : i + 1])
        torch.testing.assert_close(batched[i : i + 1], alone, rtol=1e-5, atol=1e-5)


def test_the_same_run_twice_is_the_same_bit_for_bit() -> None:
    model = make_model()
    inputs = draw_inputs()
    first = run(model, *inputs)
    run(model, draw(1, 16, 1, 4, 4), torch.tensor([5.0]), inputs[2][:1])  # another job in between
    assert torch.equal(run(model, *inputs), first)


def test_nothing_given_is_changed() -> None:
    model = make_model()
    latent, timestep, context = draw_inputs()
    before = latent.clone(), timestep.clone(), context.clone()
    run(model, latent, timestep, context)
    assert all(torch.equal(now, then) for now, then in zip((latent, timestep, context), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_latent_of_any_float_dtype_gives_a_float32_velocity(dtype: torch.dtype) -> None:
    model = make_model()
    latent, timestep, context = draw_inputs()
    rounded = latent.to(dtype)
    velocity = run(model, rounded, timestep, context)
    assert velocity.dtype == torch.float32
    assert torch.equal(velocity, run(model, rounded.float(), timestep, context))


def test_image_latents_go_in_and_plain_velocity_comes_out() -> None:
    model = make_model(replace(SPEC, in_dim=36))
    latent, timestep, context = draw_inputs()
    image = draw(2, 20, *SIZE, seed=3)
    plain = run(model, torch.cat((latent, torch.zeros_like(image)), dim=1), timestep, context)
    assert plain.shape == (2, 16, *SIZE)
    assert not torch.allclose(run(model, torch.cat((latent, image), dim=1), timestep, context), plain, atol=1e-3)


def test_hooks_on_blocks_run_in_order_and_may_replace_the_output() -> None:
    model = make_model()
    inputs = draw_inputs()
    calls = []
    for number, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda module, args, number=number: calls.append(number))
    run(model, *inputs)
    assert calls == [0, 1, 2]
    shorter = make_model(replace(SPEC, num_layers=2))
    shorter.load_state_dict({name: p for name, p in model.state_dict().items() if not name.startswith("blocks.2.")})
    model.blocks[2].register_forward_hook(lambda module, args, output: args[0])
    assert torch.equal(run(model, *inputs), run(shorter, *inputs))


def test_an_interruption_in_a_hook_leaves_the_model_usable() -> None:
    model = make_model()
    inputs = draw_inputs()
    expected = run(model, *inputs)

    def stop(module: nn.Module, args: tuple) -> None:
        raise KeyboardInterrupt

    handle = model.blocks[1].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        run(model, *inputs)
    handle.remove()
    assert torch.equal(run(model, *inputs), expected)


def test_gradients_reach_every_parameter() -> None:
    model = make_model().requires_grad_(True)
    run(model, *draw_inputs()).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("kernel", ["sdpa", "math"])
def test_all_blocks_of_both_experts_share_one_compiled_graph(kernel: str) -> None:
    torch._dynamo.reset()
    kernel_attend = next(backend for backend in BACKENDS if backend.name == kernel).load()
    counter = CompileCounterWithBackend("aot_eager")
    inputs = draw_inputs()
    for _ in range(2):
        expert = WanTransformer(SPEC, attend=kernel_attend, cross_attend=kernel_attend).eval().requires_grad_(False)
        expected = run(expert, *inputs)
        for block in expert.blocks:
            block.compile(backend=counter, fullgraph=True)
        torch.testing.assert_close(run(expert, *inputs), expected, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1
    torch._dynamo.reset()


# Refusals


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 48, *SIZE), ["48", "16 channels"]),
        ((16, *SIZE), ["(16, 2, 6, 8)", "16 channels"]),
        ((2, 16, 2, 7, 8), ["(2, 7, 8)", "(1, 2, 2)", "nearest is (2, 8, 8)"]),
        ((2, 16, 2, 6, 9), ["(2, 6, 9)", "nearest is (2, 6, 8)"]),
        ((2, 16, 0, 6, 8), ["(0, 6, 8)", "nearest is (1, 6, 8)"]),
    ],
)
def test_a_wrong_latent_is_refused_in_a_sentence(shape: tuple[int, ...], words: list[str]) -> None:
    model = make_model()
    _, timestep, context = draw_inputs()
    with pytest.raises(InputError) as error:
        model(torch.zeros(shape), timestep, model.prepare_text(context))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 11, 4096), ["4096", "24"]),
        ((11, 24), ["(11, 24)", "24"]),
        ((2, 21, 24), ["21 tokens", "at most 20"]),
    ],
)
def test_a_wrong_text_is_refused_in_a_sentence(shape: tuple[int, ...], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        make_model().prepare_text(torch.zeros(shape))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_another_number_of_prompts_than_latents_is_refused() -> None:
    model = make_model()
    latent, timestep, context = draw_inputs()
    with pytest.raises(InputError, match="1 prompts came with a batch of 2 latents"):
        model(latent, timestep, model.prepare_text(context[:1]))


def test_in_turns_it_is_the_same_forward():
    model = make_model()
    latent, timestep, context = draw_inputs()
    text = model.prepare_text(context)
    turns = list(model.in_turns(latent, timestep, text))
    assert torch.equal(turns[-1], model(latent, timestep, text))


def test_guidance_in_two_streams_pauses_between_blocks():
    model = make_model()
    latent, timestep, context = draw_inputs(batch=1)
    positive, negative = model.prepare_text(context), model.prepare_text(context.flip(1))
    order = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, inputs: order.append(inputs[3].keys.data_ptr()))
    got = {
        execution: GuidedVelocity(model, positive, negative, execution=execution)(latent, timestep, 4.0)
        for execution in ("two-stream", "sequential", "batched")
    }
    pairs = zip(positive.blocks, negative.blocks, strict=True)
    assert order[: 2 * SPEC.num_layers] == [text.keys.data_ptr() for pair in pairs for text in pair]
    assert torch.equal(got["two-stream"], got["sequential"])
    torch.testing.assert_close(got["batched"], got["sequential"], rtol=1e-4, atol=1e-4)
