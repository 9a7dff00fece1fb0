"""Our weights beside another model's in a real ComfyUI on a GPU: given back on `POST /free`, evicted, and back again.

    python -m benchmarks.bench_host_memory --comfy DIR --models DIR [--size 832x480x5] [--flags="--reserve-vram 60"]

Six acts in one ComfyUI: our sampler; `POST /free` for models; our sampler; the host's own sampler on one expert loaded
by the host; our sampler; `POST /free` for models and cache. After each: what the host counts as loaded, the memory of
device and process, and whether our latent is the first one bit for bit. `--reserve-vram` makes a large card too small
for both; `--preset 40gb` has the experts wait in page-locked memory. Run it again with `--disable-dynamic-vram`.
`--models` is what `benchmarks.random_model` wrote. Ends with 1 where anything is not as it should be.
"""

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter

from benchmarks.bench_accelerate import STOPWATCH
from benchmarks.comfy_server import Graph, Memory, Server, comfy_server, graph_of, memory, run_graph, unload_models

Nodes = dict[str, tuple[str, Graph]]
# What may stay once everything is unloaded: libraries' workspaces; on the host also libraries and their kernels, which
# a new process has not loaded yet.
_DEVICE_GIB, _HOST_GIB = 1.0, 4.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--comfy", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--size", default="832x480x5", help="width x height x frames")
    parser.add_argument("--high", default="random_high_noise_14B.safetensors")
    parser.add_argument("--low", default="random_low_noise_14B.safetensors")
    parser.add_argument("--text-encoder", default="random_umt5_xxl.safetensors")
    parser.add_argument("--preset", default="auto", help="of our sampler's profile")
    parser.add_argument("--flags", default="", help="more options of ComfyUI")
    arguments = parser.parse_args()
    with comfy_server(arguments.comfy, arguments.models, arguments.flags.split(), [STOPWATCH]) as server:
        problems = play(server, arguments)
    print("\n".join(problems) or "as it should be")
    return 1 if problems else 0


def play(server: Server, arguments: argparse.Namespace) -> list[str]:
    """The acts; a sentence for each thing that is wrong."""
    new = memory(server)
    first = act(server, "ours", ours(arguments, number=0))
    problems = unload(server, new, cache=False)
    again = act(server, "ours again", ours(arguments, number=1))
    other = act(server, "the host's own", native(arguments))
    back = act(server, "ours after it", ours(arguments, number=2))
    problems += unload(server, new, cache=True)  # what the host has loaded by itself stays in its cache without
    for name, reading in (("after POST /free", again), ("after the host's own model", back)):
        if reading["digest"] != first["digest"]:
            problems.append(f"our latent {name} is not the first one")
    held = [name for name, gib in other["models"] if gib > 0]
    print(f"while the host's own model ran, loaded were: {', '.join(held)}")
    return problems


def unload(server: Server, new: Memory, *, cache: bool) -> list[str]:
    """Ask for all memory, and wait for it; a sentence for each kind of it that stays. new: what a new process held."""
    before, words = memory(server), "models and cache" if cache else "models"
    seconds, after = unload_models(server, cache=cache, is_done=lambda held: not _left(held, new))
    took = "not back after a minute" if seconds is None else f"back after {seconds:.1f} s"
    print(f"POST /free for {words}: {took}; {_words(before)} -> {_words(after)}", flush=True)
    return [f"after POST /free for {words} {sentence}" for sentence in _left(after, new)]


def _left(held: Memory, new: Memory) -> list[str]:
    rows = (("on the device", held.device, _DEVICE_GIB), ("of host memory", held.host - new.host, _HOST_GIB))
    return [f"{gib:.2f} GiB {where} stayed, expected at most {most}" for where, gib, most in rows if gib > most]


def _words(held: Memory) -> str:
    return f"device {held.device:.2f}, host {held.host:.2f} GiB"


def act(server: Server, title: str, nodes: Nodes) -> dict[str, object]:
    """Run one graph and print what is held after it."""
    start = perf_counter()
    result = run_graph(server, graph_of(nodes))
    if result["status"]["status_str"] != "success":
        raise RuntimeError(json.dumps(result["status"], indent=1)[-2000:])
    reading = json.loads(result["outputs"]["held"]["text"][0])
    print(f"{title}: {perf_counter() - start:.1f} s, {_words(memory(server))}, {json.dumps(reading)}", flush=True)
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
        "profile": ("WanVelocityProfile", {"preset": arguments.preset}),
        "sampler": ("WanVelocitySampler", {
            "experts": ["experts", 0], "positive": ["text", 0], "negative": ["text", 1], "latent": ["latent", 0],
            "profile": ["profile", 0], "seed": 1, "denoise": 1.0, "noise_device": "device", "start_step": 0,
            "end_step": 9999 - number, "add_noise": "on", "leftover_noise": "remove", "resume": "never", **recipe}),
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
