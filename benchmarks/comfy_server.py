"""A real ComfyUI for the length of a measurement: started with this pack in a base directory of its own, and ended.

It runs with the Python that runs this. Whatever happens, the end of its log is printed.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("__init__.py", "nodes", "wan_core", "pyproject.toml")
START_SECONDS = 180
RUN_SECONDS = 1200
LOG_LINES = 25

Graph = dict[str, object]


@contextmanager
def comfy_server(comfy: Path, models: Path, flags: Sequence[str] = (), packs: Sequence[Path] = ()) -> Iterator[str]:
    """Yield the address of a running ComfyUI from the checkout `comfy`.

    models: becomes its models folder. packs: folders that are loaded as custom nodes beside ours.
    """
    with tempfile.TemporaryDirectory() as folder:
        base = _lay_out(Path(folder), models, packs)
        address = f"127.0.0.1:{_free_port()}"
        log_path = base / "comfyui.log"
        command = [
            sys.executable, "main.py", "--port", address.partition(":")[2], "--base-directory", str(base),
            "--database-url", "sqlite:///:memory:", "--disable-api-nodes", *flags,
        ]  # fmt: skip
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, cwd=comfy, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(address, process)
            yield address
        finally:
            process.terminate()
            process.wait(30)
            print("--- ComfyUI's log, its end ---")
            print("\n".join(log_path.read_text(errors="replace").splitlines()[-LOG_LINES:]))


def graph_of(nodes: dict[str, tuple[str, Graph]]) -> Graph:
    """A graph in API format from (class, inputs) by node id."""
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def run_graph(address: str, graph: Graph) -> dict[str, object]:
    """Queue a graph and wait for it; returns its entry in the history."""
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


def system_stats(address: str) -> dict[str, object]:
    """What the host says of its first device; memory in bytes."""
    return _get(address, "/system_stats")["devices"][0]


def unload_models(address: str) -> None:
    """What the button "unload models" asks for; the host does it between two graphs, so this waits a little."""
    body = json.dumps({"unload_models": True, "free_memory": True}).encode()
    request = urllib.request.Request(f"http://{address}/free", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=60).close()
    time.sleep(3.0)


def _lay_out(base: Path, models: Path, packs: Sequence[Path]) -> Path:
    pack = base / "custom_nodes" / "wan-velocity"
    pack.mkdir(parents=True)
    for part in PARTS:
        os.symlink(ROOT / part, pack / part)
    for other in packs:
        os.symlink(other.resolve(), base / "custom_nodes" / other.name)
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


def _get(address: str, path: str) -> dict[str, object]:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as answer:
        return json.load(answer)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
