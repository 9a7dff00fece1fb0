"""The training of the miniature, at toy size: every formula against what it stands for, and a loss that goes down."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from miniature.clips import ClipSize, paint
from miniature.train import Run, train
from miniature.training.bank import Bank
from miniature.training.experts import (
    Trainee,
    flow_loss,
    new_trainee,
    sigma_range,
    step_losses,
    validation_losses,
)
from miniature.training.export import take_up
from miniature.training.initial import init_vae
from miniature.training.journal import Journal
from miniature.training.machine import Machine
from miniature.training.optimiser import MovingAverage, Optimiser, orthogonalised
from miniature.training.pace import Deadline, Pace
from miniature.training.settings import FULL, FULL_MINUTES, SMOKE, ExpertTraining
from miniature.training.store import Store
from miniature.training.text import UNCONDITIONAL, padded_attention, token_rows
from miniature.training.vae import VAE_DONE, clip_source, fold_statistics, losses, new_vae
from miniature.training.whole_clip import WholeClip
from miniature.vocabulary import train_vocabulary
from tests.unit.miniature.toy import CAPTIONS, MACHINE, TOY, toy_bank, toy_settings, train_toy
from wan_core.attention.backends.sdpa import ANY
from wan_core.checkpoint.find import find_model
from wan_core.models.t5 import encode_prompts
from wan_core.models.tokenizer import PAD_ID, Tokenizer
from wan_core.models.transformer import WanTransformer
from wan_core.models.vae21 import WanVae
from wan_core.pipeline import WanPipeline
from wan_core.sampling.experts import split
from wan_core.sampling.guidance import GuidedVelocity
from wan_core.sampling.loop import denoise
from wan_core.sampling.noise import to_model_space
from wan_core.sampling.schedule import make_schedule, shift_sigma
from wan_core.sampling.solvers import SOLVERS
from wan_core.specs import DEFAULT_NEGATIVE_PROMPT, Expert

ATTEND = ANY.load()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(train_vocabulary(TOY.text_encoder.vocab_size))


class StepsDeadline(Deadline):
    """Passes after so many questions, as a clock would after so many steps."""

    def __init__(self, questions: int) -> None:
        super().__init__(None)
        self.left = questions

    def passed(self, reserve: float = 0.0) -> bool:
        self.left -= 1
        return self.left < 0


def random_vae() -> WanVae:
    torch.manual_seed(0)
    return WanVae(TOY.vae)


@pytest.mark.parametrize("num_frames", [1, 5, 13])
def test_whole_clips_give_the_numbers_of_the_chunked_vae(num_frames: int):
    vae = random_vae()
    video = torch.rand(2, 3, num_frames, 32, 24) * 2 - 1
    mean, _ = WholeClip(vae).encode(video)
    expected = vae.encode(video)
    assert (mean - expected).abs().max() < 1e-5 * expected.abs().max() + 1e-6
    assert (WholeClip(vae).decode(expected).clamp(-1, 1) - vae.decode(expected)).abs().max() < 2e-5


def test_gradients_reach_every_weight_of_the_vae():
    vae = random_vae()
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    parts = losses(WholeClip(vae), video, torch.Generator().manual_seed(0))
    (parts["mse"] + parts["kl"]).backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


def test_folding_gives_released_statistics_and_changes_no_reconstruction():
    vae = random_vae()
    torch.manual_seed(1)
    init_vae(vae)
    video = torch.rand(4, 3, 9, 32, 32) * 2 - 1
    with torch.no_grad():
        before = vae.encode(video)
        rebuilt = WholeClip(vae).decode(before)
        channels = before.transpose(0, 1).flatten(1)
        fold_statistics(vae, channels.mean(1), channels.std(1))
        after = vae.encode(video)
        assert (WholeClip(vae).decode(after) - rebuilt).abs().max() < 1e-4
    normal = to_model_space(after).transpose(0, 1).flatten(1)
    assert normal.mean(1).abs().max() < 1e-4
    assert (normal.std(1) - 1).abs().max() < 1e-3


def test_the_vae_learns_a_clip_by_heart():
    vae = new_vae(0, MACHINE)
    clip, generator = WholeClip(vae), torch.Generator().manual_seed(0)
    source = clip_source("test", 8, MACHINE, MACHINE.compiled(paint))
    video = source.draw(generator, 4, ClipSize(5, 32, 32), 16)
    optimiser, pace = Optimiser({"vae": vae}, 3e-3), Pace(num_steps=60)
    errors = []
    while not pace.finished:
        parts = losses(clip, video, generator)
        optimiser.set_pace(pace, warmup_steps=5)
        optimiser.step(parts["mse"])
        pace.tick()
        errors.append(float(parts["mse"].detach()))
    assert errors[-1] < 0.15 * errors[0]


def test_attention_to_few_positions_equals_attention_to_all_of_them():
    torch.manual_seed(0)
    full = WanTransformer(TOY.transformer, attend=ATTEND, cross_attend=ATTEND)
    for parameter in full.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    cross = padded_attention(64, 512, torch.device("cpu"), torch.float32)
    short = WanTransformer(replace(TOY.transformer, text_len=64), attend=ATTEND, cross_attend=cross)
    short.load_state_dict(full.state_dict())
    latent, timestep, context = torch.randn(2, 16, 2, 4, 4), torch.tensor([900.0, 30.0]), torch.randn(2, 20, 64)
    with torch.no_grad():
        expected = full(latent, timestep, full.prepare_text(context))
        got = short(latent, timestep, short.prepare_text(context))
    assert (got - expected).abs().max() < 2e-5 * expected.abs().max()


def test_unconditional_prompts_leave_room_for_padding_and_captions_fit(tokenizer: Tokenizer):
    rows = token_rows(tokenizer, UNCONDITIONAL, ExpertTraining().text_len)
    assert rows[0].tolist()[:2] == [1, PAD_ID]
    assert bool((rows[:, -1] == PAD_ID).all())
    with pytest.raises(AssertionError, match="room for 3"):
        token_rows(tokenizer, CAPTIONS, 3)


def test_each_expert_trains_on_its_own_side_of_the_boundary():
    options = ExpertTraining()
    for expert in Expert:
        low, high = (shift_sigma(level, options.shift) for level in sigma_range(expert, options))
        assert (low, high) == pytest.approx((0.875, 1.0) if expert is Expert.HIGH else (0.0, 0.875))


def test_the_target_is_noise_minus_clip():
    class Oracle:
        def prepare_text(self, context: Tensor) -> None: ...

        def __call__(self, noisy: Tensor, timestep: Tensor, text: None) -> Tensor:
            assert bool((timestep >= 875).all()) and bool((timestep <= 1000).all())
            sigma = (timestep / 1000).view(-1, 1, 1, 1, 1)
            return (noisy - latent) / sigma

    latent = torch.randn(8, 16, 2, 2, 2)
    options = ExpertTraining()
    generator = torch.Generator().manual_seed(0)
    arguments = latent, torch.zeros(8, 1, 64), sigma_range(Expert.HIGH, options), options.shift, generator
    assert flow_loss(Oracle(), *arguments) < 1e-9


def test_gradients_reach_every_weight_of_the_experts_and_the_text_encoder(tokenizer: Tokenizer):
    trainee = new_trainee(toy_settings(1), tokenizer, MACHINE)
    torch.manual_seed(0)
    for module in trainee.modules.values():
        for parameter in module.parameters():  # what begins at zero lets nothing through
            torch.nn.init.normal_(parameter, std=0.1)
    generator = torch.Generator().manual_seed(0)
    losses_of_step = step_losses(trainee, toy_bank(tokenizer), ExpertTraining(batch=4), MACHINE, generator)
    sum(loss for _, loss in losses_of_step).backward()
    for part, module in trainee.modules.items():
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.any()), f"{part} {name}"


def test_captions_are_dropped_and_mistaken_as_often_as_asked(tokenizer: Tokenizer):
    captions = torch.arange(1000).view(-1, 1, 1).to(torch.int16)
    bank = Bank(torch.arange(1000.0).view(-1, 1, 1, 1, 1), captions)
    generator = torch.Generator().manual_seed(0)
    latents, ids = bank.draw(4000, 0.25, generator)
    assert float((latents.flatten() != ids.flatten()).float().mean()) == pytest.approx(0.25, abs=0.03)
    text = new_trainee(toy_settings(1), tokenizer, MACHINE).text
    ids = token_rows(tokenizer, CAPTIONS, 32).repeat(100, 1)
    with torch.no_grad():
        own, drawn = text.context(ids), text.context_with_drops(ids, 0.5, generator)
        empty, negative = text.context(text.unconditional)
    kinds = [
        (drawn == other).flatten(1).all(1).float().mean().item() for other in (own, empty[None], negative[None])
    ]  # fmt: skip
    assert kinds == pytest.approx([0.5, 0.25, 0.25], abs=0.1)


def test_context_in_training_is_that_of_inference(tokenizer: Tokenizer):
    text = new_trainee(toy_settings(1), tokenizer, MACHINE).text
    with torch.no_grad():
        trained = text.context(token_rows(tokenizer, CAPTIONS, 32))
    inferred = encode_prompts(text.encoder, tokenizer, CAPTIONS)
    assert torch.allclose(trained, inferred[:, :64], atol=1e-5)
    assert not inferred[:, 64:].any()


def test_pace_follows_steps_and_comes_to_rest():
    pace = Pace(num_steps=10)
    rates = []
    while not pace.finished:
        rates.append(pace.rate(2))
        pace.tick()
    assert pace.step == 10
    assert rates[0] == pytest.approx(0.5)
    assert rates[1] == pytest.approx(1.0, abs=0.03) and rates[-1] < 0.05
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_a_slow_machine_takes_as_many_steps_and_its_compiling_is_not_timed():
    pace = Pace(num_steps=20)
    pace.restore({"step": 7, "spent": 0.01})
    for _ in range(6):
        time.sleep(0.003)
        pace.tick()
    assert (pace.progress, pace.spent) == (13 / 20, 0.01)
    time.sleep(0.015)
    pace.tick()
    assert pace.spent >= 0.025 and not pace.finished and pace.step == 14


def test_minutes_are_numbers_of_steps():
    half = FULL.within(FULL_MINUTES / 2)
    assert FULL.within(FULL_MINUTES) == FULL
    assert (half.vae.num_steps, half.experts.num_steps) == (995, 3015)
    assert half.bank.num_clips == FULL.bank.num_clips // 2
    assert FULL.within(0.001).experts.num_steps == 1


@pytest.mark.parametrize("shape", [(3, 16, 48), (2, 48, 16), (1, 20, 20)])
def test_orthogonal_steps_move_all_directions_alike(shape: tuple[int, int, int]):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) @ torch.diag(
        torch.logspace(0, -1, shape[2])
    )
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.4 and values.max() < 1.4
    assert torch.allclose(orthogonalised(matrices)[:1], orthogonalised(matrices[:1]), atol=1e-5)


def test_the_average_follows_and_is_named_by_part():
    layer = torch.nn.Linear(2, 2)
    average = MovingAverage({"low": layer}, decay=0.9)
    start = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1.0)
    average.set_step(10_000)
    average.update()
    assert torch.allclose(average.of("low")["weight"], start + 0.1)
    assert average.of("high") == {}


def test_a_resumed_training_equals_one_without_a_break(tokenizer: Tokenizer, tmp_path: Path):
    settings = toy_settings(4)
    _, whole, done = train_toy(settings, tokenizer, tmp_path / "whole", Deadline(None))
    assert done
    _, _, done = train_toy(settings, tokenizer, tmp_path / "parts", StepsDeadline(2))
    assert not done
    _, parts, done = train_toy(settings, tokenizer, tmp_path / "parts", Deadline(None))
    assert done
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def test_four_captions_are_learned_and_sampled_back(tokenizer: Tokenizer, tmp_path: Path):
    settings, bank = toy_settings(90), toy_bank(tokenizer)
    untrained = new_trainee(settings, tokenizer, MACHINE)
    start = validation_losses(untrained, MovingAverage(untrained.modules, 0.9), bank, settings, MACHINE)
    trainee, average, _ = train_toy(settings, tokenizer, tmp_path, Deadline(None))
    end = validation_losses(trainee, average, bank, settings, MACHINE)
    assert end["high"] < 0.5 * start["high"] and end["low"] < 0.75 * start["low"]

    clips = sample(trainee, tokenizer, [caption for caption in CAPTIONS for _ in range(3)])
    distances = (clips.unsqueeze(1) - bank.latents).square().mean(dim=(2, 3, 4, 5))
    assert distances.argmin(1).tolist() == [index for index in range(4) for _ in range(3)]


@torch.no_grad()
def sample(trainee: Trainee, tokenizer: Tokenizer, prompts: list[str]) -> Tensor:
    """Latents by the product's schedule, switch, guidance and solver, with all 512 text positions."""
    schedule = make_schedule("unipc", 20, 12.0)
    experts = split(schedule, 0.875)
    positive = encode_prompts(trainee.text.encoder, tokenizer, prompts)
    negative = encode_prompts(trainee.text.encoder, tokenizer, [DEFAULT_NEGATIVE_PROMPT]).expand(len(prompts), -1, -1)
    guided = {}
    for expert, trained in trainee.transformers.items():
        model = WanTransformer(TOY.transformer, attend=ATTEND, cross_attend=ATTEND)
        model.load_state_dict(trained.state_dict())
        contexts = model.prepare_text(positive), model.prepare_text(negative)
        guided[expert] = GuidedVelocity(model, *contexts, execution="sequential")

    def predict(latent: Tensor, index: int) -> Tensor:
        timestep = torch.full((len(latent),), schedule.timesteps[index])
        return guided[experts[index]](latent, timestep, 4.0 if experts[index] is Expert.HIGH else 3.0)

    latent = torch.randn(len(prompts), 16, 2, 4, 4, generator=torch.Generator().manual_seed(7))
    for step in denoise(predict, latent, schedule, SOLVERS["unipc"]):
        latent = step.latent
    return latent


