"""The sampler node at real size inside a real ComfyUI: start it, queue one graph, print the node's report.

    python -m benchmarks.bench_host --comfy DIR --models DIR [--size 1280x720x81] [--steps 4]

`--models` is what `benchmarks.random_model` wrote. ComfyUI runs as a separate process with the Python that runs this,
in a base directory of its own, and is ended afterwards. The prompt is the random model's, so the video is noise.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("__init__.py", "nodes", "wan_core", "pyproject.toml")
START_SECONDS = 180
RUN_SECONDS = 1200


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
    with tempfile.TemporaryDirectory() as folder:
        base = _lay_out(Path(folder), arguments.models)
        address = f"127.0.0.1:{_free_port()}"
        log_path = base / "comfyui.log"
        command = [
            sys.executable, "main.py", "--port", address.partition(":")[2], "--base-directory", str(base),
            "--database-url", "sqlite:///:memory:", "--disable-api-nodes", *arguments.flags.split(),
        ]  # fmt: skip
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, cwd=arguments.comfy, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(address, process)
            start = perf_counter()
            result = _run(address, _graph(arguments))
            print(f"whole run: {perf_counter() - start:.1f} s, {result['status']['status_str']}")
            for output in result["outputs"].values():
                print("\n".join(output.get("text", [])))
        finally:
            process.terminate()
            process.wait(30)
            print("--- ComfyUI's log, its end ---")
            print("\n".join(log_path.read_text(errors="replace").splitlines()[-25:]))
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
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def _lay_out(base: Path, models: Path) -> Path:
    pack = base / "custom_nodes" / "wan-velocity"
    pack.mkdir(parents=True)
    for part in PARTS:
        os.symlink(ROOT / part, pack / part)
    for folder in ("input", "output", "temp", "user"):
        (base / folder).mkdir()
    os.symlink(models.resolve(), base / "models")
    return base


def _wait_until_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            _get(address, "/system_stats")
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("ComfyUI did not start; its log follows") from None
            time.sleep(0.5)
        else:
            return


def _run(address: str, graph: dict[str, object]) -> dict[str, object]:
    body = json.dumps({"prompt": graph}).encode()
    request = urllib.request.Request(f"http://{address}/prompt", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            prompt_id = json.load(answer)["prompt_id"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"ComfyUI refused the graph: {error.read().decode()}") from error
    deadline = time.monotonic() + RUN_SECONDS
    while time.monotonic() < deadline:
        history = _get(address, f"/history/{prompt_id}")
        if prompt_id in history:
            return history[prompt_id]
        time.sleep(0.5)
    raise RuntimeError(f"no result within {RUN_SECONDS} s")


def _get(address: str, path: str) -> dict[str, object]:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as answer:
        return json.load(answer)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
