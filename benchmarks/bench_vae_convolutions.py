"""The convolutions of the VAE's decoder one by one: which algorithm and which layout is fastest on this GPU.

    python -m benchmarks.bench_vae_convolutions [--json FILE] [--seconds 45]

A row is one convolution at 1280x720 done in one way: milliseconds, TFLOP/s of the operations that the convolution needs
(not of those that a way adds), relative error against the first way, bytes beyond inputs and outputs, and the kernels
that ran. Ways: cuDNN in three dimensions with channels first and last, by its heuristics and by its own search; in two
dimensions over stacked frames; over pairs of frames; Triton (`shifted_conv`). What fails is listed with its reason.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.card import parsed_on_a_card
from wan_core.kernels.vae import merged_weight

Way = Callable[[], Tensor]
LAST = torch.channels_last_3d


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A 3x3x3 convolution of a residual block over `frames` frames, its two past frames not counted."""

    in_channels: int
    out_channels: int
    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.in_channels}->{self.out_channels} x {self.frames} x {self.height} x {self.width}"

    @property
    def flops(self) -> float:
        return 2.0 * 27 * self.in_channels * self.out_channels * self.frames * self.height * self.width


SHAPES = (
    Shape(in_channels=96, out_channels=96, frames=1, height=720, width=1280),
    Shape(in_channels=96, out_channels=3, frames=1, height=720, width=1280),
    Shape(in_channels=96, out_channels=96, frames=4, height=720, width=1280),
    Shape(in_channels=192, out_channels=192, frames=1, height=360, width=640),
    Shape(in_channels=192, out_channels=192, frames=4, height=360, width=640),
    Shape(in_channels=384, out_channels=384, frames=2, height=180, width=320),
)


def searched(way: Way) -> Way:
    """The same with cuDNN's own search for the fastest algorithm."""

    def run() -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            return way()

    return run


def stacked(window: Tensor) -> Tensor:
    """Window (1, C, T + 2, H, W) to frames with their two predecessors as channels, (T, 3 C, H, W) channels last."""
    frames = window.movedim(2, 1)[0]
    planes = torch.cat([frames[tap : tap + len(frames) - 2] for tap in range(3)], dim=1)
    return planes.contiguous(memory_format=torch.channels_last)


