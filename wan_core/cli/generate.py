"""`generate`: from a prompt to a video file, with the latent and the report beside it where asked."""

import argparse
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from ..files import check_writable, replacing
from ..frames import levels, on_host
from ..hooks import RunHooks
from ..measure import measured_peak
from ..pipeline import RunPlan, WanPipeline
from ..report import Report
from ..specs import T2V_A14B
from ..video import check_video_path, write_contact_sheet, write_video
from . import options
from .progress import progress_hooks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model_options(parser)
    options.add_lora_options(parser)
    group = parser.add_argument_group("prompts")
    group.add_argument("--prompt", required=True)
    group.add_argument("--negative", default="", help="empty: the model's own default negative prompt")
    options.add_request_options(parser)
    options.add_profile_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, default=Path("video.mp4"), metavar="FILE.mp4")
    group.add_argument("--fps", type=int, default=T2V_A14B.fps, help="frames per second (default %(default)s)")
    group.add_argument("--latent-out", type=Path, metavar="FILE.safetensors", help="tensor `samples`, raw VAE space")
    group.add_argument("--report", type=Path, metavar="FILE.json")
    group.add_argument("--contact-sheet", type=Path, metavar="FILE.png")


def run(arguments: argparse.Namespace) -> int:
    # Everything that can be wrong with the request is found before the first byte of weights is read.
    profile = options.profile(arguments)
    request, size = options.request(arguments)
    _check_outputs(arguments)
    pipeline = WanPipeline(options.model_files(arguments), profile, device=arguments.device)
    pipeline.loras = options.loras(arguments, pipeline.pair.spec)
    plan = pipeline.plan(request, size)
    report = Report(settings=_settings(arguments), environment=pipeline.environment())
    report.warnings += pipeline.pair.notes
    estimate = pipeline.estimate(plan)
    with progress_hooks(estimate) as hooks:
        conditioning = pipeline.encode(plan, arguments.prompt, arguments.negative, hooks=hooks, report=report)
        latent = pipeline.sample(plan, conditioning, hooks=hooks, report=report).latent
        if arguments.latent_out:
            with replacing(arguments.latent_out) as path:
                save_file({"samples": latent}, path)
        with report.phase("save"):
            frames = _write(arguments, _frames(pipeline, plan, latent, hooks, report))
    # The frames are written while they are decoded.
    report.seconds["save"] -= report.seconds["decode"]
    pipeline.learn(estimate, report)
    report.decisions += plan.decode.decisions
    if arguments.contact_sheet:
        write_contact_sheet(frames, arguments.contact_sheet)
    if arguments.report:
        with replacing(arguments.report) as path:
            path.write_text(report.to_json(), encoding="utf-8")
    print(report.to_text())
    print(f"video: {arguments.out}")
    return 0


def _check_outputs(arguments: argparse.Namespace) -> None:
    check_video_path(arguments.out)
    others = ((arguments.latent_out, ".safetensors"), (arguments.contact_sheet, ".png"), (arguments.report, ".json"))
    for path, suffix in others:
        if path is not None:
            check_writable(path, suffix)


def _frames(
    pipeline: WanPipeline, plan: RunPlan, latent: Tensor, hooks: RunHooks, report: Report
) -> Iterator[np.ndarray]:
    chunks = on_host(pipeline.decode_chunks(plan, latent, hooks=hooks), levels)
    with measured_peak(report, "decode", plan.decode.device):
        while True:
            # Nothing is waited for but the frames themselves: while they are encoded, the device decodes the next.
            with report.phase("decode"):
                frames = next(chunks, None)
            if frames is None:
                return
            yield frames[0].numpy()


def _write(arguments: argparse.Namespace, chunks: Iterator[np.ndarray]) -> list[np.ndarray]:
    """Write the video while it is decoded; returns the frames only where a contact sheet needs them."""
    kept: list[np.ndarray] = []

    def watched() -> Iterator[np.ndarray]:
        for chunk in chunks:
            if arguments.contact_sheet:
                kept.extend(chunk)
            yield chunk

    write_video(watched(), arguments.out, fps=Fraction(arguments.fps))
    return kept


def _settings(arguments: argparse.Namespace) -> dict[str, object]:
    """What was asked for, as it was asked; paths by name only, since reports are shared."""
    shown = {name: value for name, value in vars(arguments).items() if value is not None and not callable(value)}
    return {name: _shown(value) for name, value in shown.items()}


def _shown(value: object) -> object:
    if isinstance(value, list):
        return [str(item) for item in value]
    return value.name if isinstance(value, Path) else value
