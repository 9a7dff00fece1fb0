"""A native Wan graph with and without Accelerate Native Wan Model, side by side in one ComfyUI, at real size.

    python -m benchmarks.bench_accelerate --comfy DIR --models DIR [--size 1280x720x81] [--steps 2] [--flags="..."]

`--models` is what `benchmarks.random_model` wrote. The high-noise expert samples twice from the same noise with euler
and guidance 4, first as ComfyUI runs it, then accelerated. Times are of whole steps (both passes of guidance), the
device idle before and after; the last step counts, since the first one loads weights, times kernels and compiles.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.comfy_server import Graph, comfy_server, graph_of, run_graph

STOPWATCH = Path(__file__).parent / "stopwatch"
ARMS = ("native", "accelerated")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--comfy", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--size", default="1280x720x81", help="width x height x frames")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--expert", default="random_high_noise_14B.safetensors")
    parser.add_argument("--text-encoder", default="random_umt5_xxl.safetensors")
    parser.add_argument("--lora", help="a file below loras, on both arms at strength 0.8")
    parser.add_argument("--flags", default="", help="more options of ComfyUI")
    arguments = parser.parse_args()
    with comfy_server(arguments.comfy, arguments.models, arguments.flags.split(), [STOPWATCH]) as server:
        result = run_graph(server, _graph(arguments))
    if result["status"]["status_str"] != "success":
        print(json.dumps(result["status"], indent=2))
        return 1
    outputs = result["outputs"]
    print(f"--- {arguments.size}, {arguments.steps} steps, preset {arguments.preset} ---")
    print("\n".join(outputs["report"]["text"]))
    found = {arm: json.loads(outputs[f"{arm} reading"]["text"][0]) for arm in ARMS}
    for arm, reading in found.items():
        steps = ", ".join(f"{seconds:.2f}" for seconds in reading["seconds"])
        print(f"{arm}: {steps} s; {', '.join(f'{key} {reading[key]}' for key in reading if key != 'seconds')}")
    before, after = (found[arm]["seconds"][-1] for arm in ARMS)
    print(f"the last steps: {before:.2f} / {after:.2f} = {before / after:.3f} times the speed")
    return 0


def _graph(arguments: argparse.Namespace) -> Graph:
    width, height, frames = map(int, arguments.size.split("x"))
    nodes: dict[str, tuple[str, Graph]] = {
        "encoder": ("WanVelocityLoadTextEncoder", {"file": arguments.text_encoder}),
        "text": ("WanVelocityEncodeText", {
            "text_encoder": ["encoder", 0], "prompt": "a red circle", "negative_prompt": ""}),
        "latent": ("EmptyHunyuanLatentVideo", {"width": width, "height": height, "length": frames, "batch_size": 1}),
        "unet": ("UNETLoader", {"unet_name": arguments.expert, "weight_dtype": "default"}),
        "shifted": ("ModelSamplingSD3", {"model": ["lora" if arguments.lora else "unet", 0], "shift": 5.0}),
        "profile": ("WanVelocityProfile", {"preset": arguments.preset}),
        "faster": ("WanVelocityAccelerate", {"model": ["shifted", 0], "profile": ["profile", 0]}),
        "report": ("PreviewAny", {"source": ["faster", 1]}),
    }  # fmt: skip
    if arguments.lora:
        lora = {"model": ["unet", 0], "lora_name": arguments.lora, "strength_model": 0.8}
        nodes["lora"] = ("LoraLoaderModelOnly", lora)
    nodes |= _arm("native", ["shifted", 0], ["latent", 0], arguments.steps)
    nodes |= _arm("accelerated", ["faster", 0], ["latent", 0], arguments.steps, reference=["native reading", 0])
    return graph_of(nodes)


def _arm(
    name: str, model: list[object], latent: list[object], steps: int, reference: list[object] | None = None
) -> dict[str, tuple[str, Graph]]:
    reading: Graph = {"seconds": [f"{name} watch", 1], "latent": [f"{name} sampler", 0]}
    if reference is not None:
        reading["reference"] = reference
    return {
        f"{name} watch": ("BenchStopwatch", {"model": model}),
        f"{name} sampler": ("KSamplerAdvanced", {
            "model": [f"{name} watch", 0], "positive": ["text", 0], "negative": ["text", 1], "latent_image": latent,
            "add_noise": "enable", "noise_seed": 1, "steps": steps, "cfg": 4.0, "sampler_name": "euler",
            "scheduler": "simple", "start_at_step": 0, "end_at_step": 10000,
            "return_with_leftover_noise": "disable"}),
        f"{name} reading": ("BenchReading", reading),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
