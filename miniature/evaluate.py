"""`python -m miniature.evaluate MODEL`: how well a miniature does what held-out captions say, read off its own videos.

Everything runs through the product's pipeline: its plan, its sampler, its loaders. A judge of classical vision reads
the frames (`judge.py`); before it is believed it reads rendered clips whose content is known. Writes `figures.json` and
a contact sheet, and prints the table of the model card.
"""

import argparse
import json
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from miniature.captions import held_out_captions
from miniature.clips import ClipSize, render
from miniature.contact_sheet import draw_contact_sheet
from miniature.judge import Reading, read_clip
from miniature.scenes import DIRECTIONS, MOTIONS, Scene
from wan_core.build import build_vae
from wan_core.checkpoint.find import find_model
from wan_core.checkpoint.vae import open_vae
from wan_core.component_plan import resolve_decode
from wan_core.hardware import Hardware
from wan_core.hooks import Silent
from wan_core.pipeline import WanPipeline
from wan_core.profiles import preset
from wan_core.recipes import Recipe, SampleRequest, VideoSize, recipe
from wan_core.report import Report
from wan_core.sample import Conditioning

ASPECTS = ("colour", "shape", "count", "motion")
_OFFICIAL = recipe("official-20")
# Boundary 0 is below every timestep and 1 above: one expert then takes all steps.
RECIPES = {
    "guidance 4/3": _OFFICIAL,
    "guidance 1": _OFFICIAL.with_changes(guidance_high=1.0, guidance_low=1.0),
    "high-noise expert alone": _OFFICIAL.with_changes(boundary=0.0),
    "low-noise expert alone": _OFFICIAL.with_changes(boundary=1.0),
}
_SHEET_ROWS = 12


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What to evaluate with, and on how much."""

    pipeline: WanPipeline
    size: VideoSize
    batch: int
    seed: int

    def videos(self, chosen: Recipe, captions: Sequence[str]) -> np.ndarray:
        """A video (3, T, H, W) in [-1, 1] of each caption, float16 (N, 3, T, H, W)."""
        batches = [captions[start : start + self.batch] for start in range(0, len(captions), self.batch)]
        return np.concatenate([self._batch(chosen, batch, index) for index, batch in enumerate(batches)])

    def _batch(self, chosen: Recipe, captions: Sequence[str], index: int) -> np.ndarray:
        pipeline = self.pipeline
        request = SampleRequest(recipe=chosen, seed=self.seed + index)
        plan = pipeline.plan(request, self.size, batch=len(captions))
        prompts = [pipeline.encode(plan, caption, report=Report()) for caption in captions]
        conditioning = Conditioning(
            positive=torch.cat([prompt.positive for prompt in prompts]), negative=prompts[0].negative
        )
        latent = pipeline.sample(plan, conditioning).latent
        chunks = [chunk.half().cpu() for chunk in pipeline.decode_chunks(plan, latent)]
        return torch.cat(chunks, dim=2).numpy()


def main() -> None:
    options = _parse()
    pipeline = WanPipeline(find_model(options.model), preset(options.profile))
    size = VideoSize(width=options.side, height=options.side, num_frames=options.frames)
    evaluation = Evaluation(pipeline, size, options.batch, options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        figures = evaluate(evaluation, options, pool)
    text = json.dumps(figures, indent=2) + "\n"
    (options.output / "figures.json").write_text(text, encoding="utf-8")
    print(to_table(figures))


def evaluate(evaluation: Evaluation, options: argparse.Namespace, pool: ProcessPoolExecutor) -> dict[str, object]:
    """All figures of the model card; draws the contact sheet on the way."""
    directed = held_out_captions(options.captions, options.seed)
    clips, rebuilt, psnr = real_clips(evaluation, [scene for scene, _ in directed][: options.real_clips], options.model)
    figures: dict[str, object] = {"captions": len(directed), "vae_psnr": psnr}
    scenes = [scene for scene, _ in directed]
    rows = {
        "rendered clips": adherence(scenes, clips, pool),
        "rendered clips through the VAE": adherence(scenes, rebuilt, pool),
    }
    for name, chosen in RECIPES.items():
        began = time.perf_counter()
        videos = evaluation.videos(chosen, [caption for _, caption in directed])
        rows[name] = adherence(scenes, videos, pool) | {"seconds": time.perf_counter() - began}
        if name == "guidance 4/3":
            captions = [caption for _, caption in directed[:_SHEET_ROWS]]
            draw_contact_sheet(options.output / "contact_sheet.png", captions, videos[:_SHEET_ROWS])
    others = tuple(motion for motion in MOTIONS if motion not in DIRECTIONS)
    kinds = held_out_captions(options.captions // 2, options.seed, motions=others)
    videos = evaluation.videos(_OFFICIAL, [caption for _, caption in kinds])
    rows["guidance 4/3, other kinds of motion"] = adherence([scene for scene, _ in kinds], videos, pool)
    return figures | {"adherence": rows}


def adherence(scenes: Iterable[Scene], videos: np.ndarray, pool: ProcessPoolExecutor) -> dict[str, float]:
    """Share of the videos that the judge reads as their scene says, by aspect and in all."""
    readings: list[Reading] = list(pool.map(read_clip, videos, chunksize=4))
    agreements = [reading.agrees_with(scene) for reading, scene in zip(readings, scenes, strict=False)]
    shares = {aspect: float(np.mean([agreement[aspect] for agreement in agreements])) for aspect in ASPECTS}
    return shares | {"all": float(np.mean([all(agreement.values()) for agreement in agreements]))}


def real_clips(evaluation: Evaluation, scenes: Sequence[Scene], model: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Rendered clips, the same through the VAE, and the mean PSNR in dB between them."""
    size, hardware = evaluation.size, Hardware.detect()
    source = open_vae(find_model(model).vae)
    vae = build_vae(resolve_decode(evaluation.pipeline.profile, hardware, source.spec, size.latent_size), source)
    clip_size = ClipSize(size.num_frames, size.height, size.width)
    real, rebuilt = [], []
    for scene in scenes:
        video = render([scene], clip_size, hardware.device)
        latent = torch.cat(list(vae.encode_chunks(video, None, Silent())), dim=2)
        real.append(video.cpu())
        rebuilt.append(torch.cat([chunk.float().cpu() for chunk in vae.decode_chunks(latent, None, Silent())], dim=2))
    clips, copies = torch.cat(real), torch.cat(rebuilt)
    psnr = 10 * torch.log10(4 / (clips - copies).square().mean(dim=(1, 2, 3, 4)))
    return clips.half().numpy(), copies.half().numpy(), float(psnr.mean())


def to_table(figures: dict[str, object]) -> str:
    """The figures as the model card shows them, in percent."""
    lines = [f"| {figures['captions']} held-out captions | {' | '.join((*ASPECTS, 'all'))} |", "|---" * 6 + "|"]
    for name, row in figures["adherence"].items():
        lines.append(f"| {name} | {' | '.join(f'{100 * row[aspect]:.1f}' for aspect in (*ASPECTS, 'all'))} |")
    return "\n".join([*lines, "", f"VAE reconstruction of held-out clips: {figures['vae_psnr']:.1f} dB PSNR"])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m miniature.evaluate", description="Evaluate a trained miniature.")
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder for the figures (default: output)")
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--real-clips", type=int, default=200, help="rendered clips for the judge and the VAE")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--profile", default="auto")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that judge")
    return parser.parse_args()


if __name__ == "__main__":
    main()