def test_all_stages_run_and_what_they_write_opens_and_is_taken_up(tmp_path: Path):
    settings = replace(SMOKE, experts=replace(SMOKE.experts, num_steps=1), vae=replace(SMOKE.vae, num_steps=1))
    store, output = Store(tmp_path / "work"), tmp_path / "output"
    output.mkdir()
    journal = Journal(store.folder / "log.jsonl")
    run = Run(settings, Machine(device=torch.device("cpu")), store, journal, Deadline(None), output)
    assert train(run)
    stages = [record["stage"] for record in map(json.loads, journal.path.read_text().splitlines())]
    assert {"vae", "vae quality", "bank", "experts", "validation"} <= set(stages)

    pipeline = WanPipeline(find_model(output))
    assert pipeline.pair.spec == run.machine.architecture.transformer
    other = Store(tmp_path / "other")
    take_up(output, {"step": 1, "spent": 0.5}, other)
    assert other.load("experts", run.machine)["pace"] == {"step": 1, "spent": 0.5}
    taken = other.load(VAE_DONE, run.machine)
    for name, tensor in store.load(VAE_DONE, run.machine).items():
        assert torch.equal(tensor, taken[name]), name
    total = sum(path.stat().st_size for path in output.rglob("*.safetensors"))
    assert math.isclose(total, 42e6, rel_tol=0.1)
