"""`doctor`: what this machine can run, and the reason for everything that it cannot."""

import importlib.metadata
import json
import platform
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from ..attention import verdict_store
from ..attention.backends import BACKENDS
from ..attention.calibrate import calibrate, is_measurable
from ..attention.interface import AttentionBackend, AttentionProblem, bind, first_line, survivors
from ..attention.verdicts import NOTHING_MEASURED
from ..errors import BROKEN_LIBRARY
from ..hardware import OPTIONAL_LIBRARIES, Hardware
from ..report import Decision
from ..specs import T2V_A14B_TRANSFORMER
from . import issue_report

# Libraries outside PyTorch, and what is lost without each.
LIBRARIES = {
    "av": "no MP4 files",
    "Pillow": "no pictures",
    "sentencepiece": "no prompts",
    "ftfy": "prompts keep broken characters",
    "gguf": "no rare GGUF blocks (Q2_K, Q3_K, IQ)",
    "kornia": "no SSIM",
    **dict.fromkeys(OPTIONAL_LIBRARIES, ""),
}

# What is imported of a library, where that is not its own name.
MODULES = {
    "Pillow": "PIL",
    "flash-attn-4": "flash_attn.cute",
    "flash-attn-3": "flash_attn_interface",
    "flash-attn": "flash_attn",
    "comfy-kitchen": "comfy_kitchen",
}

NOT_TIMED = "in order of preference; timed at the first run, or now with --measure"

