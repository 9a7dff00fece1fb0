"""A real ComfyUI as a separate process, with the pack and a test pack in a throw-away base directory.

Nothing of the user's ComfyUI is touched: models, outputs, settings and custom nodes live under the base directory.
The pack is not copied: a folder of links with an awkward name stands for it, because the folder name must not matter.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .client import Client, unreachable

PACK_ROOT = Path(__file__).resolve().parents[2]
# Awkward on purpose, but without a space: from a folder with one the host serves no web files, of any pack.
PACK_FOLDER = "wan-velocity.test-1.0"
PACK_PARTS = ("__init__.py", "nodes", "wan_core", "web", "locales", "workflows", "pyproject.toml")
# Asked for before any test runs, in every process of the tests; importing them would take seconds, and one that is
# there and broken is told by the server that does not start.
NEEDED = ("torch", "aiohttp", "av", "safetensors", "comfyui_frontend_package")
_MISSING = """
import sys
from importlib.util import find_spec
missing = [name for name in sys.argv[1:] if find_spec(name) is None]
sys.exit(f"no module named {', '.join(missing)}" if missing else 0)
"""
START_SECONDS = 120
STOP_SECONDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyInstall:
    """Where ComfyUI is and which Python runs it."""

    root: Path
    python: Path

    @classmethod
    @cache
    def find(cls) -> "ComfyInstall | str":
        """The install, or in one line why there is none."""
        root = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI").expanduser()
        if not (root / "main.py").is_file():
            return f"no ComfyUI at {root}; set COMFYUI_PATH to a checkout of ComfyUI"
        own = root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        python = own if own.is_file() else Path(sys.executable)
        probe = subprocess.run([python, "-c", _MISSING, *NEEDED], capture_output=True, text=True, env=environment())
        if probe.returncode:
            reason = probe.stderr.strip().splitlines()[-1]
            return f"{python} cannot run the ComfyUI at {root}: {reason}"
        return cls(root=root, python=python)


def lay_out(base: Path) -> Path:
    """Make the base directory with both packs linked into `custom_nodes`; returns the pack's folder there."""
    pack = base / "custom_nodes" / PACK_FOLDER
    pack.mkdir(parents=True)
    for part in PACK_PARTS:
        if (PACK_ROOT / part).exists():
            (pack / part).symlink_to(PACK_ROOT / part)
    (base / "custom_nodes" / "host_test_pack").symlink_to(Path(__file__).parent / "pack")
    for folder in ("input", "output", "temp", "user"):
        (base / folder).mkdir()
    return pack


class ComfyServer:
    """A running ComfyUI. Use as a context manager: leaving it ends the process, and only that process."""

    def __init__(
        self, install: ComfyInstall, base: Path, flags: Sequence[str] = (), variables: Mapping[str, str] | None = None
    ) -> None:
        self.base = base
        self.log_path = base / "comfyui.log"
        self.port = _free_port()
        self.client = Client(f"127.0.0.1:{self.port}")
        self._install = install
        self._environment = environment() | dict(variables or {})
        self._command = [
            str(install.python), "main.py", "--cpu", "--force-fp32", "--port", str(self.port),
            "--base-directory", str(base), "--database-url", "sqlite:///:memory:", "--disable-api-nodes",
            "--preview-method", "latent2rgb", *flags,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Of the process, which must be running."""
        return self._process.pid

    @property
    def output(self) -> Path:
        return self.base / "output"

    def __enter__(self) -> "ComfyServer":
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._install.root, stdout=log, stderr=subprocess.STDOUT, env=self._environment
            )
        deadline = time.monotonic() + START_SECONDS
        while unreachable(self.client):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise RuntimeError(f"ComfyUI did not start:\n{self.log[-4000:]}")
            time.sleep(0.25)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.client.close()
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def environment() -> dict[str, str]:
    """The environment without what belongs to the Python of the tests."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {"OMP_NUM_THREADS": "1", **inherited}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
