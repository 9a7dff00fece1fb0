"""A training of the experts at toy size: seconds on a CPU."""

from dataclasses import replace
from pathlib import Path

import torch

from miniature.training.bank import Bank
from miniature.training.experts import Trainee, new_trainee, train_experts
from miniature.training.journal import Journal
from miniature.training.machine import Architecture, Machine
from miniature.training.optimiser import MovingAverage
from miniature.training.pace import Deadline
from miniature.training.settings import SMOKE, ExpertTraining, Settings
from miniature.training.store import Store
from miniature.training.text import token_rows
from wan_core.models.tokenizer import Tokenizer
from wan_core.specs import TextEncoderSpec, TransformerSpec, VaeSpec

TOY = Architecture(
    transformer=TransformerSpec(dim=64, ffn_dim=128, num_heads=2, num_layers=2, in_dim=16, out_dim=16, text_dim=64),
    vae=VaeSpec(dim=8),
    text_encoder=TextEncoderSpec(
        vocab_size=1024, dim=64, attention_dim=64, ffn_dim=128, num_heads=2, num_layers=2
    ),
)  # fmt: skip
MACHINE = Machine(device=torch.device("cpu"), architecture=TOY)
CAPTIONS = ("a red circle moving left", "a blue circle moving left", "a red square rising", "two green stars spinning")


def toy_settings(num_steps: int) -> Settings:
    experts = ExpertTraining(num_steps=num_steps, batch=16, wrong=0.0, learning_rate=3e-3, ema_decay=0.95)
    return replace(SMOKE, warmup_steps=10, log_every=10, experts=experts)


def toy_bank(tokenizer: Tokenizer, device: torch.device = MACHINE.device) -> Bank:
    """Four clips that differ in their mean, as colours do."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(4, 16, 1, 1, 1, generator=generator) + 0.5 * torch.randn(4, 16, 2, 4, 4, generator=generator)
    captions = token_rows(tokenizer, CAPTIONS, 32).unsqueeze(1).to(torch.int16)
    return Bank(latents.to(device), captions.to(device))


def train_toy(
    settings: Settings, tokenizer: Tokenizer, folder: Path, deadline: Deadline, machine: Machine = MACHINE
) -> tuple[Trainee, MovingAverage, bool]:
    trainee = new_trainee(settings, tokenizer, machine)
    journal = Journal(folder / "log.jsonl")
    bank = toy_bank(tokenizer, machine.device)
    average, done = train_experts(settings, trainee, bank, machine, Store(folder), journal, deadline)
    return trainee, average, done
