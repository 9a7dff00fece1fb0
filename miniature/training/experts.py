"""Stage three: both experts and their text encoder, by flow matching (arXiv:2210.02747).

x = (1 - sigma) * x0 + sigma * noise, and the target is the velocity noise - x0. Sigma is uniform before the shift, as
the steps of a sampling schedule are, within the expert's side of the boundary: the high-noise expert learns what takes
two thirds of the steps, the low-noise one the rest. One text encoder serves both and learns from both.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_core.attention.backends.sdpa import ANY
from wan_core.models.layers import Linear
from wan_core.models.t5 import Umt5Encoder
from wan_core.models.tokenizer import Tokenizer
from wan_core.models.transformer import WanTransformer
from wan_core.sampling.schedule import shift_sigma
from wan_core.specs import NUM_TRAIN_TIMESTEPS, Expert

from .bank import Bank
from .captured import CapturedStep
from .initial import init_text_encoder, init_transformer
from .journal import Journal
from .machine import Machine
from .optimiser import MovingAverage, Optimiser
from .pace import Deadline, Pace
from .settings import ExpertTraining, Settings
from .store import Store
from .text import TextPath, make_text_path, padded_attention

TEXT_ENCODER = "text_encoder"
_SAVE_RESERVE = 15.0
_VALIDATION_BATCHES = 4


class BlockLinear(nn.Linear):
    """A linear layer with float32 parameters that computes, and answers, in bfloat16, as the shipped weights will."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(torch.bfloat16), self.weight.to(torch.bfloat16), self.bias.to(torch.bfloat16))


@dataclass(frozen=True, slots=True)
class Trainee:
    """What is trained together."""

    transformers: dict[Expert, WanTransformer]
    text: TextPath

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {TEXT_ENCODER: self.text.encoder} | {expert.value: model for expert, model in self.transformers.items()}


def new_trainee(settings: Settings, tokenizer: Tokenizer, machine: Machine) -> Trainee:
    """Untrained experts and text encoder, the same for the same seed."""
    options, architecture = settings.experts, machine.architecture
    full = architecture.transformer
    cross = padded_attention(options.text_len, full.text_len, machine.device, machine.compute_dtype)
    attend = ANY.load()  # the others have no backward
    linear = BlockLinear if machine.is_gpu else Linear
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        encoder = Umt5Encoder(architecture.text_encoder)
        init_text_encoder(encoder)
        transformers = {}
        for expert in Expert:
            short = replace(full, text_len=options.text_len)
            # The step is memory traffic for the most part, so the stream between the blocks is narrow as well.
            transformers[expert] = WanTransformer(
                short, attend=attend, cross_attend=cross, linear=linear, residual=machine.compute_dtype
            )
            init_transformer(transformers[expert])
    for module in (encoder, *transformers.values()):
        module.to(machine.device)
        machine.compile_blocks(module.blocks)
    return Trainee(transformers, make_text_path(encoder, tokenizer, options.text_len, machine.device))


def train_experts(
    settings: Settings,
    trainee: Trainee,
    bank: Bank,
    machine: Machine,
    store: Store,
    journal: Journal,
    deadline: Deadline,
) -> tuple[MovingAverage, bool]:
    """Train until done or until the deadline; the averages so far, and whether they are final. Resumes."""
    options = settings.experts
    pace = Pace(options.num_steps)
    optimiser = Optimiser(trainee.modules, options.learning_rate, options.weight_decay)
    average = MovingAverage(trainee.modules, options.ema_decay)
    if state := store.load("experts", machine):
        for name, module in trainee.modules.items():
            module.load_state_dict(state["modules"][name])
        if "optimiser" in state:  # absent where written weights were taken up
            optimiser.load_state_dict(state["optimiser"])
        average.load_state_dict(state["average"])
        pace.restore(state["pace"])
    generator = torch.Generator(machine.device)
    step = ExpertStep(trainee, bank, options, machine, optimiser, average, generator)
    captured = CapturedStep(step, generator, captures=machine.records)
    while not pace.finished and not deadline.passed(_SAVE_RESERVE):
        generator.manual_seed(settings.seed * 1_000_003 + pace.step)
        optimiser.set_pace(pace, settings.warmup_steps)
        average.set_step(pace.step)
        values = captured()
        pace.tick()
        if pace.step % settings.log_every == 0:
            journal.write_losses("experts", pace, values)
    modules = {name: module.state_dict() for name, module in trainee.modules.items()}
    state = {"optimiser": optimiser.state_dict(), "average": average.state_dict(), "pace": pace.state()}
    store.save("experts", {"modules": modules, **state})
    return average, pace.finished


