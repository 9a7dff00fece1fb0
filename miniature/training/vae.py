"""Stage one: the VAE, and the change of variables that puts its latents where Wan 2.1's are.

The transformers see (raw - mean) / std with the constants of the released model, and those constants stay. So after
the training the two 1x1x1 convolutions on either side of the latent take in an affine map per channel: the encoder's
makes a latent of zero mean and unit variance into one with the released model's statistics, the decoder's undoes it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from random import Random

import torch
from torch import Tensor

from miniature.clips import ClipSize, Painter, SceneNumbers, numbers, paint
from miniature.scenes import draw_scene
from wan_core.models.vae21 import WanVae
from wan_core.specs import LATENT_MEAN, LATENT_STD

from .captured import CapturedStep
from .initial import init_vae
from .journal import Journal
from .machine import Machine
from .optimiser import Optimiser
from .pace import Deadline, Pace
from .settings import Settings, VaeTraining
from .store import Store
from .whole_clip import WholeClip

VAE_DONE = "vae_done"
_SAVE_RESERVE = 15.0
_STATISTICS_BATCHES = 16
_HELD_OUT_BATCHES = 8
_HELD_OUT_SCENES = 64


@dataclass(frozen=True, slots=True)
class ClipSource:
    """Endless clips of a fixed number of scenes, drawn on the device."""

    scenes: SceneNumbers
    painter: Painter

    def draw(self, generator: torch.Generator, batch: int, size: ClipSize, window: int | None = None) -> Tensor:
        """Clips (B, 3, T, H, W), or one window of them of `window` rows and columns, the same for the whole batch."""
        device = self.scenes.fill.device
        index = torch.randint(len(self.scenes.fill), (batch,), generator=generator, device=device)
        video = self.painter(SceneNumbers(*(part[index] for part in self.scenes)), size)
        if window is None:
            return video
        # By an index on the device: a position that the host knows would be the same in every replay of a step.
        rows, columns = (
            torch.randint(side - window + 1, (1,), generator=generator, device=device)
            + torch.arange(window, device=device)
            for side in (size.height, size.width)
        )
        return video.index_select(-2, rows).index_select(-1, columns)


def train_vae(
    settings: Settings, machine: Machine, store: Store, journal: Journal, deadline: Deadline
) -> WanVae | None:
    """The trained VAE, its statistics folded in, or `None` where the deadline came first; resumes from the store."""
    options, vae = settings.vae, new_vae(settings.seed, machine)
    if state := store.load(VAE_DONE, machine):
        vae.load_state_dict(state)
        return vae
    pace = Pace(options.num_steps)
    optimiser = Optimiser({"vae": vae}, options.learning_rate)
    if state := store.load("vae", machine):
        vae.load_state_dict(state["vae"])
        optimiser.load_state_dict(state["optimiser"])
        pace.restore(state["pace"])
    clip, painter = machine.whole_clip(vae), machine.compiled(paint)
    source = clip_source(f"vae {settings.seed}", options.num_scenes, machine, painter)
    generator, price = torch.Generator(machine.device), torch.zeros((), device=machine.device)

    def step(*, whole: bool) -> dict[str, Tensor]:
        with machine.autocast():
            parts = losses(clip, draw_batch(source, options, generator, whole=whole), generator)
        loss = parts["mse"] + options.absolute_weight * parts["l1"] + price * parts["kl"]
        return parts | {"gradient": optimiser.step(loss)}

    captured, whole = CapturedStep(partial(step, whole=False), generator, captures=machine.records), False
    while not pace.finished:
        if pace.progress >= options.whole_after and not whole:
            captured, whole = CapturedStep(partial(step, whole=True), generator, captures=machine.records), True
            pace.expect_compilation()
        generator.manual_seed(settings.seed * 1_000_003 + pace.step)
        optimiser.set_pace(pace, settings.warmup_steps)
        price.fill_(options.kl_weight * min(pace.progress / options.kl_ramp, 1.0))
        values = captured()
        pace.tick()
        if pace.step % settings.log_every == 0:
            journal.write_losses("vae", pace, values)
        if deadline.passed(_SAVE_RESERVE) and not pace.finished:
            store.save("vae", {"vae": vae.state_dict(), "optimiser": optimiser.state_dict(), "pace": pace.state()})
            return None
    # Not the compiled clip: a few batches without gradients are not worth their graphs.
    finish(WholeClip(vae), source, settings, machine, journal)
    store.save(VAE_DONE, vae.state_dict())
    return vae


def new_vae(seed: int, machine: Machine) -> WanVae:
    """An untrained VAE, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = WanVae(machine.architecture.vae)
        init_vae(vae)
    return vae.to(machine.device)


