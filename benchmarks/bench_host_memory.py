"""Our weights beside another model's in a real ComfyUI on a GPU: given back on `POST /free`, evicted, and back again.

    python -m benchmarks.bench_host_memory --comfy DIR --models DIR [--size 832x480x5] [--flags="--reserve-vram 60"]

Five acts in one ComfyUI: our sampler; `POST /free`; our sampler; the host's own sampler on one expert loaded by the
host; our sampler. After each: what the host counts as loaded, the device's memory, and whether our latent is the first
one bit for bit. `--reserve-vram` makes a large card too small for both; run it again with `--disable-dynamic-vram`.
`--models` is what `benchmarks.random_model` wrote. Ends with 1 where anything is not as it should be.
"""

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter

from benchmarks.bench_accelerate import STOPWATCH
from benchmarks.comfy_server import Graph, comfy_server, graph_of, run_graph, system_stats, unload_models

Nodes = dict[str, tuple[str, Graph]]
GIB = 2**30
# What may stay of torch's memory once everything is unloaded: libraries' workspaces.
_LEFT_GIB = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--comfy", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--size", default="832x480x5", help="width x height x frames")
    parser.add_argument("--high", default="random_high_noise_14B.safetensors")
    parser.add_argument("--low", default="random_low_noise_14B.safetensors")
    parser.add_argument("--text-encoder", default="random_umt5_xxl.safetensors")
    parser.add_argument("--flags", default="", help="more options of ComfyUI")
    arguments = parser.parse_args()
    with comfy_server(arguments.comfy, arguments.models, arguments.flags.split(), [STOPWATCH]) as address:
        problems = play(address, arguments)
    print("\n".join(problems) or "as it should be")
    return 1 if problems else 0


def play(address: str, arguments: argparse.Namespace) -> list[str]:
    """The five acts; a sentence for each thing that is wrong."""
    problems = []
    first = act(address, "ours", ours(arguments, number=0))
    unload_models(address)
    device = system_stats(address)
    left = (device["torch_vram_total"] - device["torch_vram_free"]) / GIB
    print(f"after POST /free: {left:.2f} GiB in torch's hands on {device['type']}")
    # Of a CPU the host reports the process and the whole machine.
    if device["type"] == "cuda" and left > _LEFT_GIB:
        problems.append(f"after POST /free {left:.2f} GiB stayed, expected at most {_LEFT_GIB}")
    again = act(address, "ours again", ours(arguments, number=1))
    other = act(address, "the host's own", native(arguments))
    back = act(address, "ours after it", ours(arguments, number=2))
    for name, reading in (("after POST /free", again), ("after the host's own model", back)):
        if reading["digest"] != first["digest"]:
            problems.append(f"our latent {name} is not the first one")
    held = [name for name, gib in other["models"] if gib > 0]
    print(f"while the host's own model ran, loaded were: {', '.join(held)}")
    return problems


def act(address: str, title: str, nodes: Nodes) -> dict[str, object]:
    """Run one graph and print what is held after it."""
    start = perf_counter()
    result = run_graph(address, graph_of(nodes))
    if result["status"]["status_str"] != "success":
        raise RuntimeError(json.dumps(result["status"], indent=1)[-2000:])
    reading = json.loads(result["outputs"]["held"]["text"][0])
    print(f"{title}: {perf_counter() - start:.1f} s, {json.dumps(reading)}", flush=True)
    return reading


def shared(arguments: argparse.Namespace) -> Nodes:
    width, height, frames = map(int, arguments.size.split("x"))
    return {
        "encoder": ("WanVelocityLoadTextEncoder", {"file": arguments.text_encoder}),
        "text": ("WanVelocityEncodeText", {
            "text_encoder": ["encoder", 0], "prompt": "a red circle", "negative_prompt": ""}),
        "latent": ("WanVelocityEmptyLatent", {"width": width, "height": height, "frames": frames, "batch": 1}),
        "held": ("BenchHeld", {"latent": ["sampler", 0]}),
    }  # fmt: skip


def ours(arguments: argparse.Namespace, *, number: int) -> Nodes:
    """Two steps, one by each expert. number: makes the host run the graph again; it changes nothing."""
    recipe = {
        "recipe": "custom", "recipe.steps": 2, "recipe.shift": 5.0, "recipe.solver": "euler",
        "recipe.guidance_high": 4.0, "recipe.guidance_low": 3.0, "recipe.boundary": 0.875,
    }  # fmt: skip
    return shared(arguments) | {
        "experts": ("WanVelocityLoadExperts", {"high_noise": arguments.high, "low_noise": arguments.low}),
        "sampler": ("WanVelocitySampler", {
            "experts": ["experts", 0], "positive": ["text", 0], "negative": ["text", 1], "latent": ["latent", 0],
            "seed": 1, "denoise": 1.0, "noise_device": "device", "start_step": 0, "end_step": 9999 - number,
            "add_noise": "on", "leftover_noise": "remove", "resume": "never", **recipe}),
    }  # fmt: skip


def native(arguments: argparse.Namespace) -> Nodes:
    """One expert in the host's loader and sampler."""
    return shared(arguments) | {
        "unet": ("UNETLoader", {"unet_name": arguments.high, "weight_dtype": "default"}),
        "shifted": ("ModelSamplingSD3", {"model": ["unet", 0], "shift": 5.0}),
        "sampler": ("KSamplerAdvanced", {
            "model": ["shifted", 0], "positive": ["text", 0], "negative": ["text", 1], "latent_image": ["latent", 0],
            "add_noise": "enable", "noise_seed": 1, "steps": 2, "cfg": 4.0, "sampler_name": "euler",
            "scheduler": "simple", "start_at_step": 0, "end_at_step": 10000,
            "return_with_leftover_noise": "disable"}),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
