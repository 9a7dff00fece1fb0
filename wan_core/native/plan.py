"""What becomes of a native model under a profile: pure, from facts that its host has read off it.

The host loads the weights, places them and runs the passes of guidance; settings for that have no meaning here, and the
plan says so rather than ignore them in silence.
"""

from dataclasses import dataclass, replace

from ..attention.interface import AttentionProblem
from ..attention.verdicts import Calibration
from ..hardware import Hardware
from ..profiles import PRESETS, OptimizationProfile, setting_names
from ..report import Decision
from .facts import NativeModel
from .kernels import choose_kernels
from .work import choose_work

# The settings that say something about a model which is the host's.
_SETTINGS = ("attention.backend", "attention.cross", "fusion.kernels", "quality", "on_unsupported")
# Attention is chosen again for every size that comes; the report shows the choice for 832x480x81.
_EXAMPLE_TOKENS, _TEXT_TOKENS = 32_760, 512


@dataclass(frozen=True, slots=True, kw_only=True)
class NativePlan:
    """What does the blocks' work and what will be tried for attention, each with its reason."""

    work: Decision
    attention: tuple[Decision, ...]
    warnings: tuple[str, ...]

    def to_text(self) -> str:
        """For people: warnings first, then the choices."""
        lines = [f"! {warning}" for warning in self.warnings]
        lines += [f"{'! ' if decision.degraded else ''}{decision}" for decision in (*self.attention, self.work)]
        return "\n".join(lines)


def resolve_native(
    profile: OptimizationProfile, hardware: Hardware, model: NativeModel, calibration: Calibration
) -> NativePlan:
    """Decide what runs. Raises `UnsupportedError` where a strict profile cannot be kept."""
    example = AttentionProblem(
        batch=1,
        q_len=_EXAMPLE_TOKENS,
        kv_len=_EXAMPLE_TOKENS,
        num_heads=model.num_heads,
        head_dim=model.head_dim,
        dtype=model.dtype,
    )
    problems = (example, replace(example, kv_len=_TEXT_TOKENS))
    return NativePlan(
        work=choose_work(profile, hardware, model),
        attention=tuple(calibration.order(choose_kernels(each, hardware, profile)).decision for each in problems),
        warnings=(*_warnings(profile, model), *calibration.notes),
    )


def _warnings(profile: OptimizationProfile, model: NativeModel) -> tuple[str, ...]:
    found = []
    if model.has_override:
        found.append("another node's attention comes first; our kernels compute what it passes on")
    if model.compiled_whole:
        found.append("another node compiles the model, in place of our block work; try without that node")
    if ignored := [name for name in setting_names() if name not in _SETTINGS and _differs(profile, name)]:
        found.append(f"without effect on a native model, which ComfyUI loads and runs: {', '.join(ignored)}")
    return tuple(found)


def _differs(profile: OptimizationProfile, name: str) -> bool:
    """Whether the profile sets this to something else than `auto` does."""
    part, _, leaf = name.partition(".")
    asked, default = (getattr(each, part) for each in (profile, PRESETS["auto"]))
    return (getattr(asked, leaf) != getattr(default, leaf)) if leaf else asked != default