def paired(window: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two frames and their two predecessors as channels, and a kernel that makes both at once, a quarter of it zero."""
    frames = window.movedim(2, 1)[0]
    planes = torch.cat([torch.cat(list(frames[i : i + 4])).unsqueeze(0) for i in range(0, len(frames) - 2, 2)])
    nothing = torch.zeros_like(weight[:, :, 0])
    taps = weight.unbind(dim=2)
    both = torch.cat([torch.cat((*taps, nothing), dim=1), torch.cat((nothing, *taps), dim=1)])
    last = torch.channels_last
    return planes.contiguous(memory_format=last), both.contiguous(memory_format=last)


def unpair(out: Tensor) -> Tensor:
    return out.unflatten(1, (2, -1)).flatten(0, 1).movedim(0, 1).unsqueeze(0)


def ways(shape: Shape) -> dict[str, tuple[Way, Callable[[Tensor], Tensor]]]:
    """Every way to convolve the same window, and how to read its result as (1, O, T, H, W)."""
    size = (1, shape.in_channels, shape.frames + 2, shape.height, shape.width)
    window = torch.randn(size, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(shape.out_channels, shape.in_channels, 3, 3, 3, device="cuda")
    weight = (weight * (27 * shape.in_channels) ** -0.5).bfloat16()
    last, weight_last = window.contiguous(memory_format=LAST), weight.contiguous(memory_format=LAST)
    same = lambda out: out  # noqa: E731
    in_frames = lambda out: out.movedim(0, 1).unsqueeze(0)  # noqa: E731
    found: dict[str, tuple[Way, Callable[[Tensor], Tensor]]] = {
        "channels first": (partial(F.conv3d, window, weight, padding=(0, 1, 1)), same),
        "channels last": (partial(F.conv3d, last, weight_last, padding=(0, 1, 1)), same),
    }
    found["channels last, searched"] = (searched(found["channels last"][0]), same)
    planes = stacked(window)
    flat = torch.cat(weight.unbind(dim=2), dim=1).contiguous(memory_format=torch.channels_last)
    if shape.out_channels == 3:
        wide = F.pad(weight_last, (0, 0) * 4 + (0, 5)).contiguous(memory_format=LAST)
        found["eight outputs"] = (partial(F.conv3d, last, wide, padding=(0, 1, 1)), lambda out: out[:, :3])
        found["stacked"] = (partial(F.conv2d, planes, flat, padding=1), in_frames)
        for more in (5, 29, 61):
            wide = F.pad(flat, (0, 0) * 3 + (0, more)).contiguous(memory_format=torch.channels_last)
            way = partial(F.conv2d, planes, wide, padding=1)
            found[f"stacked, {3 + more} outputs"] = (way, lambda out: in_frames(out[:, :3]))
            found[f"stacked, {3 + more} outputs, searched"] = (searched(way), lambda out: in_frames(out[:, :3]))
        return found
    found["stacked"] = (partial(F.conv2d, planes, flat, padding=1), in_frames)
    found["stacked, searched"] = (searched(found["stacked"][0]), in_frames)
    if shape.frames % 2 == 0:
        pairs, both = paired(window, weight)
        found["paired"] = (partial(F.conv2d, pairs, both, padding=1), unpair)
        found["paired, searched"] = (searched(found["paired"][0]), unpair)
    if shape.in_channels == 96:
        more = F.pad(last, (0, 0, 0, 0, 0, 0, 0, 32)).contiguous(memory_format=LAST)
        wide = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, 32)).contiguous(memory_format=LAST)
        found["128 inputs"] = (partial(F.conv3d, more, wide, padding=(0, 1, 1)), same)
    bordered = F.pad(window, (1, 1, 1, 1)).contiguous(memory_format=LAST)
    found["border in memory"] = (partial(F.conv3d, bordered, weight_last), same)
    found |= triton_ways(shape, last, bordered, weight)
    return found


def triton_ways(shape: Shape, window: Tensor, bordered: Tensor, weight: Tensor) -> dict[str, tuple[Way, Callable]]:
    try:
        from benchmarks import shifted_conv
    except (ImportError, OSError) as error:
        print(f"  no Triton: {error}")
        return {}
    matrix = shifted_conv.matrix(weight)
    tiles = [(128, 64, 3), (128, 64, 4)]
    if shape.out_channels == 96:
        tiles = [(256, 32, 2), (256, 32, 3), (128, 96, 2), (128, 96, 3), (256, 96, 2), (256, 96, 3)]
    settings = [{"m": m, "k": k, "warps": 8, "stages": stages} for m, k, stages in tiles]
    found = {}
    for each in settings:
        label = "/".join(str(value) for value in each.values())
        found[f"triton masked {label}"] = (partial(shifted_conv.masked, window, matrix, **each), lambda out: out)
        found[f"triton padded {label}"] = (partial(shifted_conv.padded, bordered, matrix, **each), lambda out: out)
    return found


def enlargements() -> dict[str, tuple[Way, float]]:
    """The convolution behind the last upsampling, over doubled pixels and merged: the way and its operations."""
    x = torch.randn(4, 192, 360, 640, device="cuda").bfloat16().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(96, 192, 3, 3, device="cuda").bfloat16() * 0.02
    flops = 2.0 * 9 * 192 * 96 * 4 * 720 * 1280
    doubled = F.interpolate(x, scale_factor=2.0, mode="nearest-exact")
    merged = merged_weight(weight).contiguous(memory_format=torch.channels_last)
    found: dict[str, tuple[Way, float]] = {
        "doubled, convolution only": (partial(F.conv2d, doubled, weight, padding=1), flops),
        "doubled, doubling only": (partial(F.interpolate, x, scale_factor=2.0, mode="nearest-exact"), flops),
        "merged, convolution only": (partial(F.conv2d, x, merged, padding=1), flops),
    }
    try:
        from wan_core.kernels import triton_vae, vae
    except (ImportError, OSError) as error:
        print(f"  no Triton: {error}")
        return found
    bias = torch.zeros(96, device="cuda", dtype=torch.bfloat16)
    corners = F.conv2d(x, merged, padding=1)
    found["merged, interleaving only (PyTorch)"] = (partial(vae.interleave, corners, bias), flops)
    found["merged, interleaving only (Triton)"] = (partial(triton_vae.interleave, corners, bias), flops)
    return found


def seconds_of(way: Way, repeats: int = 5) -> float:
    way()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        way()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return median(times)


def kernels_of(way: Way) -> str:
    with profile(activities=[ProfilerActivity.CUDA]) as run:
        way()
        torch.cuda.synchronize()
    events = sorted(run.key_averages(), key=lambda event: -event.self_device_time_total)
    return "; ".join(f"{event.key[:110]} {event.self_device_time_total / 1e3:.2f}" for event in events[:3])


def measure(shape: Shape, deadline: float) -> list[dict[str, object]]:
    print(f"\n{shape}: {shape.flops / 1e12:.3f} TFLOP", flush=True)
    rows, expected = [], None
    for name, (way, read) in ways(shape).items():
        row: dict[str, object] = {"shape": str(shape), "way": name}
        if perf_counter() > deadline:
            row["failed"] = "no time left"
        else:
            try:
                torch.cuda.synchronize()
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                out = way()
                row["extra_bytes"] = torch.cuda.max_memory_allocated() - before - out.nbytes
                result = read(out).float()
                expected = result if expected is None else expected
                row["error"] = ((result - expected).norm() / expected.norm()).item()
                del result, out
                seconds = seconds_of(way)
                row |= {"ms": seconds * 1e3, "tflops": shape.flops / seconds / 1e12}
                if "triton" not in name:
                    row["kernels"] = kernels_of(way)
            except Exception as error:  # noqa: BLE001 - one way that fails must not cost the others
                row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
        rows.append(row)
        show(row)
    return rows


def show(row: dict[str, object]) -> None:
    if "failed" in row:
        print(f"  {row['way']:<30} {row['failed']}", flush=True)
        return
    print(
        f"  {row['way']:<30}{row['ms']:>8.3f} ms{row['tflops']:>7.0f} TFLOP/s  error {row['error']:.1e}"
        f"  +{row['extra_bytes'] / 1e6:>6.0f} MB  {row.get('kernels', '')}",
        flush=True,
    )


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--seconds", type=float, default=45.0, help="no new row is begun after so many")
    arguments = parsed_on_a_card(parser)
    deadline, rows = perf_counter() + arguments.seconds, []
    print(torch.cuda.get_device_name(), torch.__version__, torch.backends.cudnn.version())
    try:
        for name, (way, flops) in enlargements().items():
            seconds = seconds_of(way)
            rate = flops / seconds / 1e12
            rows.append({"shape": "192->96 doubled", "way": name, "ms": seconds * 1e3, "tflops": rate})
            print(f"  {name:<38}{seconds * 1e3:>8.3f} ms{rate:>7.0f} TFLOP/s", flush=True)
        for shape in SHAPES:
            rows += measure(shape, deadline)
            torch.cuda.empty_cache()
    finally:
        if arguments.json:
            arguments.json.write_text(json.dumps({"shapes": [asdict(each) for each in SHAPES], "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
