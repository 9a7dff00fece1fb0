"""From the start of a process to its first finished step, with nothing on disk and then with what the first one left.

    python -m benchmarks.bench_cold_start [--profiles exact auto:compile.mode=default --layers 4 --json FILE]

Each profile gets an empty cache folder (verdicts on attention kernels, FlashAttention 4's kernels, Inductor's and
Triton's caches) and two processes after each other. A process imports, times attention kernels where that is not known
yet, builds the experts' kernels around random weights of a few blocks, and runs two steps; the second shows what a step
takes once everything is there. Compiling does not depend on the number of blocks; reading 28 GB of weights is left out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, time


def child(profile: str, size: str, layers: int) -> dict[str, float]:
    """What one process does; seconds by phase."""
    seconds, start = {}, perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        torch.cuda.synchronize()
        seconds[name], start = perf_counter() - start, perf_counter()

    from dataclasses import replace

    import psutil
    import torch

    from wan_core.bench.choose import contestant
    from wan_core.bench.task import Task
    from wan_core.recipes import VideoSize
    from wan_core.specs import T2V_A14B_TRANSFORMER

    lap("import")
    width, height, num_frames = map(int, size.split("x"))
    task = Task(
        size=VideoSize(width=width, height=height, num_frames=num_frames),
        device="cuda:0",
        transformer=replace(T2V_A14B_TRANSFORMER, num_layers=layers),
    )
    prepared = contestant(profile).prepare("step", task)
    lap("kernels timed, experts built")
    prepared.run()
    lap("first step")
    # From the birth of the process: the interpreter's own start counts, what comes after the step does not.
    seconds["to the first step"] = time() - psutil.Process().create_time()
    prepared.run()
    lap("second step")
    return seconds


def measure(profile: str, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Two processes on one cache folder, empty at first."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        places = {
            "WAN_VELOCITY_CACHE": "ours", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton",
            "CUDA_CACHE_PATH": "cuda", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": "flash",
        }  # fmt: skip
        environment = os.environ | {name: str(Path(folder) / leaf) for name, leaf in places.items()}
        command = [
            sys.executable, "-m", "benchmarks.bench_cold_start", "--child", profile, "--size", arguments.size,
            "--layers", str(arguments.layers),
        ]  # fmt: skip
        for number in ("first", "second"):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{profile}, {number} process: {done.stderr.strip().splitlines()[-1:]}")
                return runs
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            first = runs[-1]["to the first step"]
            parts = ", ".join(f"{name} {value:.1f}" for name, value in runs[-1].items() if name != "to the first step")
            print(f"{profile}, {number} process: {first:.1f} s to the first step ({parts})", flush=True)
    return runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--profiles", nargs="+", default=["exact", "auto:compile.mode=default"])
    parser.add_argument("--size", default="832x480x81")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--child", metavar="PROFILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child, arguments.size, arguments.layers)))
        return 0
    found = {profile: measure(profile, arguments) for profile in arguments.profiles}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return 0 if all(len(runs) == 2 for runs in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
