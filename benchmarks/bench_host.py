"""The sampler node at real size inside a real ComfyUI: start it, queue one graph, print the node's report.

    python -m benchmarks.bench_host --comfy DIR --models DIR [--size 1280x720x81] [--steps 4]

`--models` is what `benchmarks.random_model` wrote. ComfyUI runs as a separate process with the Python that runs this,
in a base directory of its own, and is ended afterwards. The prompt is the random model's, so the video is noise.
"""

import argparse
import sys
from pathlib import Path
from time import perf_counter

from benchmarks.comfy_server import comfy_server, graph_of, run_graph


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--comfy", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--size", default="1280x720x81", help="width x height x frames")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--shift", type=float, default=5.0)
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--flags", default="", help="more options of ComfyUI")
    arguments = parser.parse_args()
    with comfy_server(arguments.comfy, arguments.models, arguments.flags.split()) as server:
        start = perf_counter()
        result = run_graph(server, _graph(arguments))
        print(f"whole run: {perf_counter() - start:.1f} s, {result['status']['status_str']}")
        for output in result["outputs"].values():
            print("\n".join(output.get("text", [])))
    return 0 if result["status"]["status_str"] == "success" else 1


def _graph(arguments: argparse.Namespace) -> dict[str, object]:
    width, height, frames = map(int, arguments.size.split("x"))
    recipe = {
        "recipe": "custom", "recipe.steps": arguments.steps, "recipe.shift": arguments.shift, "recipe.solver": "unipc",
        "recipe.guidance_high": 4.0, "recipe.guidance_low": 3.0, "recipe.boundary": 0.875,
    }  # fmt: skip
    nodes: dict[str, tuple[str, dict[str, object]]] = {
        "experts": ("WanVelocityLoadExperts", {
            "high_noise": "random_high_noise_14B.safetensors", "low_noise": "random_low_noise_14B.safetensors"}),
        "encoder": ("WanVelocityLoadTextEncoder", {"file": "random_umt5_xxl.safetensors"}),
        "text": ("WanVelocityEncodeText", {
            "text_encoder": ["encoder", 0], "prompt": "a red circle", "negative_prompt": ""}),
        "latent": ("WanVelocityEmptyLatent", {"width": width, "height": height, "frames": frames, "batch": 1}),
        "profile": ("WanVelocityProfile", {"preset": arguments.preset}),
        "sampler": ("WanVelocitySampler", {
            "experts": ["experts", 0], "positive": ["text", 0], "negative": ["text", 1], "latent": ["latent", 0],
            "profile": ["profile", 0], "seed": 1, "denoise": 1.0, "noise_device": "device", "start_step": 0,
            "end_step": arguments.steps, "add_noise": "on", "leftover_noise": "remove", **recipe}),
        "report": ("PreviewAny", {"source": ["sampler", 1]}),
        "vae": ("WanVelocityLoadVAE", {"file": "random_wan21_vae.safetensors"}),
        "decode": ("WanVelocityDecode", {"vae": ["vae", 0], "latent": ["sampler", 0]}),
        "video": ("CreateVideo", {"images": ["decode", 0], "fps": 16.0}),
        "save": ("SaveVideo", {"video": ["video", 0], "filename_prefix": "bench", "format": "auto", "codec": "auto"}),
    }  # fmt: skip
    return graph_of(nodes)


if __name__ == "__main__":
    sys.exit(main())
