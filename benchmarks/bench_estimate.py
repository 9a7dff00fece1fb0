"""How near the whole-run estimate comes: one pipeline at several sizes, each a few times, predicted before each run.

    python -m benchmarks.bench_estimate --model DIR --sizes 480x272x33 832x480x33 832x480x81 --runs 4 --steps 4
    python -m benchmarks.bench_estimate --sizes 64x64x5 96x96x9 128x128x9 96x160x13 128x128x17 --device cpu

Starts from an empty history of its own. Without --model it writes and runs the miniature. With --keep FILE.json it also
writes down what each part was expected to take and took, which is what `tests/unit/test_estimate.py` replays. With
--cpu-time seconds are those of this process on the CPU, so that neighbours on a shared machine count for less. Two
columns show neighbours: "host busy" is the share of all cores during a run, "stolen" what a virtual machine's host gave
to others in that time, in percent of the time of one core.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, process_time
from unittest.mock import patch

import psutil

from miniature.write import write_miniature
from wan_core.checkpoint.find import find_model
from wan_core.estimate import observed
from wan_core.frames import levels, on_host
from wan_core.pipeline import WanPipeline
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.report import Report
from wan_core.video import write_video


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["WAN_VELOCITY_CACHE"] = scratch
        folder = arguments.model or Path(scratch, "miniature")
        if arguments.model is None:
            write_miniature(folder)
        clock = process_time if arguments.cpu_time else perf_counter
        with patch("wan_core.report.perf_counter", clock), patch("wan_core.steps.perf_counter", clock):
            kept = list(_runs(arguments, folder, Path(scratch, "video.mp4"), clock))
    if arguments.keep:
        lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in kept)
        arguments.keep.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="DIR", help="default: the miniature")
    parser.add_argument("--sizes", nargs="+", required=True, metavar="WxHxF")
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--profile", default="auto")
    parser.add_argument("--device")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--keep", type=Path, metavar="FILE.json")
    return parser.parse_args()


def _runs(arguments: argparse.Namespace, folder: Path, video: Path, clock: Callable[[], float]) -> Iterator[dict]:
    chosen = recipe("official").with_changes(num_steps=arguments.steps, shift=5.0)
    pipeline = WanPipeline(find_model(folder), preset(arguments.profile), device=arguments.device)
    print("| size | run | predicted | took | error | from | host busy | stolen |\n" + "|---" * 8 + "|")
    # All sizes once, then all of them again: what one size leaves in the caches is not another size's gain alone.
    for run in range(arguments.runs):
        for text in arguments.sizes:
            width, height, frames = map(int, text.split("x"))
            size = VideoSize(width=width, height=height, num_frames=frames)
            request = SampleRequest(recipe=chosen, seed=run)
            plan = pipeline.plan(request, size)
            estimate, report = pipeline.estimate(plan), Report()
            psutil.cpu_percent()  # from here on; neighbours that come or go make a run's time their own
            stolen, since, start = _stolen(), perf_counter(), clock()
            conditioning = pipeline.encode(plan, f"a red circle, {run}, {text}", report=report)
            latent = pipeline.sample(plan, conditioning, report=report).latent
            with report.phase("save"):
                write_video(_frames(pipeline, plan, latent, report), video)
            report.seconds["save"] -= report.seconds["decode"]
            took, stolen = clock() - start, (_stolen() - stolen) / (perf_counter() - since)
            pipeline.learn(estimate, report)
            error = estimate.seconds / took - 1.0
            basis = f"{estimate.runs} runs" if estimate.runs else "/".join({part.source for part in estimate.parts})
            shown = f"{estimate.seconds:.2f} s | {took:.2f} s | {error:+.0%} | {basis}"
            print(f"| {text} | {run + 1} | {shown} | {psutil.cpu_percent():.0f}% | {stolen:.1%} |", flush=True)
            yield {
                "size": text,
                "took": round(took, 6),
                "parts": [
                    {"kind": part.task.kind, "size": part.task.size, "work": part.task.work, "count": part.count,
                     "seconds": round(seconds, 6)}
                    for part, seconds in observed(estimate.parts, report)
                ],
            }  # fmt: skip


def _stolen() -> float:
    """Seconds since the start that a virtual machine wanted and did not get; 0 where nobody says."""
    return getattr(psutil.cpu_times(), "steal", 0.0)


def _frames(pipeline: WanPipeline, plan: object, latent: object, report: Report) -> Iterator:
    chunks = on_host(pipeline.decode_chunks(plan, latent), levels)
    while True:
        with report.phase("decode"):
            frames = next(chunks, None)
        if frames is None:
            return
        yield frames[0].numpy()


if __name__ == "__main__":
    main()
