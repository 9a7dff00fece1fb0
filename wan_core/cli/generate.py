"""`generate`: from a prompt to a video file, with the latent and the report beside it where asked."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from safetensors.torch import save
from torch import Tensor

from ..files import check_writable, replacing, write_safely
from ..frames import levels, on_host
from ..hooks import RunHooks
from ..measure import measured_peak
from ..pipeline import RunPlan, WanPipeline
from ..recipes import SampleRequest, VideoSize
from ..recovery.journal import DEFAULT_SAVE_SECONDS
from ..recovery.ladder import has_stepped_down
from ..recovery.state import RunState, read_state
from ..report import Report
from ..sample import Conditioning
from ..specs import T2V_A14B
from ..video import check_video_path, write_contact_sheet, write_video
from . import options, videos
from .progress import progress_hooks
from .unfinished import kept, open_journal, resumed_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model_options(parser)
    options.add_lora_options(parser)
    group = parser.add_argument_group("prompts")
    group.add_argument("--prompt", help="needed unless a run is resumed")
    group.add_argument("--negative", default="", help="empty: the model's own default negative prompt")
    videos.add_arguments(group)
    options.add_request_options(parser)
    options.add_profile_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, default=Path("video.mp4"), metavar="FILE.mp4")
    group.add_argument("--fps", type=int, default=T2V_A14B.fps, help="frames per second (default %(default)s)")
    group.add_argument("--latent-out", type=Path, metavar="FILE.safetensors", help="tensor `samples`, raw VAE space")
    group.add_argument("--report", type=Path, metavar="FILE.json")
    group.add_argument("--contact-sheet", type=Path, metavar="FILE.png")
    group = parser.add_argument_group("unfinished runs: the same command finds its own")
    group.add_argument(
        "--resume", type=Path, metavar="FILE", help="go on with a saved run; its other options are kept in the file"
    )
    group.add_argument(
        "--save-every", type=float, default=DEFAULT_SAVE_SECONDS, metavar="SECONDS",
        help="time between two states of a run on disk, beside the video (default %(default)g; 0: every step)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    # Everything that can be wrong with the request is found before the first byte of weights is read.
    saved = read_state(arguments.resume) if arguments.resume else None
    if saved:
        arguments = resumed_options(arguments, _defaults(), saved)
    jobs = videos.videos(arguments)
    profile = options.profile(arguments)
    for job in jobs:
        _check_outputs(job)
    requests = [options.request(job) for job in jobs]
    pipeline = WanPipeline(options.model_files(arguments), profile, device=arguments.device)
    pipeline.loras = options.loras(arguments, pipeline.pair.spec)
    refused = False
    for index, (job, request) in enumerate(zip(jobs, requests, strict=True)):
        later = [each.prompt for each in jobs[index + 1 :]]
        refused = _make(pipeline, job, request, later, saved) or refused
    return 1 if refused else 0


def _make(
    pipeline: WanPipeline,
    arguments: argparse.Namespace,
    request: tuple[SampleRequest, VideoSize],
    later: Sequence[str],
    saved: RunState | None,
) -> bool:
    """Make one video; whether a file was refused and is elsewhere. later: prompts of the videos that follow."""
    plan = pipeline.plan(*request)
    report = Report(settings=_settings(arguments), environment=pipeline.environment())
    report.warnings += pipeline.pair.notes
    estimate = pipeline.estimate(plan)
    with progress_hooks(estimate) as hooks:
        conditioning = _conditioning(pipeline, plan, arguments, later, hooks, report, saved)
        journal = open_journal(pipeline, plan, conditioning, arguments, report, saved)
        whole = journal.position is None
        with kept(journal):
            latent = pipeline.sample(plan, conditioning, hooks=hooks, report=report, journal=journal).latent
            outputs = _Outputs(arguments, report)
            outputs.save_latent(latent)
            with report.phase("save"):
                frames = outputs.save_video(_frames(pipeline, plan, latent, hooks, report))
        journal.discard()
    # The frames are written while they are decoded.
    report.seconds["save"] -= report.seconds["decode"]
    if whole and not has_stepped_down(report):
        pipeline.learn(estimate, report)
    report.decisions += plan.decode.decisions
    outputs.save_rest(frames)
    print(report.to_text())
    print(f"video: {outputs.video}")
    return outputs.refused


def _defaults() -> argparse.Namespace:
    """The options where none is given."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([])


