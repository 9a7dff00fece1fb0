"""Which kernel is the fastest here: measured once per machine and class of problems, checked, and remembered.

Tables from other machines do not settle it: on a power-limited card the order of the same kernels is another one. A
kernel must be right before it may win: on random inputs an exact one may lose at most twice what PyTorch loses in the
same dtype, both against float64. Among kernels that differ by less than the noise the preferred one wins, so that the
choice, and with it the last bits of a video, does not change from one measurement to the next.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from statistics import median
from time import perf_counter

import torch

from ..hardware import Hardware
from ..report import Rejection
from . import verdict_store
from .interface import Attend, AttentionBackend, KernelChoice, first_line
from .probe import Probe, probe_bytes, queries_within
from .verdicts import AUTO, Calibration, Timing, Verdict, problem_class

# For the timed calls of one calibration together. Importing and compiling vendors' kernels comes on top.
BUDGET_SECONDS = 3.0
# A call does about as much as the device's matrix products get done in this time.
CALL_SECONDS = 0.04
ROUNDS = 3
# A kernel this many times slower than the fastest is timed once.
HOPELESS = 1.5
# Differences below this are noise.
MARGIN = 0.03

# Below this an error is rounding in float32, where twice the error of another order of summation proves nothing.
ROUNDING = 1e-5
# 8-bit attention loses 1.5e-2 to 6e-2 on such inputs (one H200, 2026-11-21); a layout that is mixed up loses all.
NEAR_ERROR = 0.1


def is_measurable(choice: KernelChoice, hardware: Hardware) -> bool:
    """Whether measuring could change the order: "auto" was asked for and there is a choice.

    Not on a CPU, where all that is offered comes down to PyTorch's one fast kernel.
    """
    return choice.asked == AUTO and len(choice.accepted) > 1 and hardware.is_cuda


def calibrate(choices: Sequence[KernelChoice], hardware: Hardware, known: Calibration) -> Calibration:
    """`known` with a verdict on each of the choices that had none; new ones are kept on disk.

    Whatever stands in the way (no memory, no disk) is a note, and the order of preference stays.
    """
    missing = {problem_class(c.problem): c for c in choices if is_measurable(c, hardware) and not known.covers(c)}
    verdicts, notes = {}, []
    for name, choice in missing.items():
        try:
            verdicts[name] = measure(choice, hardware, seconds=BUDGET_SECONDS / len(missing))
        except (NotMeasured, torch.OutOfMemoryError) as error:
            notes.append(f"kernels for {choice.topic} were not timed: {first_line(error)}")
    if verdicts and (note := verdict_store.keep(verdicts, hardware)):
        notes.append(note)
    # A note on reading is void once the file has been written anew.
    return Calibration(verdicts={**known.verdicts, **verdicts}, notes=(*(() if verdicts else known.notes), *notes))


@torch.inference_mode()
def measure(choice: KernelChoice, hardware: Hardware, *, seconds: float = BUDGET_SECONDS) -> Verdict:
    """Load, check and time every kernel that accepts the problem, in about `seconds` for the timed calls.

    Raises `NotMeasured` or `torch.OutOfMemoryError` where nothing comes of it.
    """
    problem = choice.problem
    num_queries = queries_within(problem, (hardware.rate(problem.dtype) or 1.0) * 1e12 * CALL_SECONDS)
    if (needed := probe_bytes(problem, num_queries)) > hardware.free_memory:
        raise NotMeasured(f"that needs {needed / 2**30:.1f} GiB, {hardware.free_memory / 2**30:.1f} GiB are free")
    probe = Probe(problem, hardware.device, num_queries=num_queries)
    kernels, errors, failed, untimed = {}, {}, [], []
    for backend in choice.accepted:
        try:
            attend, error = _check(backend, probe)
        except torch.OutOfMemoryError:  # says something about this moment, nothing about the kernel
            untimed.append(backend.name)
        except _Refused as refusal:
            failed.append(Rejection(name=backend.name, reason=str(refusal)))
        else:
            kernels[backend.name], errors[backend.name] = attend, error
    if not kernels:
        raise NotMeasured("; ".join(f"{item.name}: {item.reason}" for item in failed) or "there is no memory for any")
    timed = _time(kernels, probe, seconds)
    timings = [Timing(name=name, tflops=probe.flops / each / 1e12, error=errors[name]) for name, each in timed.items()]
    return Verdict(
        date=date.today().isoformat(),
        timings=tuple(_by_rate(timings)),
        failed=tuple(failed),
        untimed=(*(name for name in kernels if name not in timed), *untimed),
    )


class NotMeasured(Exception):  # noqa: N818 (the order of preference will do)
    """No verdict came about, and why."""


class _Refused(Exception):  # noqa: N818 (a verdict, not a defect)
    """A kernel that must not run here, and why."""


def _check(backend: AttentionBackend, probe: Probe) -> tuple[Attend, float]:
    """Load a kernel and run it once: the kernel and its relative error, which its label allows."""
    try:
        attend = backend.load()
        error = probe.error(attend)
    except torch.OutOfMemoryError:
        raise
    except (ImportError, OSError, RuntimeError) as problem:
        raise _Refused(f"{type(problem).__name__}: {first_line(problem)}") from problem
    limit = max(2 * probe.own_error, ROUNDING) if backend.quality == "exact" else NEAR_ERROR
    if not error <= limit:  # also where it is not a number
        raise _Refused(f"its error of {error:.1e} is over the {limit:.1e} that {backend.quality} kernels are allowed")
    return attend, error


def _time(kernels: Mapping[str, Attend], probe: Probe, seconds: float) -> dict[str, float]:
    """Median seconds by kernel, in order of preference; those that the time did not suffice for are left out.

    Rounds go through all kernels, so that a card that grows slower as it grows hot is as slow for each.
    """
    samples: dict[str, list[float]] = {}
    end = perf_counter() + seconds
    for _ in range(ROUNDS):
        fastest = min((min(taken) for taken in samples.values()), default=0.0)
        for name, attend in kernels.items():
            if samples and perf_counter() > end:
                break
            taken = samples.setdefault(name, [])
            if not taken or min(taken) <= HOPELESS * fastest:
                taken.append(probe.seconds(attend))
    return {name: median(taken) for name, taken in samples.items()}


def _by_rate(timings: Sequence[Timing]) -> list[Timing]:
    """Fastest first; of those that are as fast as the fastest left, the first in order of preference."""
    left, ordered = list(timings), []
    while left:
        enough = (1 - MARGIN) * max(timing.tflops for timing in left)
        chosen = next(timing for timing in left if timing.tflops >= enough)
        left.remove(chosen)
        ordered.append(chosen)
    return ordered
