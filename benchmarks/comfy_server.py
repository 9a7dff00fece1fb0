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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("__init__.py", "nodes", "wan_core", "pyproject.toml")
START_SECONDS = 180
RUN_SECONDS = 1200
UNLOAD_SECONDS = 60
LOG_LINES = 25
GIB = 2**30

Graph = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running ComfyUI: host and port, and its process."""

    address: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a ComfyUI holds, in GiB: tensors on its GPU (0 without one), and its process's own memory, without files."""

    device: float
    host: float


@contextmanager
def comfy_server(comfy: Path, models: Path, flags: Sequence[str] = (), packs: Sequence[Path] = ()) -> Iterator[Server]:
    """Yield a running ComfyUI from the checkout `comfy`.

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
            yield Server(address=address, pid=process.pid)
        finally:
            process.terminate()
            process.wait(30)
            print("--- ComfyUI's log, its end ---")
            print("\n".join(log_path.read_text(errors="replace").splitlines()[-LOG_LINES:]))


def graph_of(nodes: dict[str, tuple[str, Graph]]) -> Graph:
    """A graph in API format from (class, inputs) by node id."""
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def run_graph(server: Server, graph: Graph) -> dict[str, object]:
    """Queue a graph and wait for it; returns its entry in the history."""
    body = json.dumps({"prompt": graph}).encode()
    request = urllib.request.Request(f"http://{server.address}/prompt", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            prompt_id = json.load(answer)["prompt_id"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"ComfyUI refused the graph: {error.read().decode()}") from error
    deadline = time.monotonic() + RUN_SECONDS
    while time.monotonic() < deadline:
        history = _get(server.address, f"/history/{prompt_id}")
        if prompt_id in history:
            return history[prompt_id]
        time.sleep(0.5)
    raise RuntimeError(f"no result within {RUN_SECONDS} s")


def memory(server: Server) -> Memory:
    """What it holds now. Page-locked memory is the process's own; pages of files that it has mapped are not."""
    device = _get(server.address, "/system_stats")["devices"][0]
    # Of a CPU the host reports the whole machine.
    held = device["torch_vram_total"] - device["torch_vram_free"] if device["type"] == "cuda" else 0
    process = psutil.Process(server.pid).memory_info()
    return Memory(device=held / GIB, host=(process.rss - process.shared) / GIB)


def unload_models(server: Server, *, cache: bool, is_done: Callable[[Memory], bool]) -> tuple[float | None, Memory]:
    """Ask as "Unload Models" does, with cache as "... and Execution Cache"; seconds until it is done, and what is held.

    `None` seconds where that took more than a minute. It is asked for every second: a ComfyUI that is asked while it
    tidies up after a graph, which is what it does when the graph has just ended, sleeps on it until the next one.
    """
    body = json.dumps({"unload_models": True, "free_memory": cache}).encode()
    request = urllib.request.Request(f"http://{server.address}/free", body, {"Content-Type": "application/json"})
    start = asked = time.monotonic()
    urllib.request.urlopen(request, timeout=60).close()
    while not is_done(held := memory(server)):
        now = time.monotonic()
        if now - start > UNLOAD_SECONDS:
            return None, held
        if now - asked > 1.0:
            urllib.request.urlopen(request, timeout=60).close()
            asked = now
        time.sleep(0.05)
    return time.monotonic() - start, held


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