def _conditioning(
    pipeline: WanPipeline,
    plan: RunPlan,
    arguments: argparse.Namespace,
    later: Sequence[str],
    hooks: RunHooks,
    report: Report,
    saved: RunState | None,
) -> Conditioning:
    """The prompts' embeddings: those of the saved run where its prompts still stand, so that no encoder is loaded."""
    if saved and all(getattr(arguments, name) == saved.facts.driver.get(name) for name in ("prompt", "negative")):
        return Conditioning(**saved.prompts)
    return pipeline.encode(plan, arguments.prompt, arguments.negative, ahead=later, hooks=hooks, report=report)


def _check_outputs(arguments: argparse.Namespace) -> None:
    check_video_path(arguments.out)
    others = ((arguments.latent_out, ".safetensors"), (arguments.contact_sheet, ".png"), (arguments.report, ".json"))
    for path, suffix in others:
        if path is not None:
            check_writable(path, suffix)


def _frames(
    pipeline: WanPipeline, plan: RunPlan, latent: Tensor, hooks: RunHooks, report: Report
) -> Iterator[np.ndarray]:
    chunks = on_host(pipeline.decode_chunks(plan, latent, hooks=hooks, report=report), levels)
    with measured_peak(report, "decode", plan.decode.device):
        while True:
            # Nothing is waited for but the frames themselves: while they are encoded, the device decodes the next.
            with report.phase("decode"):
                frames = next(chunks, None)
            if frames is None:
                return
            yield frames[0].numpy()


class _Outputs:
    """Writes what was asked for, each file where it was asked for or, where that is refused, where it is accepted."""

    def __init__(self, arguments: argparse.Namespace, report: Report) -> None:
        self._arguments = arguments
        self._report = report
        self.video: Path = arguments.out
        self.refused = False

    def save_latent(self, latent: Tensor) -> None:
        def write(path: Path) -> None:
            with replacing(path) as temporary:
                temporary.write_bytes(save({"samples": latent}))

        if self._arguments.latent_out:
            self._write(self._arguments.latent_out, write)

    def save_video(self, chunks: Iterator[np.ndarray]) -> list[np.ndarray]:
        """Write the video while it is decoded; returns its frames, which are kept until they are safe in a file."""
        frames: list[np.ndarray] = []

        def decoded() -> Iterator[np.ndarray]:
            # After a refusal: what there is already, then the rest.
            if frames:
                yield np.stack(frames)
            for chunk in chunks:
                frames.extend(chunk)
                yield chunk

        fps = Fraction(self._arguments.fps)
        self.video = self._write(self._arguments.out, lambda path: write_video(decoded(), path, fps=fps))
        return frames

    def save_rest(self, frames: list[np.ndarray]) -> None:
        """The contact sheet and the report."""

        def write_report(path: Path) -> None:
            with replacing(path) as temporary:
                temporary.write_text(self._report.to_json(), encoding="utf-8")

        if sheet := self._arguments.contact_sheet:
            self._write(sheet, lambda path: write_contact_sheet(frames, path))
        if report := self._arguments.report:
            self._write(report, write_report)

    def _write(self, path: Path, write: Callable[[Path], object]) -> Path:
        place = write_safely(path, write)
        if place != path:
            self.refused = True
            self._report.warnings.append(f"cannot write {str(path)!r}, so it is {str(place)!r} instead")
        return place


def _settings(arguments: argparse.Namespace) -> dict[str, object]:
    """What was asked for, as it was asked; paths by name only, since reports are shared."""
    shown = {name: value for name, value in vars(arguments).items() if value is not None and not callable(value)}
    return {name: _shown(value) for name, value in shown.items()}


def _shown(value: object) -> object:
    if isinstance(value, list):
        return [str(item) for item in value]
    return value.name if isinstance(value, Path) else value
