"""What a LoRA costs: a step, loading it and changing its strength, beside the layers and merged into them.

    python -m benchmarks.random_model MODEL --parts experts,text,vae,lora
    python -m benchmarks.bench_lora MODEL [--size 832x480x81] [--out FILE.json]

One pipeline samples with recipe `lightning-4` (two steps by each expert, guidance 1), first without, then with the pair
below MODEL/loras in both ways, twice each: the second run has another strength. A step is one pass; the last of each
run counts. Latents are held to those of the other way.
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from wan_core.checkpoint.find import find_model
from wan_core.checkpoint.lora_pair import choose_lora
from wan_core.pipeline import WanPipeline
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.report import Report

from .bench_placement import conditioning

REQUEST = SampleRequest(recipe=recipe("lightning-4"), seed=1)
WAYS = ("without", "beside", "merged")
STRENGTHS = (1.0, 0.5)
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run. steps, load_seconds: seconds. differs: relative, from beside the layers (Frobenius)."""

    way: str
    strength: float
    steps: tuple[float, ...]
    load_seconds: float
    sample_peak_gib: float
    differs: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--size", default="832x480x81")
    parser.add_argument("--profile", default="exact")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    width, height, num_frames = map(int, arguments.size.split("x"))
    size = VideoSize(width=width, height=height, num_frames=num_frames)
    pipeline = WanPipeline(find_model(arguments.model), preset(arguments.profile), device=arguments.device)
    file = min((arguments.model / "loras").iterdir())
    results: list[Result] = []
    beside: dict[float, Tensor] = {}
    for way in WAYS:
        for strength in STRENGTHS if way != "without" else STRENGTHS[:1]:
            result, latent = run(pipeline, size, way, strength, file)
            if way == "beside":
                beside[strength] = latent
            elif way == "merged":
                reference = beside[strength]
                result = replace(result, differs=float((latent - reference).norm() / reference.norm()))
            results.append(result)
            print(json.dumps(asdict(result)), flush=True)
    print(table(results))
    if arguments.out is not None:
        facts = {"size": arguments.size, "lora": file.name, "environment": pipeline.environment()}
        arguments.out.write_text(json.dumps(facts | {"results": [asdict(each) for each in results]}, indent=1))


def run(pipeline: WanPipeline, size: VideoSize, way: str, strength: float, file: Path) -> tuple[Result, Tensor]:
    """Four steps, with the pair that `file` belongs to or without it."""
    spec = pipeline.pair.spec
    pipeline.loras = (
        () if way == "without" else (choose_lora(file, spec, strength_high=strength, strength_low=strength),)
    )
    application = "auto" if way == "without" else way
    pipeline.profile = pipeline.profile.with_settings({"lora.application": application})
    report = Report()
    plan = pipeline.plan(REQUEST, size)
    latent = pipeline.sample(plan, conditioning(spec), report=report).latent
    result = Result(
        way=way,
        strength=strength,
        steps=tuple(step.seconds for step in report.steps),
        load_seconds=report.seconds.get("load", 0.0),
        sample_peak_gib=report.peak_bytes.get("sample", 0) / GIB,
        differs=0.0,
    )
    return result, latent


def table(results: list[Result]) -> str:
    """The results side by side."""
    rows = ["| LoRA | strength | s/step | in terms of none | load, s | peak, GiB | differs |", "|-" * 7 + "|"]
    none = results[0].steps[-1]
    rows += [
        f"| {each.way} | {each.strength:g} | {each.steps[-1]:.3f} | {each.steps[-1] / none:.3f} | "
        f"{each.load_seconds:.1f} | {each.sample_peak_gib:.2f} | {each.differs:.1e} |"
        for each in results
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
