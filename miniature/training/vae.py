"""Stage one: the VAE, and the change of variables that puts its latents where Wan 2.1's are.

The transformers see (raw - mean) / std with the constants of the released model, and those constants stay. So after
the training the two 1x1x1 convolutions on either side of the latent take in an affine map per channel: the encoder's
makes a latent of zero mean and unit variance into one with the released model's statistics, the decoder's undoes it.
"""

from dataclasses import replace
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from miniature.clips import ClipSize, Painter, paint, render
from miniature.scenes import draw_scene
from wan_core.models.vae21 import WanVae
from wan_core.specs import LATENT_MEAN, LATENT_STD

from .initial import init_vae
from .journal import Journal
from .machine import Machine
from .optimiser import Optimiser
from .pace import Deadline, Pace
from .settings import Settings, VaeTraining
from .store import Store
from .whole_clip import WholeClip

_STATISTICS_BATCHES = 16
_SAVE_RESERVE = 15.0


def train_vae(settings: Settings, machine: Machine, store: Store, journal: Journal, deadline: Deadline) -> WanVae | None:
    """The trained VAE with its statistics folded in, or `None` where the deadline came first; resumes from the store."""
    options = settings.vae
    vae = new_vae(settings.seed, machine)
    if state := store.load("vae_done", machine):
        vae.load_state_dict(state)
        return vae
    pace = Pace(options.seconds, options.num_steps)
    optimiser = Optimiser({"vae": vae}, options.learning_rate)
    if state := store.load("vae", machine):
        vae.load_state_dict(state["vae"])
        optimiser.load_state_dict(state["optimiser"])
        pace.restore(state["pace"])
    clip, painter = machine.whole_clip(vae), machine.compiled(paint)
    while not pace.finished:
        batch, size = batch_at(options, pace.progress)
        video = draw_clips(f"vae {settings.seed} {pace.step}", batch, size, machine, painter)
        with machine.autocast():
            parts = losses(clip, video, options)
        kl_weight = options.kl_weight * min(pace.progress / options.kl_ramp, 1.0)
        total = parts["mse"] + options.absolute_weight * parts["l1"] + kl_weight * parts["kl"]
        norm = optimiser.step(total, pace, settings.warmup_steps)
        pace.tick()
        if pace.step % settings.log_every == 0:
            journal.write("vae", step=pace.step, seconds=pace.spent, **parts, gradient=norm)
        if deadline.passed(_SAVE_RESERVE) and not pace.finished:
            store.save("vae", {"vae": vae.state_dict(), "optimiser": optimiser.state_dict(), "pace": pace.state()})
            return None
    mean, std = latent_statistics(clip, settings, machine, painter)
    journal.write("vae statistics", least_std=std.min(), largest_std=std.max(), steps=pace.step, seconds=pace.spent)
    fold_statistics(vae, mean, std.clamp(min=options.least_std))
    round_to_bfloat16(vae)
    journal.write("vae quality", psnr=held_out_psnr(clip, settings, machine, painter))
    store.save("vae_done", vae.state_dict())
    return vae


def new_vae(seed: int, machine: Machine) -> WanVae:
    """An untrained VAE, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = WanVae(machine.architecture.vae)
        init_vae(vae)
    return vae.to(machine.device)


def batch_at(options: VaeTraining, progress: float) -> tuple[int, ClipSize]:
    """Batch and size of the clips: short ones first, then long ones, of about the same number of frames in all."""
    if progress < options.long_after:
        return options.batch, options.size
    frames = options.batch * options.size.num_frames
    return max(frames // options.long_size.num_frames, 1), options.long_size


def draw_clips(
    seed: str, batch: int, size: ClipSize, machine: Machine, painter: Painter, *, held_out: bool = False
) -> Tensor:
    """Clips of the training world, or of the held-out one."""
    rng = Random(seed)
    return render([draw_scene(rng, held_out=held_out) for _ in range(batch)], size, machine.device, painter)


def losses(clip: WholeClip, video: Tensor, options: VaeTraining) -> dict[str, Tensor]:
    """Errors of a reconstruction through a sampled latent, and the mean divergence per element of the latent."""
    mean, log_variance = clip.encode(video)
    log_variance = log_variance.clamp(-20, 10)
    latent = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    error = clip.decode(latent) - video
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return {"mse": error.square().mean(), "l1": error.abs().mean(), "kl": kl}


@torch.no_grad()
def latent_statistics(clip: WholeClip, settings: Settings, machine: Machine, painter: Painter) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel of the latent, each (16,)."""
    options = replace(settings.vae, long_after=0.0)
    batch, size = batch_at(options, 1.0)
    means = []
    for index in range(_STATISTICS_BATCHES):
        video = draw_clips(f"statistics {settings.seed} {index}", batch, size, machine, painter)
        with machine.autocast():
            means.append(clip.encode(video)[0])
    latents = torch.cat(means).transpose(0, 1).flatten(1)
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
def round_to_bfloat16(module: torch.nn.Module) -> None:
    """What is trained on top of these weights then meets them as they are shipped."""
    for parameter in module.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))


@torch.no_grad()
def held_out_psnr(clip: WholeClip, settings: Settings, machine: Machine, painter: Painter) -> float:
    """Mean PSNR in dB over held-out clips of the long size, peak to peak 2."""
    batch, size = batch_at(replace(settings.vae, long_after=0.0), 1.0)
    values = []
    for index in range(4):
        video = draw_clips(f"held out {settings.seed} {index}", batch, size, machine, painter, held_out=True)
        with machine.autocast():
            seen = clip.decode(clip.encode(video)[0]).clamp(-1, 1)
        values.append(10 * torch.log10(4 / F.mse_loss(seen, video, reduction="none").mean(dim=(1, 2, 3, 4))))
    return float(torch.cat(values).mean())
