"""The tail of a run on one GPU: decoding in several ways, its parts, its error, frames to MP4, prompts to context.

    python -m benchmarks.bench_vae [--json FILE] [--sections decode breakdown error tail text presets] [--ways NAME ...]

Random weights of the released sizes. decode: 1280x720; the seconds of 81 frames follow from the first chunks and the
median of the later ones, with the peak above the weights beside what `decode_bytes` predicts; the way that ships
(or the last of those that were asked for) is timed whole, three times, and is the one of all other sections. breakdown:
kernels of three chunks by kind, and seconds by layer. error: on a quarter of the frame, against float32. tail: decode,
frames as uint8 on the host, MP4, as the command line does it. What fails is listed with its reason and does not stop
the rest.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import bench_tail
from benchmarks.card import parsed_on_a_card
from wan_core.bench.random_weights import fill_module
from wan_core.kernels import vae as plain
from wan_core.kernels.vae import VaeKernels
from wan_core.models import vae21, vae_layers
from wan_core.models.vae21 import WanVae
from wan_core.models.vae_memory import decode_bytes
from wan_core.specs import WAN21_VAE

SIZE_720P, QUARTER = (21, 90, 160), (5, 45, 80)
NUM_CHUNKS = SIZE_720P[0]
TIMED_CHUNKS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to decode. `layout` is that of the windows; frames that the widest layers take together over windows, and
    those that the level before takes where the widest run over planes."""

    kernels: VaeKernels
    layout: torch.memory_format = torch.channels_last_3d
    at_once: int = 2
    before: int = 4
    searched: bool = False


def ways() -> dict[str, Way]:
    """The first is PyTorch as it comes, to which the others' errors are held."""
    found = {
        "channels first": Way(kernels=plain.TORCH, layout=torch.contiguous_format),
        "channels last": Way(kernels=plain.TORCH),
    }
    try:
        from wan_core.kernels.triton_vae import TRITON
    except (ImportError, OSError) as error:
        print(f"no Triton: {type(error).__name__}: {error}")
        return found
    windows = replace(TRITON, forms=replace(TRITON.forms, stacks=plain.never))
    return found | {
        "Triton, windows of 2": Way(kernels=windows),
        "Triton, windows of 4": Way(kernels=windows, at_once=4),
        "Triton, planes after 2": Way(kernels=TRITON, before=2),
        "Triton, planes after 4": Way(kernels=TRITON),
        "Triton, planes after 4, searched": Way(kernels=TRITON, searched=True),
    }


@contextmanager
def decoding(vae: WanVae, way: Way) -> Iterator[None]:
    """The VAE set to decode in one way."""
    for module in vae.modules():
        if hasattr(module, "kernels"):
            module.kernels = way.kernels
    settings = vae_layers.LAYOUT, vae21.FRAMES_AT_ONCE, vae21.FRAMES_AT_ONCE_BEFORE
    vae_layers.LAYOUT, vae21.FRAMES_AT_ONCE, vae21.FRAMES_AT_ONCE_BEFORE = way.layout, way.at_once, way.before
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=way.searched, allow_tf32=False):
            yield
    finally:
        vae_layers.LAYOUT, vae21.FRAMES_AT_ONCE, vae21.FRAMES_AT_ONCE_BEFORE = settings


def make_vae(dtype: torch.dtype) -> WanVae:
    with torch.device("meta"):
        vae = WanVae(WAN21_VAE).to(dtype)
    vae.to_empty(device="cuda")
    fill_module(vae, lambda name: name)
    return vae


def draw(size: tuple[int, int, int]) -> Tensor:
    return torch.randn(1, 16, *size, generator=torch.Generator("cuda").manual_seed(0), device="cuda")


