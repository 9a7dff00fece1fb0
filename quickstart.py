#!/usr/bin/env python3
"""Set up and try Wan Velocity with nothing but Python: `python3 quickstart.py demo`, `test` or `setup`.

Makes a virtual environment in `.venv` beside this file, installs the exact versions of requirements-dev.txt and a
torch that suits the machine, and then

    demo    makes videos with the miniature model: for each an MP4, a contact sheet and the report, in `output/`
    test    runs the linter and all tests that this machine can run
    setup   stops there

A second run starts at once. Inside ComfyUI none of this is needed: see README.md.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
PINS = HERE / "requirements-dev.txt"
MARKER = VENV / "wan-velocity-installed"

TORCH = "2.13.0"
LEAST_PYTHON = (3, 11)
# Each imports torch and makes the miniatures that its tests share.
MOST_TEST_PROCESSES = 4

MODEL = HERE / "models" / "wan_velocity_mini"
OUTPUT = HERE / "output"
# What the miniature knows: the README beside its weights. Training never showed the first and the third combination.
SIZE = {"--width": 128, "--height": 128, "--frames": 33}
PROMPTS = (
    "a large red circle moving right on a black background",
    "two green squares falling on a beige background",
    "three cyan stars moving right on a striped navy background",
)


class SetupError(Exception):
    """Something the user can mend, told in one sentence."""


def main() -> int:
    verbs = {"demo": demo, "test": test, "setup": lambda: 0}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:
        print(__doc__.strip())
        return 0 if sys.argv[1:] in (["-h"], ["--help"]) else 2
    try:
        set_up()
        return verbs[sys.argv[1]]()
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def set_up() -> None:
    """Make `.venv` hold what is pinned; a marker in it says that it does."""
    if sys.version_info < LEAST_PYTHON:
        needed = ".".join(map(str, LEAST_PYTHON))
        raise SetupError(f"this is Python {sys.version.split()[0]}, the pinned tools need {needed} or newer")
    wanted = hashlib.sha256(PINS.read_bytes() + TORCH.encode()).hexdigest()
    if PYTHON.exists() and MARKER.exists() and MARKER.read_text().strip() == wanted:
        return
    if not PYTHON.exists():
        say(f"making {VENV}")
        make_environment()
    torch = choose_torch()
    say(f"installing {torch} (the largest part, some minutes on a slow line)")
    pip("install", torch)
    say(f"installing the pins of {PINS.name}")
    pip("install", "--requirement", str(PINS))
    MARKER.write_text(wanted + "\n")
    say("ready")


def make_environment() -> None:
    try:
        venv.create(VENV, with_pip=True, clear=VENV.exists())
    except (OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(VENV, ignore_errors=True)
        raise SetupError(
            f"a virtual environment cannot be made in {VENV} ({error}); on Debian and Ubuntu install python3-venv first"
        ) from error


def choose_torch() -> str:
    """The default build where an NVIDIA card answers; else the much smaller CPU build where the index offers it."""
    if has_nvidia_card():
        return f"torch==={TORCH}"  # three: two would also admit, and prefer, a CPU build that lies on an index
    cpu_build = f"torch=={TORCH}+cpu"
    if pip("install", "--dry-run", "--no-deps", cpu_build, is_question=True):
        return cpu_build
    say("no NVIDIA card here, but the package index offers no CPU build of torch: taking the default one")
    return f"torch=={TORCH}"


def has_nvidia_card() -> bool:
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool], capture_output=True, check=False).returncode == 0


def pip(*arguments: str, is_question: bool = False) -> bool:
    """Run pip in `.venv`. A question is asked silently and its answer returned; anything else must succeed."""
    command = [str(PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    if is_question:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    if subprocess.run(command, check=False).returncode != 0:
        raise SetupError(f"pip could not do '{' '.join(arguments)}'; its own message stands above")
    return True


def run(*arguments: object) -> int:
    """Run Python of `.venv` in this folder; its output goes straight to the terminal."""
    return subprocess.run([str(PYTHON), *map(str, arguments)], cwd=HERE, check=False).returncode


def demo() -> int:
    made = []
    for number, prompt in enumerate(PROMPTS, start=1):
        say(f"video {number} of {len(PROMPTS)}: {prompt}")
        files = {"--out": "mp4", "--contact-sheet": "png", "--report": "json"}
        outputs = {option: OUTPUT / f"demo_{number}.{suffix}" for option, suffix in files.items()}
        options = {"--model": MODEL, "--prompt": prompt, "--recipe": "preview", **SIZE, **outputs}
        code = run("-m", "wan_core", "generate", *(part for option in options.items() for part in option))
        if code:
            return code
        made.append(outputs)
    for outputs in made:
        print("video, contact sheet, report: " + "  ".join(map(str, outputs.values())))
    return 0


def test() -> int:
    """The linter, the formatter and the tests; pytest comes last so that its summary is the last line.

    The tests run in a few processes. Those that share one ComfyUI stay together in one of them. Many start processes of
    their own, and each of these would compile its sources anew where Python is told to keep nothing.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    processes = min(os.cpu_count() or 1, MOST_TEST_PROCESSES)
    pytest = ("-m", "pytest", "--numprocesses", processes, "--dist", "loadgroup")
    codes = [run("-m", "ruff", "check", "."), run("-m", "ruff", "format", "--check", "."), run(*pytest)]
    return next((code for code in codes if code), 0)


def say(text: str) -> None:
    print(f"-- {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
