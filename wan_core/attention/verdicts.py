"""What was measured about attention on this machine, as data: plans are resolved against it and stay pure.

A verdict holds for a class of problems: queries and keys to the nearest power of two, heads, head dimension and dtype.
The batch is no part of it, since a kernel that fills the device with one video does so with two. Self attention and
cross attention (512 keys) fall into different classes, and so have verdicts of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import log2
from types import MappingProxyType

from ..report import Rejection
from .interface import AttentionProblem, KernelChoice

AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One kernel: its rate in TFLOP/s (4 * queries * keys * dim of all heads), its relative error against float64."""

    name: str
    tflops: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came out for one class of problems.

    date: the day, ISO. timings: in the order in which the kernels are to be tried. failed: those that must not run, and
    why. untimed: those for which there was no time.
    """

    date: str
    timings: tuple[Timing, ...]
    failed: tuple[Rejection, ...] = ()
    untimed: tuple[str, ...] = ()

    def covers(self, choice: KernelChoice) -> bool:
        """Whether every kernel of the choice was looked at."""
        known = {*self.untimed, *(item.name for item in (*self.timings, *self.failed))}
        return known.issuperset(choice.names)

    def order(self, choice: KernelChoice) -> KernelChoice:
        """The choice in measured order, without the kernels that failed; ordering twice changes nothing."""
        accepted = {backend.name: backend for backend in choice.accepted}
        failed = tuple(item for item in self.failed if item.name in accepted)
        names = [timing.name for timing in self.timings if timing.name in accepted]
        names += [name for name in accepted if name not in names and name not in {item.name for item in failed}]
        return replace(
            choice,
            accepted=tuple(accepted[name] for name in names),
            rejected=choice.rejected + failed,
            reason=self.describe(accepted),
        )

    def describe(self, names: Mapping[str, object]) -> str:
        """For example "flash-attn-4 665, cudnn 561 TFLOP/s, measured 2026-11-21", of these kernels."""
        rates = ", ".join(f"{item.name} {item.tflops:.3g}" for item in self.timings if item.name in names)
        return f"{rates} TFLOP/s, measured {self.date}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """All verdicts of one machine by class of problems, and what its owner should know about how they are kept."""

    verdicts: Mapping[str, Verdict] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()

    def covers(self, choice: KernelChoice) -> bool:
        """Whether nothing is left to be measured for this choice."""
        verdict = self.verdicts.get(problem_class(choice.problem))
        return verdict is not None and verdict.covers(choice)

    def order(self, choice: KernelChoice) -> KernelChoice:
        """The choice in measured order where "auto" was asked for and the measurement is complete; else as it is."""
        if choice.asked != AUTO or not self.covers(choice):
            return choice
        return self.verdicts[problem_class(choice.problem)].order(choice)

    def rate(self, choice: KernelChoice) -> float | None:
        """TFLOP/s of the kernel that a choice would run first, `None` where it was not timed."""
        verdict = self.verdicts.get(problem_class(choice.problem))
        rates = {timing.name: timing.tflops for timing in verdict.timings} if verdict else {}
        return rates.get(choice.names[0])


NOTHING_MEASURED = Calibration()


def problem_class(problem: AttentionProblem) -> str:
    """For example "bfloat16 65536x512x40x128": dtype, queries, keys, heads, head dimension."""
    queries, keys = (2 ** round(log2(length)) for length in (problem.q_len, problem.kv_len))
    return f"{problem.dtype} {queries}x{keys}x{problem.num_heads}x{problem.head_dim}"