def time_chunks(vae: WanVae, latent: Tensor) -> list[float]:
    """Seconds of each chunk, which is thrown away."""
    marks = [_event()]
    for chunk in vae.decode_chunks(latent):
        del chunk
        marks.append(_event())
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in zip(marks, marks[1:], strict=False)]


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def peak_of(work: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_decode(vae: WanVae, way: Way) -> dict[str, object]:
    latent = draw((TIMED_CHUNKS, *SIZE_720P[1:]))
    with decoding(vae, way):
        start = perf_counter()
        time_chunks(vae, latent[:, :, :3])
        cold = perf_counter() - start
        chunks: list[float] = []
        peak = peak_of(lambda: chunks.extend(time_chunks(vae, latent)))
        predicted = decode_bytes(WAN21_VAE, SIZE_720P, 2, None, way.kernels.forms)
    later = median(chunks[2:])
    return {
        "seconds": chunks[0] + chunks[1] + (NUM_CHUNKS - 2) * later,
        "first_ms": chunks[0] * 1e3,
        "chunk_ms": later * 1e3,
        "cold_seconds": cold,
        "peak_bytes": peak,
        "predicted_over_peak": predicted / peak,
    }


def measure_whole(vae: WanVae, way: Way) -> dict[str, object]:
    latent = draw(SIZE_720P)
    with decoding(vae, way):
        samples = [sum(time_chunks(vae, latent)) for _ in range(3)]
    return {"seconds": median(samples), "samples": samples}


_KINDS = {
    "attention": ("fmha", "flash", "attention", "softmax"),
    "layout changes": ("nchwtonhwc", "nhwctonchw", "transpose", "convert_tensor"),
    "convolutions": ("conv", "fprop", "implicit", "cudnn", "xmma", "cutlass_tensorop", "wgrad", "dgrad"),
    "matrix products": ("gemm", "nvjet", "cublas", "cutlass"),
    "copies": ("memcpy", "memset", "copy", "catarray", "fill"),
}


_OURS = ("_activate", "_push", "_add", "_interleave")


def kind_of(kernel: str) -> str:
    if kernel in _OURS:
        return "norm, SiLU, sums, interleaving"
    name = kernel.lower()
    return next((kind for kind, parts in _KINDS.items() if any(part in name for part in parts)), "other elementwise")


def measure_breakdown(vae: WanVae, way: Way) -> dict[str, object]:
    """Milliseconds a chunk, by kind of kernel, by kernel, and by layer of the decoder."""
    latent, num = draw((5, *SIZE_720P[1:])), 3
    with decoding(vae, way):
        by_layer = _seconds_by_layer(vae, latent)
        chunks = vae.decode_chunks(latent)
        next(chunks), next(chunks)
        with profile(activities=[ProfilerActivity.CUDA]) as run:
            for _ in range(num):
                next(chunks)
            torch.cuda.synchronize()
    kinds: dict[str, float] = defaultdict(float)
    events = sorted(run.key_averages(), key=lambda event: -event.self_device_time_total)
    for event in events:
        kinds[kind_of(event.key)] += event.self_device_time_total / 1e3 / num
    kernels = [
        [event.key[:150], event.self_device_time_total / 1e3 / num, event.count / num, kind_of(event.key)]
        for event in events[:32]
    ]
    return {"kinds": dict(kinds), "kernels": kernels, "layers": by_layer}


def _seconds_by_layer(vae: WanVae, latent: Tensor) -> dict[str, float]:
    marks: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = defaultdict(list)
    open_marks: dict[str, torch.cuda.Event] = {}
    layers = {"conv1": vae.decoder.conv1, "head": vae.decoder.head}
    layers |= {f"middle.{i} {type(each).__name__}": each for i, each in enumerate(vae.decoder.middle)}
    layers |= {f"{i} {type(each).__name__}": each for i, each in enumerate(vae.decoder.upsamples)}
    handles = []
    for name, layer in layers.items():

        def begin(module: nn.Module, inputs: object, name: str = name) -> None:
            open_marks[name] = _event()

        def end(module: nn.Module, inputs: object, out: object, name: str = name) -> None:
            marks[name].append((open_marks[name], _event()))

        handles += [layer.register_forward_pre_hook(begin), layer.register_forward_hook(end)]
    for index, chunk in enumerate(vae.decode_chunks(latent)):
        del chunk
        if index == 0:
            marks.clear()  # a frame instead of four
    torch.cuda.synchronize()
    for handle in handles:
        handle.remove()
    num = latent.shape[2] - 1
    return {name: sum(a.elapsed_time(b) for a, b in pairs) / num for name, pairs in marks.items()}


def measure_errors(vae: WanVae, chosen: dict[str, Way]) -> dict[str, object]:
    """Relative error of the video against float32 with the same (bfloat16) weights and latent."""
    latent = draw(QUARTER).bfloat16()
    exact_vae = make_vae(torch.float32)
    with decoding(exact_vae, Way(kernels=plain.TORCH, layout=torch.contiguous_format)):
        exact = exact_vae.decode(latent.float())
    del exact_vae
    errors: dict[str, object] = {"std of the video": exact.std().item()}
    for name, way in chosen.items():
        try:
            with decoding(vae, way):
                errors[name] = ((vae.decode(latent).float() - exact).norm() / exact.norm()).item()
        except Exception as error:  # noqa: BLE001 - one way that fails must not cost the others
            errors[name] = reason(error)
    return errors


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


def show_decode(name: str, row: dict[str, object]) -> None:
    print(
        f"  {name:<38}{row['seconds']:>7.3f} s  first {row['first_ms']:>6.1f} ms  chunk {row['chunk_ms']:>6.1f} ms  "
        f"peak {row['peak_bytes'] / 1e9:>6.2f} GB  predicted/peak {row['predicted_over_peak']:.3f}  "
        f"cold {row['cold_seconds']:.1f} s",
        flush=True,
    )


def show_breakdown(found: dict[str, object]) -> None:
    for title in ("kinds", "layers"):
        print(f"  {title}, ms a chunk (sum {sum(found[title].values()):.1f}):")
        for name, value in sorted(found[title].items(), key=lambda item: -item[1]):
            print(f"    {name:<34}{value:>8.2f}")
    for name, value, count, kind in found["kernels"]:
        print(f"    {value:>7.2f} ms x{count:>5.1f}  {kind[:12]:<12} {name}")


class Bench:
    """Runs the sections one by one and keeps what they found, also of those before one that failed."""

    def __init__(self, chosen: dict[str, Way]) -> None:
        self.found: dict[str, object] = {}
        self._chosen = chosen
        self._vae = make_vae(torch.bfloat16)
        self.main = _SHIPPED if _SHIPPED in chosen else next(reversed(chosen))

    def decode(self) -> None:
        rows = self.found["decode"] = {}
        for name, way in self._chosen.items():
            try:
                rows[name] = measure_decode(self._vae, way)
                show_decode(name, rows[name])
            except Exception as error:  # noqa: BLE001 - one way that fails must not cost the others
                rows[name] = {"failed": reason(error)}
                print(f"  {name:<38}{rows[name]['failed']}", flush=True)
        whole = self.found["whole"] = {"way": self.main, **measure_whole(self._vae, self._chosen[self.main])}
        print(f"  whole, {self.main}: median {whole['seconds']:.3f} s of {[round(s, 3) for s in whole['samples']]}")

    def breakdown(self) -> None:
        both = self.found["breakdown"] = {}
        for name in dict.fromkeys((self.main, next(iter(self._chosen)))):
            print(f"  -- {name}")
            both[name] = measure_breakdown(self._vae, self._chosen[name])
            show_breakdown(both[name])

    def error(self) -> None:
        errors = self.found["error"] = measure_errors(self._vae, self._chosen)
        plain_error = errors[next(iter(self._chosen))]
        for name, value in errors.items():
            shown = f"{value:.3e}, {value / plain_error:.3f} of the first" if isinstance(value, float) else value
            print(f"  {name:<38}{shown}")

    def tail(self) -> None:
        with decoding(self._vae, self._chosen[self.main]), tempfile.TemporaryDirectory() as folder:
            self.found["tail"] = bench_tail.tail(self._vae, draw(SIZE_720P), Path(folder))

    def presets(self) -> None:
        with decoding(self._vae, self._chosen[self.main]), tempfile.TemporaryDirectory() as folder:
            self.found["presets"] = bench_tail.presets(self._vae, draw((9, *SIZE_720P[1:])), Path(folder))

    def text(self) -> None:
        self.found["text"] = bench_tail.text()


# What a plan builds where Triton is there.
_SHIPPED = "Triton, planes after 4"
SECTIONS = ("decode", "breakdown", "error", "tail", "presets", "text")


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument(
        "--ways", nargs="+", metavar="NAME", help="by default all; the first is what errors are held to"
    )
    arguments = parsed_on_a_card(parser)
    print(torch.cuda.get_device_name(), torch.__version__, torch.backends.cudnn.version())
    chosen = {name: way for name, way in ways().items() if name in (arguments.ways or [name])}
    bench = Bench(chosen)
    for section in arguments.sections:
        start = perf_counter()
        print(f"\n{section}", flush=True)
        try:
            getattr(bench, section)()
        except Exception as error:  # noqa: BLE001 - one section that fails must not cost the others
            bench.found[f"{section} failed"] = reason(error)
            print(f"  failed: {reason(error)}")
        print(f"  ({perf_counter() - start:.1f} s)", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(bench.found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
