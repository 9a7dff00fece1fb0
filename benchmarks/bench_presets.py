"""A memory preset with the real model, under a real limit of the card's size: whether it runs, and what it holds.

    python -m benchmarks.bench_presets MODEL --preset 24gb [--size 1280x720x81 --limit 24 --steps 4]

One video from prompt to frames in one process whose memory is limited by `torch.cuda.set_per_process_memory_fraction`:
prints the plan, and the report with what was predicted beside what was measured. `bench_memory` does many cases in a
minute with few blocks; this is the whole thing for one of them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.card import parsed_on_a_card
from wan_core.checkpoint.find import find_model
from wan_core.frames import levels, on_host
from wan_core.measure import measured_phase
from wan_core.pipeline import WanPipeline
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.report import Report, StepTiming

GIB = 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--preset", default="24gb")
    parser.add_argument("--size", default="1280x720x81")
    parser.add_argument("--limit", type=float, help="GiB (default: the number in the preset's name)")
    parser.add_argument(
        "--steps", type=int, default=4, help="half of them by each expert; the cost of the switch wants 4"
    )
    arguments = parsed_on_a_card(parser)
    limit = arguments.limit or float(arguments.preset.removesuffix("gb"))
    width, height, num_frames = map(int, arguments.size.split("x"))
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(limit * GIB / total, 1.0), 0)

    pipeline = WanPipeline(find_model(arguments.model), preset(arguments.preset))
    request = SampleRequest(recipe=recipe("draft").with_changes(num_steps=arguments.steps))
    plan = pipeline.plan(request, VideoSize(width=width, height=height, num_frames=num_frames))
    print(plan.to_text())
    report = Report()
    conditioning = pipeline.encode(plan, "a red circle moving right", report=report)
    latent = pipeline.sample(plan, conditioning, report=report).latent
    with measured_phase(report, "decode", plan.decode.device):
        num_decoded = sum(
            frames.shape[1] for frames in on_host(pipeline.decode_chunks(plan, latent, report=report), levels)
        )
    print(f"\n{num_decoded} frames under a limit of {limit:g} GiB")
    print(report.to_text())
    print(f"peak of what was reserved, in the last phase: {torch.cuda.max_memory_reserved() / GIB:.2f} GiB")
    for step in report.steps:
        print(f"step {step.index + 1}, {step.expert} noise: {step.seconds:.2f} s")
    print(switch_line(report.steps))
    measured = max(report.peak_bytes[name] for name in report.predicted_bytes)
    predicted = max(report.predicted_bytes.values())
    print(f"predicted {predicted / GIB:.2f} GiB, measured {measured / GIB:.2f}: {predicted / measured - 1:+.2%}")
    return 0 if 0 <= predicted / measured - 1 <= 0.05 else 1


def switch_line(steps: Sequence[StepTiming]) -> str:
    """What the steps around the switch between the experts take beyond normal ones, of which the last is one."""
    after = next((index for index, step in enumerate(steps) if step.expert != steps[0].expert), None)
    if after is None or after == len(steps) - 1:
        return "the switch: not measured, the second expert needs two steps or more"
    cost = steps[after - 1].seconds + steps[after].seconds - 2 * steps[-1].seconds
    return f"the switch costs {cost:+.2f} s (steps {after} and {after + 1}, compared with step {len(steps)})"


if __name__ == "__main__":
    sys.exit(main())
