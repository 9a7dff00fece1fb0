"""Every attention kernel that this GPU can run, at the sizes of Wan 2.2: speed, and error against float64.

    python -m benchmarks.bench_attention [--sizes 480p 720p --dtype bfloat16 --kernels flash-attn-4 cudnn --json FILE]

A row is one kernel on one problem: milliseconds and TFLOP/s (4 * queries * keys * dim, as FlashAttention counts them),
the share of this device's matrix product rate as measured in the same run, and the relative error on random inputs for
64 rows of 4 heads, all keys. The error of PyTorch's own choice in the same dtype stands in the heading. Rounds go
through all kernels in turn, so that a card that grows slower as it grows hot does so for each. Kernels that do not run
are listed with the reason.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from statistics import median

import torch

from benchmarks.card import add_card, parsed_on_a_card, say_versions
from wan_core.attention.backends import BACKEND_NAMES, BACKENDS
from wan_core.attention.interface import Attend, AttentionProblem, first_line
from wan_core.attention.probe import Probe
from wan_core.hardware import Hardware
from wan_core.specs import T2V_A14B_TRANSFORMER

# Latent (T, H, W) of 81 frames.
SIZES = {"480p": (21, 60, 104), "720p": (21, 90, 160)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kernel on one problem; `problem` is "720p self" and the like."""

    problem: str
    kernel: str
    milliseconds: float
    tflops: float
    error: float


def problems(sizes: list[str], dtype: str) -> dict[str, AttentionProblem]:
    """Self and cross attention of one video of each size."""
    spec, found = T2V_A14B_TRANSFORMER, {}
    for size in sizes:
        num_tokens = spec.num_tokens(SIZES[size])
        for kind, kv_len in (("self", num_tokens), ("cross", spec.text_len)):
            found[f"{size} {kind}"] = AttentionProblem(
                batch=1, q_len=num_tokens, kv_len=kv_len, num_heads=spec.num_heads, head_dim=spec.head_dim, dtype=dtype
            )
    return found


def usable(
    problem: AttentionProblem, hardware: Hardware, names: list[str], probe: Probe
) -> tuple[dict[str, Attend], dict[str, float], dict[str, str]]:
    """Kernels that run the problem, their errors, and the reasons of those that do not. Warms up what runs."""
    kernels, errors, reasons = {}, {}, {}
    for backend in BACKENDS:
        if backend.name not in names:
            continue
        if reason := backend.rejects(problem, hardware):
            reasons[backend.name] = reason
            continue
        try:
            attend = backend.load()
            errors[backend.name] = probe.error(attend)
        except (ImportError, OSError, RuntimeError) as error:
            reasons[backend.name] = f"{type(error).__name__}: {first_line(error)}"
        else:
            kernels[backend.name] = attend
    return kernels, errors, reasons


@torch.inference_mode()
def measure(name: str, problem: AttentionProblem, hardware: Hardware, arguments: argparse.Namespace) -> list[Row]:
    """Time every kernel on one problem, and print the table."""
    probe = Probe(problem, hardware.device)
    kernels, errors, reasons = usable(problem, hardware, arguments.kernels, probe)
    samples: dict[str, list[float]] = {kernel: [] for kernel in kernels}
    for _ in range(arguments.rounds):
        for kernel, attend in kernels.items():
            samples[kernel].append(probe.seconds(attend))
    rows = [
        Row(
            problem=name,
            kernel=kernel,
            milliseconds=median(seconds) * 1e3,
            tflops=probe.flops / median(seconds) / 1e12,
            error=errors[kernel],
        )
        for kernel, seconds in samples.items()
    ]
    print(f"\n{name}: {problem.q_len} x {problem.kv_len}, {problem.dtype}, PyTorch's own error {probe.own_error:.2e}")
    for row in sorted(rows, key=lambda row: row.milliseconds):
        share = row.tflops / (hardware.rate(problem.dtype) or float("nan"))
        print(f"  {row.kernel:<14}{row.milliseconds:>9.3f} ms{row.tflops:>7.0f} TFLOP/s{share:>6.0%}{row.error:>10.2e}")
    for kernel, reason in reasons.items():
        print(f"  {kernel:<14}{reason}")
    return rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_card(parser)
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--kernels", nargs="+", choices=BACKEND_NAMES, default=list(BACKEND_NAMES))
    parser.add_argument("--rounds", type=int, default=5)
    return parsed_on_a_card(parser)


def main() -> int:
    arguments = parse_arguments()
    hardware = Hardware.detect(arguments.device)
    environment = hardware.environment()
    rate = hardware.rate(arguments.dtype)
    say_versions(hardware)
    print(f"{arguments.dtype} matrix product: {rate:.0f} TFLOP/s")
    rows = []
    for name, problem in problems(arguments.sizes, arguments.dtype).items():
        rows += measure(name, problem, hardware, arguments)
    if arguments.json:
        data = {"environment": environment, "matmul_tflops": rate, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(data, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
