"""From the start of a process to its first finished step, with nothing on disk and then with what the first one left.

    python -m benchmarks.bench_cold_start [--profiles exact auto:compile.mode=default --layers 4 --apart --json FILE]

Each profile gets an empty cache folder (verdicts on attention kernels, FlashAttention 4's kernels, Inductor's and
Triton's caches, Python's bytecode of all libraries) and two processes after each other. A process imports, times
attention kernels where that is not known yet, builds the experts' kernels around random weights of a few blocks, and
runs two steps; the second shows what a step takes once everything is there. Compiling does not depend on the number of
blocks; reading 28 GB of weights is left out.

Every part of the way has a row of its own. A library of attention kernels is imported in a thread, beside the fused
kernels; with --apart a third process imports it first, alone, to show what that takes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import time

TO_FIRST_STEP, SECOND_STEP = "to the first step", "second step"


class Laps:
    """Seconds by the part that has ended, from the birth of the process on; they add up.

    born: by the clock of who started it. What the kernel says counts from a boot time in whole seconds, and was 0.7 s
    early on the machines that this was first measured on.
    """

    def __init__(self, born: float) -> None:
        self.seconds: dict[str, float] = {}
        self.born = self._since = born
        self.synchronize: Callable[[], object] = lambda: None

    def __call__(self, name: str) -> None:
        self.synchronize()
        now = time()
        self.seconds[name], self._since = now - self._since, now


def child(profile: str, arguments: argparse.Namespace) -> dict[str, float]:
    """What one process does; seconds by part. What it imports is imported where its time is to be seen."""
    lap = Laps(arguments.born)
    lap("interpreter")
    import torch

    lap("import torch")
    from wan_core.attention.backends import flash_attention_4
    from wan_core.bench.choose import contestant
    from wan_core.bench.task import Task
    from wan_core.hardware import Hardware
    from wan_core.recipes import VideoSize
    from wan_core.specs import T2V_A14B_TRANSFORMER

    lap("import ours")
    if arguments.device != "cpu":
        lap.synchronize = torch.cuda.synchronize  # the first one makes the context
    lap("CUDA context")
    hardware = Hardware.detect(arguments.device)
    lap("machine measured")
    if arguments.apart:
        if hardware.library("flash-attn-4"):
            flash_attention_4.WIDE.imports()
        lap("attention library imported, alone")
    width, height, num_frames = map(int, arguments.size.split("x"))
    task = Task(
        size=VideoSize(width=width, height=height, num_frames=num_frames),
        device=hardware.device,
        transformer=replace(T2V_A14B_TRANSFORMER, num_layers=arguments.layers),
    )
    prepared = contestant(profile).prepare_step(task, hardware, lap)
    lap("text projected")
    prepared.run()
    lap("first step")
    # From the birth of the process: the interpreter's own start counts, what comes after the step does not.
    to_first_step = time() - lap.born
    prepared.run()
    lap(SECOND_STEP)
    return lap.seconds | {TO_FIRST_STEP: to_first_step}


def measure(profile: str, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Processes on one cache folder, empty at first; those that failed are missing."""
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        places = {
            "WAN_VELOCITY_CACHE": "ours", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton",
            "CUDA_CACHE_PATH": "cuda", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": "flash", "PYTHONPYCACHEPREFIX": "python",
        }  # fmt: skip
        environment = os.environ | {name: str(Path(folder) / leaf) for name, leaf in places.items()}
        # Set in some containers: every process would compile all sources that it imports anew.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [
            sys.executable, "-m", "benchmarks.bench_cold_start", "--child", profile, "--size", arguments.size,
            "--layers", str(arguments.layers), "--device", arguments.device,
        ]  # fmt: skip
        names = {"first": [], "second": [], **({"apart": ["--apart"]} if arguments.apart else {})}
        for name, more in names.items():
            command_now = [*command, *more, "--born", repr(time())]
            done = subprocess.run(command_now, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{profile}, {name} process: {done.stderr.strip().splitlines()[-1:]}")
                return runs
            runs[name] = json.loads(done.stdout.splitlines()[-1])
            print(f"{profile}, {name} process: {runs[name][TO_FIRST_STEP]:.1f} s to the first step", flush=True)
    return runs


def table(runs: dict[str, dict[str, float]]) -> str:
    """Parts in the order in which they come, a column for each process."""
    parts = dict.fromkeys(part for run in runs.values() for part in run if part not in (TO_FIRST_STEP, SECOND_STEP))
    rows = [
        f"| {part} | " + " | ".join(f"{run[part]:.2f}" if part in run else "" for run in runs.values()) + " |"
        for part in (*parts, TO_FIRST_STEP, SECOND_STEP)
    ]
    return "\n".join((f"| seconds | {' | '.join(runs)} |", "|---" * (len(runs) + 1) + "|", *rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--profiles", nargs="+", default=["exact", "auto:compile.mode=default"])
    parser.add_argument("--size", default="832x480x81")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--apart", action="store_true", help="a third process that imports the attention library alone")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--child", metavar="PROFILE", help=argparse.SUPPRESS)
    parser.add_argument("--born", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child, arguments)))
        return 0
    found = {profile: measure(profile, arguments) for profile in arguments.profiles}
    for profile, runs in found.items():
        print(f"\n{profile}\n\n{table(runs)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return 0 if all({"first", "second"} <= set(runs) for runs in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
