"""Attention kernels for whatever problems a run brings: chosen, timed and loaded when each first comes.

A transformer of our own is built for a size that its plan knows. A host's is not: its samplers, context windows and
batches decide from call to call what has to be attended.
"""

from collections.abc import Callable

import torch

from ..attention import verdict_store
from ..attention.calibrate import calibrate, is_measurable
from ..attention.interface import Attend, AttentionProblem, KernelChoice, bind
from ..choices import choose_attention
from ..hardware import Hardware
from ..profiles import OptimizationProfile
from ..report import Decision

OnDecision = Callable[[Decision], None]


class AttentionKernels:
    """Bound kernels by problem.

    detect: the machine as it is at that moment. on_decision: told once for each problem what was bound and why.
    """

    def __init__(
        self, profile: OptimizationProfile, detect: Callable[[], Hardware], on_decision: OnDecision = lambda _: None
    ) -> None:
        self._profile = profile
        self._detect = detect
        self._on_decision = on_decision
        self._bound: dict[tuple[object, ...], Attend] = {}

    def attend(self, queries: tuple[int, int, int, int], kv_len: int, dtype: torch.dtype) -> Attend:
        """The kernel for queries (B, L, N, D) over `kv_len` keys.

        Raises `UnsupportedError` where a strict profile cannot be kept.
        """
        key = (queries, kv_len, dtype)
        if key not in self._bound:
            self._bound[key] = self._bind(queries, kv_len, dtype)
        return self._bound[key]

    # Files and vendors' imports are nothing to be traced where somebody compiles the model around us.
    @torch.compiler.disable
    def _bind(self, queries: tuple[int, int, int, int], kv_len: int, dtype: torch.dtype) -> Attend:
        batch, q_len, num_heads, head_dim = queries
        problem = AttentionProblem(
            batch=batch,
            q_len=q_len,
            kv_len=kv_len,
            num_heads=num_heads,
            head_dim=head_dim,
            dtype=str(dtype).removeprefix("torch."),
        )
        hardware = self._detect()
        choice = choose_kernels(problem, hardware, self._profile)
        if is_measurable(choice, hardware):
            known = verdict_store.read(hardware)
            if not known.covers(choice):
                known = calibrate([choice], hardware, known)
            choice = known.order(choice)
        attend, decision = bind(choice, hardware, strict=self._profile.on_unsupported == "error")
        self._on_decision(decision)
        return attend


def choose_kernels(problem: AttentionProblem, hardware: Hardware, profile: OptimizationProfile) -> KernelChoice:
    """The kernels for a problem in order of preference, by the profile's setting for its kind of attention."""
    if problem.q_len == problem.kv_len:
        return choose_attention("self attention", profile.attention.backend, problem, hardware, profile)
    return choose_attention("cross attention", profile.attention.cross, problem, hardware, profile)