_SIZE_720P = (21, 90, 160)
_PACK = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendVerdict:
    """One attention backend on this machine; `problem` is `None` where it is usable, else the reason in words."""

    name: str
    quality: str
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Everything that `doctor` says. Library versions are `None` where a library is not installed.

    broken: libraries that are installed and cannot be imported, and why.
    auto: what "auto" would take on a GPU, and how fast it was found to be; nothing on a CPU.
    """

    system: str
    python: str
    hardware: Hardware
    attention_shape: str
    attention: tuple[BackendVerdict, ...]
    libraries: dict[str, str | None]
    broken: dict[str, str] = field(default_factory=dict)
    auto: tuple[Decision, ...] = ()
    notes: tuple[str, ...] = ()


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument("--device", help="cpu or cuda:N (default: the first NVIDIA card, else the CPU)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument(
        "--report", action="store_true", help="print Markdown for an issue, without the names of folders and users"
    )
    parser.add_argument(
        "--measure", action="store_true", help="time the attention kernels anew, on a GPU with nothing else to do"
    )


def run(arguments: Namespace) -> int:
    """Print the diagnosis."""
    diagnosis = examine(arguments.device, measure=arguments.measure)
    if arguments.report:
        print(to_issue(diagnosis))
    else:
        print(json.dumps(asdict(diagnosis), indent=2) if arguments.json else to_text(diagnosis))
    return 0


def examine(device: str | None = None, *, measure: bool = False) -> Diagnosis:
    """Look at the machine, and load and try every attention backend that accepts the real problem.

    measure: time them too, whatever was measured before.
    """
    hardware = Hardware.detect(device)
    problem = _attention_problem(hardware)
    auto, notes = _auto(problem, hardware, measure=measure)
    versions = {name: _version(name) for name in LIBRARIES}
    return Diagnosis(
        system=platform.platform(),
        python=platform.python_version(),
        hardware=hardware,
        attention_shape=f"{problem.batch}x{problem.q_len}x{problem.num_heads}x{problem.head_dim} {problem.dtype}",
        attention=tuple(judge(backend, BACKENDS, problem, hardware) for backend in BACKENDS),
        libraries=versions,
        broken={name: why for name, version in versions.items() if version and (why := why_not(name))},
        auto=auto,
        notes=(*notes, *folder_notes(_PACK), *bytecode_notes(torch)),
    )


def _auto(
    problem: AttentionProblem, hardware: Hardware, *, measure: bool
) -> tuple[tuple[Decision, ...], tuple[str, ...]]:
    """What "auto" takes for self and cross attention, and notes on what is kept of the times."""
    problems = {"self attention": problem, "cross attention": replace(problem, kv_len=T2V_A14B_TRANSFORMER.text_len)}
    choices = [survivors(topic, "auto", each, hardware, BACKENDS) for topic, each in problems.items()]
    choices = [replace(each, reason=NOT_TIMED) for each in choices if is_measurable(each, hardware)]
    if measure:
        calibration = calibrate(choices, hardware, NOTHING_MEASURED)
    else:
        calibration = verdict_store.read(hardware)
    # Why the others do not run stands in the list of backends.
    return tuple(replace(calibration.order(each).decision, rejected=()) for each in choices), calibration.notes


def judge(
    backend: AttentionBackend, backends: Sequence[AttentionBackend], problem: AttentionProblem, hardware: Hardware
) -> BackendVerdict:
    """Whether one of `backends` accepts the problem, loads and passes its smoke test."""
    _, decision = bind(survivors("attention", backend.name, problem, hardware, backends), hardware)
    reasons = {item.name: item.reason for item in decision.rejected}
    return BackendVerdict(name=backend.name, quality=backend.quality, problem=reasons.get(backend.name))


def to_text(diagnosis: Diagnosis) -> str:
    """The diagnosis for people."""
    hardware = diagnosis.hardware
    cuda = "without CUDA" if hardware.cuda_version is None else f"CUDA {hardware.cuda_version}"
    capability = "" if hardware.capability is None else ", compute capability {}.{}".format(*hardware.capability)
    rows = [
        ("system", diagnosis.system),
        ("python", diagnosis.python),
        ("torch", f"{hardware.torch_version}, {cuda}"),
        ("device", f"{hardware.device}, {hardware.name}{capability}"),
        ("host memory", _memory(hardware.host_free_memory, hardware.host_memory)),
        *((f"{dtype} matmul", f"{rate:.3g} TFLOP/s measured") for dtype, rate in hardware.tflops),
    ]
    if hardware.is_cuda:
        rows.insert(4, ("device memory", _memory(hardware.free_memory, hardware.total_memory)))
    lines = [f"{name:<16}{value}" for name, value in rows]
    lines += ["", f"attention, tried for {diagnosis.attention_shape}, in order of preference"]
    wide = max((len(name) for name in (*diagnosis.libraries, *(item.name for item in diagnosis.attention))), default=0)
    lines += [f"  {item.name:<{wide}}  {item.problem or f'usable ({item.quality})'}" for item in diagnosis.attention]
    lines += [f"  auto, {decision}" for decision in diagnosis.auto]
    lines += [f"! {note}" for note in diagnosis.notes]
    lines += ["", "libraries"]
    lines += [f"  {name:<{wide}}  {_library(name, diagnosis)}" for name in diagnosis.libraries]
    return "\n".join(lines)


def to_issue(diagnosis: Diagnosis) -> str:
    """The diagnosis in Markdown, for an issue."""
    rows = issue_report.machine_rows(diagnosis.hardware, diagnosis.system, diagnosis.python)
    rows |= {f"{dtype} matmul": f"{rate:.3g} TFLOP/s" for dtype, rate in diagnosis.hardware.tflops}
    kernels = {item.name: item.problem or "usable" for item in diagnosis.attention}
    kernels |= {f"auto, {decision.topic}": str(decision) for decision in diagnosis.auto}
    kernels |= {f"note {index}": note for index, note in enumerate(diagnosis.notes, start=1)}
    libraries = {name: _library(name, diagnosis) for name in diagnosis.libraries}
    return issue_report.issue_text(issue_report.pack_version(), rows, kernels, libraries)


def folder_notes(pack: Path) -> tuple[str, ...]:
    """What is wrong with where the pack lies."""
    if " " not in pack.name:
        return ()
    return ("ComfyUI serves no panels from a folder with a space in its name: rename that of the pack",)


def bytecode_notes(library: ModuleType) -> tuple[str, ...]:
    """Whether each process compiles a large library's sources anew, as in containers that forbid to keep bytecode."""
    cached = library.__spec__.cached if library.__spec__ else None
    if not sys.dont_write_bytecode or (cached and Path(cached).exists()):
        return ()
    return (
        f"{library.__name__} has no compiled bytecode and Python may not keep any, which makes every start slow: unset "
        "PYTHONDONTWRITEBYTECODE, or run `python -m compileall` on the environment once",
    )


def why_not(library: str) -> str | None:
    """Why an installed library cannot be imported; `None` where it can."""
    try:
        import_module(MODULES.get(library, library))
    except BROKEN_LIBRARY as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _attention_problem(hardware: Hardware) -> AttentionProblem:
    """Self attention of the real model: 1280x720x81 on a GPU, a small video on a CPU."""
    spec = T2V_A14B_TRANSFORMER
    gpu_dtype = "bfloat16" if hardware.has_bfloat16 else "float16"
    size, dtype = (_SIZE_720P, gpu_dtype) if hardware.is_cuda else ((5, 16, 16), "float32")
    num_tokens = spec.num_tokens(size)
    return AttentionProblem(
        batch=1, q_len=num_tokens, kv_len=num_tokens, num_heads=spec.num_heads, head_dim=spec.head_dim, dtype=dtype
    )


def _memory(free: int, total: int) -> str:
    return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _library(name: str, diagnosis: Diagnosis) -> str:
    version, lost = diagnosis.libraries[name], LIBRARIES[name]
    if version is None:
        return f"not installed: {lost}" if lost else "not installed"
    if name in diagnosis.broken:
        return f"{version} cannot be imported{f', so {lost}' if lost else ''}: {diagnosis.broken[name]}"
    return version
