"""From a prompt to an MP4 in a warm process: what a run takes beside its transformer steps, and where.

    python -m benchmarks.bench_whole_run MODEL [--size 1280x720x81 --steps 6 --profile auto --device cpu --json FILE]

A first run of two steps, one by each expert, loads, builds and times everything; the second one, of another prompt, is
measured, from the prompt to the closed file. "Beside the steps" is its whole time less as many normal steps (the median
of its steps) as it has: what a step takes more at the start and around the switch between the experts counts as beside.
That does not depend on the number of steps, so a few stand for forty. The negative prompt is the same in both runs and
its embedding is remembered, as it is in the product.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from torch import Tensor

from wan_core.checkpoint.find import find_model
from wan_core.frames import levels, on_host
from wan_core.pipeline import RunPlan, WanPipeline
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.report import Report
from wan_core.video import write_video

SHIFT = 5.0  # half of the steps by each expert, so that two are enough to load both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--size", default="1280x720x81")
    parser.add_argument("--steps", type=int, default=6, help="of the measured run; a warm-up of two comes before")
    parser.add_argument("--profile", default="auto")
    parser.add_argument("--device")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the seconds and the versions as well")
    arguments = parser.parse_args()
    width, height, num_frames = map(int, arguments.size.split("x"))
    size = VideoSize(width=width, height=height, num_frames=num_frames)
    pipeline = WanPipeline(find_model(arguments.model), preset(arguments.profile), device=arguments.device)
    environment = pipeline.environment()
    print(", ".join(f"{name} {version}" for name, version in environment.items()))
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder, "video.mp4")
        _, cold = run(pipeline, "a red circle moving right", size, 2, video)
        report, whole = run(pipeline, "a blue square that turns slowly", size, arguments.steps, video)
    print(f"first run, two steps, with loading: {cold:.2f} s\n{report.to_text()}\n")
    steps = [step.seconds for step in report.steps]
    parts = beside_steps(whole, steps, report.seconds)
    print(f"{arguments.size}, second run: {whole:.2f} s, {len(steps)} steps of {median(steps):.3f} s")
    print("steps: " + ", ".join(f"{seconds:.3f}" for seconds in steps))
    print("\n".join(f"  {name:<34}{seconds:8.3f} s" for name, seconds in parts.items()))
    print(f"beside the steps: {sum(parts.values()):.2f} s")
    if arguments.json:
        facts = {"size": arguments.size, "environment": environment, "first_run": cold, "whole": whole}
        arguments.json.write_text(json.dumps(facts | {"steps": steps, "beside_steps": parts}, indent=1))


def run(pipeline: WanPipeline, prompt: str, size: VideoSize, num_steps: int, video: Path) -> tuple[Report, float]:
    """One video as `generate` makes it; its report, and its seconds from the prompt to the closed file."""
    start = perf_counter()
    request = SampleRequest(recipe=recipe("official").with_changes(num_steps=num_steps, shift=SHIFT), seed=1)
    plan, report = pipeline.plan(request, size), Report()
    conditioning = pipeline.encode(plan, prompt, report=report)
    with report.phase("build, load and sample"):
        latent = pipeline.sample(plan, conditioning, report=report).latent
    with report.phase("decode and MP4"):
        write_video(_frames(pipeline, plan, latent, report), video)
    return report, perf_counter() - start


def _frames(pipeline: WanPipeline, plan: RunPlan, latent: Tensor, report: Report) -> Iterator[np.ndarray]:
    for frames in on_host(pipeline.decode_chunks(plan, latent, report=report), levels):
        yield frames[0].numpy()


def beside_steps(whole: float, steps: list[float], seconds: Mapping[str, float]) -> dict[str, float]:
    """What a run took beside its normal steps, part by part. seconds: of its phases; they sum to the difference."""
    normal = len(steps) * median(steps)
    sampling, ready = seconds["build, load and sample"], seconds["build"] + seconds["load"]
    named = {"text": seconds["text"], "the first expert made ready": ready}
    named["first step, and the switch"] = sum(steps) - normal
    named["around the steps"] = sampling - ready - sum(steps)
    named["decode and MP4"] = seconds["decode and MP4"]
    return named | {"plan, and the rest": whole - normal - sum(named.values())}


if __name__ == "__main__":
    main()
