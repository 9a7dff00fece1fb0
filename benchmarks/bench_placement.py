"""What it costs to keep weights off the GPU: a step, the switch between the experts and the memory, by placement.

    python -m benchmarks.bench_placement MODEL [--size 1280x720x81] [--placements stream,experts,resident]
        [--limit-gib 24] [--profile exact] [--out FILE.json]
    python -m benchmarks.bench_placement FP8_MODEL --placements resident,resident:file,stream:file

Each placement samples the same latent in four steps, two by each expert. The last step is a normal one, and what the
two steps around the switch take more than it is what the switch costs. Streamed are all blocks, under a limit for the
whole process; the latents of all placements are compared bit for bit. Weights are read once, by the first placement.
With `:file` they stay as their file stores them, else they are decoded while they are loaded; where that changes they
are read again.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from wan_core.checkpoint.find import find_model
from wan_core.pipeline import RunPlan, WanPipeline
from wan_core.placement import Placement
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.report import Report
from wan_core.sample import Conditioning
from wan_core.specs import TransformerSpec

REQUEST = SampleRequest(recipe=recipe("official").with_changes(num_steps=4, shift=5.0), seed=1)
DEVICE = "cuda:0"
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One placement. normal_step, switch_cost: seconds; peaks: GiB that the tensors of a phase took at once."""

    placement: str
    streamed_blocks: int
    limit_gib: float | None
    steps: tuple[float, ...]
    normal_step: float
    switch_cost: float
    load_seconds: float
    load_peak_gib: float
    sample_peak_gib: float
    reserved_gib: float
    host_copies_gib: float
    pinned_gib: float
    differs: float
    notes: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--size", default="1280x720x81")
    parser.add_argument("--placements", default="stream,experts,resident")
    parser.add_argument("--limit-gib", type=float, default=24.0, help="for streaming; 0 for none")
    parser.add_argument("--profile", default="exact")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    width, height, num_frames = map(int, arguments.size.split("x"))
    size = VideoSize(width=width, height=height, num_frames=num_frames)
    profile = preset(arguments.profile).with_settings({"guidance.execution": "sequential"})
    pipeline = WanPipeline(find_model(arguments.model), profile, device=DEVICE)
    results = list(measure(pipeline, size, arguments.placements.split(","), arguments.limit_gib))
    print(table(results), flush=True)
    if arguments.out is not None:
        facts = {"size": arguments.size, "profile": profile.name, "environment": pipeline.environment()}
        arguments.out.write_text(json.dumps(facts | {"results": [asdict(each) for each in results]}, indent=1))


def measure(pipeline: WanPipeline, size: VideoSize, policies: Sequence[str], limit_gib: float) -> Iterator[Result]:
    """One result for each placement, as soon as it is there."""
    first: Tensor | None = None
    for policy in policies:
        limit = limit_gib if policy.startswith("stream") and limit_gib else None
        total = torch.cuda.get_device_properties(DEVICE).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0 if limit is None else limit * GIB / total, DEVICE)
        result, latent = run(pipeline, size, policy, first)
        first = latent if first is None else first
        result = replace(result, limit_gib=limit)
        print(json.dumps(asdict(result)), flush=True)
        yield result


def run(pipeline: WanPipeline, size: VideoSize, asked: str, first: Tensor | None) -> tuple[Result, Tensor]:
    """Four steps under one placement ("policy" or "policy:file"), and how far its latent is from the first one's."""
    policy, _, storage = asked.partition(":")
    storage = storage or "compute"
    streamed = pipeline.pair.spec.num_layers if policy == "stream" else 0
    pipeline.profile = pipeline.profile.with_settings({"precision.storage": storage})
    placement = Placement(policy=policy, streamed_blocks=streamed, storage=storage)
    plan = placed(pipeline.plan(REQUEST, size), placement)
    report = Report()
    latent = pipeline.sample(plan, conditioning(pipeline.pair.spec), report=report).latent
    held = pipeline._experts.weights.values()
    steps = tuple(step.seconds for step in report.steps)
    normal = steps[-1]
    result = Result(
        placement=asked,
        streamed_blocks=streamed,
        limit_gib=None,
        steps=steps,
        normal_step=normal,
        switch_cost=steps[1] + steps[2] - 2 * normal,
        load_seconds=report.seconds["load"],
        load_peak_gib=report.peak_bytes["load"] / GIB,
        sample_peak_gib=report.peak_bytes["sample"] / GIB,
        reserved_gib=torch.cuda.memory_reserved(DEVICE) / GIB,
        host_copies_gib=sum(weights.bytes_on_host for weights in held) / GIB,
        pinned_gib=sum(weights.bytes_pinned for weights in held) / GIB,
        differs=0.0 if first is None else (latent - first).abs().max().item(),
        notes=tuple(report.warnings),
    )
    return result, latent


def placed(plan: RunPlan, placement: Placement) -> RunPlan:
    """The plan with another placement, whatever the memory says."""
    return replace(plan, experts=replace(plan.experts, binding=replace(plan.experts.binding, placement=placement)))


def conditioning(spec: TransformerSpec) -> Conditioning:
    """Embeddings as large as those of real prompts."""
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 1, spec.text_len, spec.text_dim, generator=generator).mul(0.1)
    return Conditioning(positive=positive, negative=negative)


def table(results: Sequence[Result]) -> str:
    """The results side by side."""
    columns = ("placement", "s/step", "switch, s", "peak, GiB", "reserved", "pinned", "load, s", "differs")
    rows = [f"| {' | '.join(columns)} |", "|-" * len(columns) + "|"]
    for each in results:
        name = each.placement if each.limit_gib is None else f"{each.placement}, at most {each.limit_gib:g} GiB"
        rows.append(
            f"| {name} | {each.normal_step:.2f} | {each.switch_cost:+.2f} | {each.sample_peak_gib:.2f} | "
            f"{each.reserved_gib:.2f} | {each.pinned_gib:.1f} | {each.load_seconds:.1f} | {each.differs:g} |"
        )
    by_name = {each.placement: each for each in results}
    if {"stream", "resident"} <= by_name.keys():
        rows.append(f"streaming: {by_name['stream'].normal_step / by_name['resident'].normal_step:.3f} x resident")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
