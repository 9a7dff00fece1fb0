"""Stage two: clips of the training world as latents in model space, with their captions as tokens, coded once.

Coding a clip costs several times what a training step spends on it, so the experts draw from a bank, clip and caption
apart. Every part has a seed of its own and is a file of its own: a bank is resumed, and is the same however made.
"""

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from miniature.captions import describe
from miniature.clips import Painter, paint, render
from miniature.scenes import draw_scene
from wan_core.models.tokenizer import Tokenizer
from wan_core.models.vae21 import WanVae
from wan_core.sampling.noise import to_model_space

from .journal import Journal
from .machine import Machine
from .pace import Deadline
from .settings import BankSettings, Settings
from .store import Store
from .text import token_rows
from .whole_clip import WholeClip

HELD_OUT_PART = "bank_held_out"


@dataclass(frozen=True, slots=True)
class Bank:
    """Latents (N, 16, T, H, W) in model space, and token ids (N, wordings, L) int16."""

    latents: Tensor
    captions: Tensor

    def draw(self, count: int, wrong: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random latents, float32, and the ids of one wording each; a share `wrong` gets another clip's caption."""
        total, wordings, _ = self.captions.shape
        device = self.latents.device
        index = torch.randint(total, (count,), generator=generator, device=device)
        other = torch.randint(total, (count,), generator=generator, device=device)
        wording = torch.randint(wordings, (count,), generator=generator, device=device)
        mistaken = torch.rand(count, generator=generator, device=device) < wrong
        ids = self.captions[torch.where(mistaken, other, index), wording]
        return self.latents[index].float(), ids.long()


def build_bank(
    settings: Settings, vae: WanVae, tokenizer: Tokenizer, machine: Machine, store: Store, deadline: Deadline,
    journal: Journal,
) -> bool:  # fmt: skip
    """Write every part that the store lacks; `False` where the deadline came first."""
    options = settings.bank
    missing = [name for name in (*part_names(options), HELD_OUT_PART) if not store.has(name)]
    if not missing:
        return True
    clip, painter = machine.whole_clip(vae), machine.compiled(paint)
    for name in missing:
        if deadline.passed():
            return False
        held_out = name == HELD_OUT_PART
        count = options.held_out_clips if held_out else options.part_clips
        rng = Random(f"{name} {settings.seed}")
        pieces = []
        while sum(len(latents) for latents, _ in pieces) < count:
            pieces.append(_piece(rng, options, clip, painter, tokenizer, machine, held_out=held_out))
        latents, ids = (torch.cat(parts)[:count] for parts in zip(*pieces, strict=True))
        store.save(name, {"latents": latents.cpu(), "captions": ids})
        journal.write("bank", part=name, mean=latents.float().mean(), std=latents.float().std())
    return True


def load_bank(options: BankSettings, machine: Machine, store: Store, *, held_out: bool = False) -> Bank:
    """The bank, or its held-out part, on the device."""
    names = [HELD_OUT_PART] if held_out else part_names(options)
    parts = [store.load(name, machine) for name in names]
    return Bank(torch.cat([part["latents"] for part in parts]), torch.cat([part["captions"] for part in parts]))


def part_names(options: BankSettings) -> list[str]:
    return [f"bank_{index:03d}" for index in range(-(-options.num_clips // options.part_clips))]


@torch.no_grad()
def _piece(
    rng: Random, options: BankSettings, clip: WholeClip, painter: Painter, tokenizer: Tokenizer, machine: Machine, *,
    held_out: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    scenes = [draw_scene(rng, held_out=held_out) for _ in range(options.batch)]
    captions = [describe(scene, rng) for scene in scenes for _ in range(options.captions)]
    video = render(scenes, options.size, machine.device, painter)
    with machine.autocast():
        latents = to_model_space(clip.encode(video)[0]).to(machine.compute_dtype)
    ids = token_rows(tokenizer, captions, options.caption_tokens).unflatten(0, (len(scenes), options.captions))
    return latents, ids.to(torch.int16)
