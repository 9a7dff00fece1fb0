"""How fast a checkpoint loads, and how much host memory that takes beside the weights themselves.

    python -m benchmarks.bench_load host FOLDER [--gb 2.0] [--dtype bfloat16]
    python -m benchmarks.bench_load device FOLDER [--layers 40]

`host` loads a miniature that is deep instead of wide to the CPU, and gives the growth of the peak resident memory over
the size of the file. `device` loads an expert of real size to the GPU, beside a plain sequential read of the same file
and a copy of as many bytes from pinned memory, one after the other: what loading would cost without any overlap. Files
are written below FOLDER once and used again. Each line of output is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch

from benchmarks.random_model import write
from miniature.weights import transformer_table
from wan_core.attention.backends import BACKENDS
from wan_core.build import typed
from wan_core.checkpoint.inventory import transformer_shapes
from wan_core.checkpoint.load import ParameterSource
from wan_core.checkpoint.read import Checkpoint, open_checkpoint
from wan_core.models.transformer import WanTransformer, wants_float32
from wan_core.offload.weights import Weights
from wan_core.specs import T2V_A14B_TRANSFORMER, TransformerSpec

# Deep and narrow: blocks of 8.4 MB in bfloat16.
DEEP = TransformerSpec(
    dim=512, ffn_dim=2048, num_heads=4, num_layers=1, in_dim=16, out_dim=16, text_dim=512
)  # fmt: skip
CHUNK = 32 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("host", "device", "child"))
    parser.add_argument("folder", type=Path, help="for child: the file")
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--layers", type=int, default=T2V_A14B_TRANSFORMER.num_layers)
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    if arguments.what == "host":
        print(json.dumps(host(arguments.folder, arguments.gb, arguments.dtype)))
    elif arguments.what == "child":
        print(json.dumps(load_to_host(arguments.folder, arguments.dtype)))
    else:
        for line in device(arguments.folder, arguments.layers):
            print(json.dumps(line), flush=True)


def host(folder: Path, gigabytes: float, dtype: str) -> dict[str, float]:
    """Peak memory of a process that does nothing else than to load a deep miniature."""
    path = deep_miniature(folder, gigabytes)
    command = [sys.executable, "-m", "benchmarks.bench_load", "child", str(path), "--dtype", dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout)


def deep_miniature(folder: Path, gigabytes: float) -> Path:
    """An expert of so many bytes, all zeros: a file with a header and a hole, which takes no room on the disk."""
    per_layer = replace(DEEP, num_layers=2).num_parameters - DEEP.num_parameters
    spec = replace(DEEP, num_layers=round(gigabytes * 1e9 / 2 / per_layer))
    header, end = {}, 0
    for name, shape in transformer_shapes(spec).items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path = folder / f"deep_high_noise_{spec.num_layers}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def load_to_host(path: Path, dtype: str) -> dict[str, float]:
    checkpoint = open_checkpoint(path)
    layers = 1 + max(int(name.split(".")[1]) for name in checkpoint.tensors if name.startswith("blocks."))
    module = meta_expert(replace(DEEP, num_layers=layers))
    # What the first use of an operation costs is not the loader's.
    torch.ones(8, dtype=torch.bfloat16).to(getattr(torch, dtype))
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _status("VmRSS"), perf_counter()
    weights = as_built(module, checkpoint, lambda name: getattr(torch, dtype), "cpu")
    weights.to_device()
    seconds = perf_counter() - start
    growth, nbytes = _status("VmHWM") - before, weights.nbytes
    return {
        "file_gb": checkpoint.nbytes / 1e9,
        "weights_gb": nbytes / 1e9,
        "peak_growth_gb": growth / 1e9,
        "peak_over_weights": growth / nbytes,
        "seconds": seconds,
        "gb_per_second": checkpoint.nbytes / seconds / 1e9,
    }


def device(folder: Path, num_layers: int) -> Iterator[dict[str, object]]:
    """Rates of loading, reading and copying one file, from the disk (cold) and from the page cache (warm)."""
    spec = replace(T2V_A14B_TRANSFORMER, num_layers=num_layers)
    path = folder / f"random_high_noise_{num_layers}.safetensors"
    if not path.exists():
        write(path, transformer_table(spec), "cuda", {})
        os.sync()
    torch.zeros(1, device="cuda")
    for cache in ("cold", "warm"):
        if cache == "cold":
            forget(path)
        read = timed_read(path)
        copy = timed_copy(path.stat().st_size)
        if cache == "cold":
            forget(path)
        load, growth = timed_load(path, spec)
        yield {
            "cache": cache,
            "device": torch.cuda.get_device_name(),
            "file_gb": path.stat().st_size / 1e9,
            "read_gb_per_second": path.stat().st_size / read / 1e9,
            "copy_gb_per_second": path.stat().st_size / copy / 1e9,
            "load_gb_per_second": path.stat().st_size / load / 1e9,
            "load_over_read_then_copy": (read + copy) / load,
            "host_growth_gb": growth / 1e9,
        }


def timed_read(path: Path) -> float:
    """Seconds of reading a file from its start to its end into one buffer."""
    buffer = memoryview(bytearray(CHUNK))
    start = perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return perf_counter() - start


def timed_copy(nbytes: int) -> float:
    """Seconds of copying so many bytes from pinned memory to the GPU."""
    source = torch.empty(CHUNK, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(CHUNK, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    start = perf_counter()
    for _ in range(-(-nbytes // CHUNK)):
        target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    return perf_counter() - start


def timed_load(path: Path, spec: TransformerSpec) -> tuple[float, int]:
    """Seconds of loading an expert as a run does it, and the growth of the host's memory meanwhile."""
    module = meta_expert(spec)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _status("VmRSS"), perf_counter()
    checkpoint = open_checkpoint(path)
    weights = as_built(
        module, checkpoint, lambda name: torch.float32 if wants_float32(name) else torch.bfloat16, "cuda"
    )
    weights.to_device()
    torch.cuda.synchronize()
    return perf_counter() - start, _status("VmHWM") - before


def as_built(
    module: WanTransformer, checkpoint: Checkpoint, dtype_of: Callable[[str], torch.dtype], device: str
) -> Weights:
    """The weights of an expert as `wan_core.build` makes them, so that the loader of the product is what is timed."""
    fill = ParameterSource(typed(module, dtype_of), checkpoint, device).fill
    return Weights(module, fill, device=device, dtype=torch.bfloat16)


def meta_expert(spec: TransformerSpec) -> WanTransformer:
    attend = next(backend for backend in BACKENDS if backend.name == "sdpa").load()
    with torch.device("meta"):
        return WanTransformer(spec, attend=attend, cross_attend=attend)


def forget(path: Path) -> None:
    """Ask the system to drop a file from its page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _status(field: str) -> int:
    """Bytes of a field of this process's status, as Linux reports it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