def clip_source(
    seed: str, num_scenes: int, machine: Machine, painter: Painter, *, held_out: bool = False
) -> ClipSource:
    """Scenes of the training world, or of the held-out one."""
    rng = Random(seed)
    return ClipSource(numbers([draw_scene(rng, held_out=held_out) for _ in range(num_scenes)], machine.device), painter)


def draw_batch(source: ClipSource, options: VaeTraining, generator: torch.Generator, *, whole: bool) -> Tensor:
    """Many small windows, or a few whole pictures of the default video's length."""
    if not whole:
        return source.draw(generator, options.batch, options.size, options.window)
    return source.draw(generator, options.whole_batch, options.whole_size)


def losses(clip: WholeClip, video: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Errors of a reconstruction through a sampled latent, and the mean divergence per element of the latent."""
    mean, log_variance = clip.encode(video)
    log_variance = log_variance.clamp(-20, 10)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    error = clip.decode(mean + torch.exp(0.5 * log_variance) * noise) - video
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return {"mse": error.square().mean(), "l1": error.abs().mean(), "kl": kl}


@torch.no_grad()
def finish(clip: WholeClip, source: ClipSource, settings: Settings, machine: Machine, journal: Journal) -> None:
    """Fold the statistics in, round the weights as they are shipped, and say how good they are."""
    mean, std = latent_statistics(clip, source, settings, machine)
    journal.write("vae statistics", least_std=std.min(), largest_std=std.max())
    fold_statistics(clip.vae, mean, std.clamp(min=settings.vae.least_std))
    for parameter in clip.vae.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))
    journal.write("vae quality", psnr=held_out_psnr(clip, source.painter, settings, machine))


@torch.no_grad()
def latent_statistics(
    clip: WholeClip, source: ClipSource, settings: Settings, machine: Machine
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel of the latent, each (16,)."""
    videos = _whole_batches(source, settings, machine, _STATISTICS_BATCHES)
    with machine.autocast():
        means = torch.cat([clip.encode(video)[0] for video in videos])
    latents = means.transpose(0, 1).flatten(1)
    return latents.mean(1), latents.std(1)


@torch.no_grad()
def fold_statistics(vae: WanVae, mean: Tensor, std: Tensor) -> None:
    """Make latents of statistics `mean` and `std` (16,) into latents of Wan 2.1's, and decode those to the same."""
    channels = len(mean)
    scale = torch.tensor(LATENT_STD, device=mean.device) / std
    shift = torch.tensor(LATENT_MEAN, device=mean.device) - mean * scale
    out, back = vae.conv1, vae.conv2
    out.weight[:channels] *= scale.view(-1, 1, 1, 1, 1)
    out.bias[:channels] = out.bias[:channels] * scale + shift
    # The second half are log variances: those of the scaled latent.
    out.bias[channels:] += 2 * scale.log()
    back.bias -= back.weight.flatten(1) @ (shift / scale)
    back.weight /= scale.view(1, -1, 1, 1, 1)


@torch.no_grad()
def held_out_psnr(clip: WholeClip, painter: Painter, settings: Settings, machine: Machine) -> float:
    """Mean PSNR in dB over held-out clips as long as the default video, peak to peak 2."""
    source = clip_source(f"held out {settings.seed}", _HELD_OUT_SCENES, machine, painter, held_out=True)
    values = []
    for video in _whole_batches(source, settings, machine, _HELD_OUT_BATCHES):
        with machine.autocast():
            error = clip.decode(clip.encode(video)[0]).clamp(-1, 1) - video
        values.append(10 * torch.log10(4 / error.square().mean(dim=(1, 2, 3, 4))))
    return float(torch.cat(values).mean())


def _whole_batches(source: ClipSource, settings: Settings, machine: Machine, count: int) -> Iterator[Tensor]:
    generator = torch.Generator(machine.device).manual_seed(settings.seed)
    for _ in range(count):
        yield source.draw(generator, settings.vae.whole_batch, settings.vae.whole_size)
