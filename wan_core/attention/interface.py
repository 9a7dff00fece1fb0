"""Attention as a problem, backends that accept it or say why not, and the choice among them.

Layout: q, k, v are (B, L, N, D) at every interface: batch, tokens, heads, head dimension. Backends transpose privately.
A backend rejects a problem with a reason in words; `survivors` is that half and touches no library. `bind` loads the
survivors in order, runs each once on a tiny problem, and returns the first that works. After that nothing is caught:
a kernel that fails in a run is our defect and must be seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Thread

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..hardware import Hardware
from ..importing import in_thread
from ..profiles import Quality, check_choice
from ..report import Decision, Rejection

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
_ORDER: tuple[Quality, ...] = ("exact", "near", "lossy")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionProblem:
    """What is to be attended: (batch, q_len, num_heads, head_dim) over kv_len keys, without a mask."""

    batch: int
    q_len: int
    kv_len: int
    num_heads: int
    head_dim: int
    dtype: str

    def tensors(self, device: str, max_len: int = 64) -> tuple[Tensor, Tensor, Tensor]:
        """Random q, k, v of this problem with at most `max_len` tokens, for a smoke test."""
        generator = torch.Generator(device=device).manual_seed(0)

        def draw(length: int) -> Tensor:
            shape = (1, min(length, max_len), self.num_heads, self.head_dim)
            return torch.randn(shape, generator=generator, device=device).to(getattr(torch, self.dtype))

        return draw(self.q_len), draw(self.kv_len), draw(self.kv_len)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionBackend:
    """One way to compute attention. `rejects` returns `None` or the reason in words; `load` does the vendor import.

    imports: that import alone, where it takes long enough to be done beside something else.
    """

    name: str
    quality: Quality
    rejects: Callable[[AttentionProblem, Hardware], str | None]
    load: Callable[[], Attend]
    imports: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelChoice:
    """The pure half of a selection: who accepts the problem, in the order to be tried, and why the others do not.

    `reason` says where the order comes from.
    """

    topic: str
    asked: str
    accepted: tuple[AttentionBackend, ...]
    rejected: tuple[Rejection, ...]
    problem: AttentionProblem
    reason: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(backend.name for backend in self.accepted)

    @property
    def decision(self) -> Decision:
        """What will be tried first. Loading it may still fail; `bind` then says what runs instead."""
        return self._decide(self.accepted[0], self.rejected)

    def _decide(self, backend: AttentionBackend, rejected: Sequence[Rejection]) -> Decision:
        return Decision(
            topic=self.topic,
            asked=self.asked,
            chosen=backend.name,
            reason=self.reason,
            quality=backend.quality,
            rejected=tuple(rejected),
        )


def survivors(
    topic: str,
    asked: str,
    problem: AttentionProblem,
    hardware: Hardware,
    backends: Sequence[AttentionBackend],
    *,
    ceiling: Quality = "exact",
) -> KernelChoice:
    """Ask every backend whether it can run the problem; loads nothing.

    `backends` is in order of preference and its last entry rejects nothing. A named backend comes first and the rest
    stand behind it as its fallbacks; the ceiling binds "auto", not a name the user chose.
    """
    check_choice(f"{topic} backend", asked, ("auto", *(backend.name for backend in backends)))
    accepted, rejected = [], []
    for backend in sorted(backends, key=lambda backend: backend.name != asked):
        reason = backend.rejects(problem, hardware)
        if reason is None and backend.name != asked and _ORDER.index(backend.quality) > _ORDER.index(ceiling):
            reason = f"{backend.quality}, above the profile's ceiling {ceiling!r}"
        if reason is None:
            accepted.append(backend)
        # What stands behind the first choice anyway needs no excuse; only what was preferred to it does.
        elif not accepted:
            rejected.append(Rejection(name=backend.name, reason=reason))
    return KernelChoice(topic=topic, asked=asked, accepted=tuple(accepted), rejected=tuple(rejected), problem=problem)


def import_ahead(choice: KernelChoice) -> Thread | None:
    """Import in a thread what the first accepted backend needs, while something else is done; `bind` waits for it.

    What fails here fails again in `bind`, which says so.
    """
    imports = choice.accepted[0].imports
    return None if imports is None else in_thread(imports)


def bind(choice: KernelChoice, hardware: Hardware, *, strict: bool = False) -> tuple[Attend, Decision]:
    """Load the first accepted backend that passes its smoke test, and say what was decided.

    strict: only the backend that was asked for will do; `UnsupportedError` otherwise.
    """
    rejected = list(choice.rejected)
    for backend in choice.accepted:
        if strict and choice.asked not in ("auto", backend.name):
            break
        try:
            attend = backend.load()
            _smoke_test(attend, choice.problem, hardware)
        except (ImportError, OSError, RuntimeError) as error:
            rejected.append(Rejection(name=backend.name, reason=f"{type(error).__name__}: {first_line(error)}"))
            continue
        return attend, choice._decide(backend, rejected)
    reasons = "; ".join(f"{item.name}: {item.reason}" for item in rejected)
    raise UnsupportedError(f"{choice.topic} {choice.asked!r} cannot run on {hardware.name}: {reasons}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message: vendors append pages."""
    return str(error).strip().split("\n", 1)[0]


def _smoke_test(attend: Attend, problem: AttentionProblem, hardware: Hardware) -> None:
    q, k, v = problem.tensors(hardware.device)
    out = attend(q, k, v)
    if out.shape != q.shape or not bool(torch.isfinite(out).all()):
        raise RuntimeError(f"smoke test gave shape {tuple(out.shape)} or a non-finite value")