@dataclass(frozen=True, slots=True)
class ExpertStep:
    """One step of training, as it is recorded: all on the device, waiting for nothing."""

    trainee: Trainee
    bank: Bank
    options: ExpertTraining
    machine: Machine
    optimiser: Optimiser
    average: MovingAverage
    generator: torch.Generator

    def __call__(self) -> dict[str, Tensor]:
        losses = step_losses(self.trainee, self.bank, self.options, self.machine, self.generator)
        loss = {f"loss_{expert.value}": value for expert, value in losses}
        norm = self.optimiser.step(sum(loss.values()))
        self.average.update()
        return loss | {"gradient": norm}


def step_losses(
    trainee: Trainee, bank: Bank, options: ExpertTraining, machine: Machine, generator: torch.Generator
) -> Iterator[tuple[Expert, Tensor]]:
    """Loss of each expert on clips of its own."""
    latents, ids = bank.draw(2 * options.batch, options.wrong, generator)
    with machine.autocast():
        context = trainee.text.context_with_drops(ids, options.drop, generator)
    context = context.float()
    for index, (expert, model) in enumerate(trainee.transformers.items()):
        mine = slice(index * options.batch, (index + 1) * options.batch)
        yield (
            expert,
            flow_loss(model, latents[mine], context[mine], sigma_range(expert, options), options.shift, generator),
        )


def flow_loss(
    model: WanTransformer,
    latent: Tensor,
    context: Tensor,
    unshifted: tuple[float, float],
    shift: float,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the velocity, at noise levels spread evenly over the range `unshifted`."""
    batch, device = len(latent), latent.device
    low, high = unshifted
    within = (torch.arange(batch, device=device) + torch.rand(batch, generator=generator, device=device)) / batch
    sigma = shift_sigma(low + (high - low) * within, shift)
    noise = torch.randn(latent.shape, generator=generator, device=device)
    noisy = torch.lerp(latent, noise, sigma.view(-1, 1, 1, 1, 1))
    velocity = model(noisy, NUM_TRAIN_TIMESTEPS * sigma, model.prepare_text(context))
    return F.mse_loss(velocity, noise - latent)


def sigma_range(expert: Expert, options: ExpertTraining) -> tuple[float, float]:
    """The expert's noise levels before the shift; the boundary belongs to the high-noise expert."""
    # The inverse of a shift by s is a shift by 1 / s.
    boundary = shift_sigma(options.boundary, 1 / options.shift)
    return (boundary, 1.0) if expert is Expert.HIGH else (0.0, boundary)


def validation_losses(
    trainee: Trainee, average: MovingAverage, bank: Bank, settings: Settings, machine: Machine
) -> dict[str, float]:
    """Losses of the averaged weights on held-out clips with true captions and fixed noise: comparable between runs.

    The averages stay in the modules. Gradients are tracked for nothing: without them everything would compile anew.
    """
    for name, module in trainee.modules.items():
        module.load_state_dict(average.of(name))
    options = replace(settings.experts, drop=0.0, wrong=0.0)
    generator = torch.Generator(machine.device).manual_seed(settings.seed)
    totals = dict.fromkeys((expert.value for expert in Expert), 0.0)
    for _ in range(_VALIDATION_BATCHES):
        for expert, loss in step_losses(trainee, bank, options, machine, generator):
            totals[expert.value] += float(loss.detach()) / _VALIDATION_BATCHES
    return totals
