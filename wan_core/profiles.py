"""How to run: the optimization profile, its parts and the presets.

A profile says nothing about what to make (that is a recipe, `recipes.py`), holds no torch types and is hashable. It is
what a user asks for; `plan.resolve` turns it into what this machine will do, with a reason for every difference.
Each part is checked when it is created, so a profile that exists is a valid one.
"""

from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from math import inf
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import InputError

Quality = Literal["exact", "near", "lossy"]
DtypeName = Literal["float32", "bfloat16", "float16"]
CompileMode = Literal["off", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


class Checked:
    """A frozen dataclass whose `Literal` fields are checked when it is created."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal:
                check_choice(f"{type(self).__name__}.{name}", getattr(self, name), get_args(kind))


def check_choice(name: str, value: object, choices: tuple[Any, ...]) -> None:
    """Raise `InputError` with the nearest valid value unless `value` is one of `choices`."""
    if value in choices:
        return
    near = get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}{hint}")


def changed_name(name: str) -> str:
    """Name of a preset's changed copy; a copy of a copy keeps one mark."""
    return f"{name.removesuffix(' (changed)')} (changed)"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec(Checked):
    """Attention kernels by name, or "auto"; cross attention (512 keys) is chosen separately."""

    backend: str = "auto"
    cross: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionSpec(Checked):
    """Dtype of the weights and matrix products, and of the residual stream between them.

    "auto" is bfloat16 where the device computes it natively and float32 elsewhere. `tf32` concerns only what is left
    in float32, for the duration of the run. storage: weights of fp8, int8 and GGUF files are decoded to that dtype
    while they are loaded ("compute"), or stay in memory as the file stores them and are decoded before each product
    ("file"): the same numbers. "auto" decodes them where they stay on the device then.
    """

    weights: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    residual: Literal["float32", "weights"] = "float32"
    tf32: Literal["off", "on"] = "off"
    storage: Literal["auto", "compute", "file"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceSpec(Checked):
    """How the conditional and the unconditional pass run: in one batch, one after the other, or on two CUDA streams.

    The numbers are the same but for rounding.
    """

    execution: Literal["auto", "batched", "sequential", "two-stream"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadSpec(Checked):
    """Where the weights wait, and how much of the GPU's memory a run may take.

    policy: "resident" keeps both experts on the device, "experts" keeps the idle one on the host, "stream" lets the
    last blocks of the running one pass through two buffers. "auto" takes the first of these that fits.
    streamed_blocks: how many pass, or "auto": the fewest that fit. budget: in GiB, or "auto": what is free.
    """

    policy: Literal["auto", "resident", "experts", "stream"] = "auto"
    streamed_blocks: str = "auto"
    budget: str = "auto"

    def __post_init__(self) -> None:
        # Zero-argument super() does not survive dataclass(slots=True), which makes the class anew.
        Checked.__post_init__(self)
        if self.streamed_blocks != "auto" and not (self.streamed_blocks.isdecimal() and int(self.streamed_blocks) > 0):
            raise InputError(f"offload.streamed_blocks is {self.streamed_blocks!r}, expected 'auto' or 1 to 40 blocks")
        if self.num_streamed is not None and self.policy not in ("auto", "stream"):
            raise InputError(
                f"offload.streamed_blocks is {self.streamed_blocks} with offload.policy {self.policy!r}, expected the "
                "policy 'stream'"
            )
        if self.budget != "auto" and not self._has_budget():
            raise InputError(
                f"offload.budget is {self.budget!r}, expected 'auto' or a number of GiB, for example '22.5'"
            )

    @property
    def num_streamed(self) -> int | None:
        return None if self.streamed_blocks == "auto" else int(self.streamed_blocks)

    @property
    def budget_bytes(self) -> int | None:
        return None if self.budget == "auto" else int(float(self.budget) * 2**30)

    def _has_budget(self) -> bool:
        try:
            return 0.0 < float(self.budget) < inf
        except ValueError:
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileSpec(Checked):
    """`torch.compile` of the transformer block, one graph shared by all blocks of both experts, in one of its modes.

    A mode that fails on this machine gives way to the next that works.
    """

    mode: CompileMode = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionSpec(Checked):
    """Kernels of our own for the norms, sums and rotations of a block that is not compiled; float32 inside."""

    kernels: Literal["auto", "off", "triton"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec(Checked):
    """LoRAs "beside" the layers, where a change of strength reloads nothing, or "merged" into the weights.

    Merged ones cost no time in a step, are rounded with the weights, and are read anew where a strength changes. "auto"
    is beside.
    """

    application: Literal["auto", "beside", "merged"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeSettings(Checked):
    """Decoding whole frames or overlapping tiles, and the dtype of the convolutions."""

    tiling: Literal["auto", "off", "on"] = "auto"
    precision: Literal["auto", "bfloat16", "float16", "float32"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationProfile(Checked):
    """Everything a user may ask of the way a video is computed.

    quality: the ceiling; nothing worse than this label is ever chosen by "auto".
    on_unsupported: what happens when an explicitly named option cannot run here: fall back and say so, or stop.
    """

    name: str = "custom"
    attention: AttentionSpec = field(default_factory=AttentionSpec)
    precision: PrecisionSpec = field(default_factory=PrecisionSpec)
    guidance: GuidanceSpec = field(default_factory=GuidanceSpec)
    offload: OffloadSpec = field(default_factory=OffloadSpec)
    compile: CompileSpec = field(default_factory=CompileSpec)
    fusion: FusionSpec = field(default_factory=FusionSpec)
    lora: LoraSpec = field(default_factory=LoraSpec)
    vae: VaeSettings = field(default_factory=VaeSettings)
    quality: Quality = "exact"
    on_unsupported: Literal["fallback", "error"] = "fallback"

    def with_settings(self, settings: dict[str, str]) -> "OptimizationProfile":
        """A copy with dotted settings replaced, for example {"attention.backend": "flash", "compile.mode": "off"}.

        Raises `InputError` for an unknown setting or value, naming the nearest valid one.
        """
        changed = self
        for key, value in settings.items():
            part, _, leaf = key.partition(".")
            check_choice("setting", key, tuple(setting_names()))
            if leaf:
                changed = replace(changed, **{part: replace(getattr(changed, part), **{leaf: value})})
            else:
                changed = replace(changed, **{part: value})
        return changed if changed == self else replace(changed, name=changed_name(self.name))


def setting_names() -> list[str]:
    """Dotted names of every setting of a profile, in the order of their declaration."""
    names: list[str] = []
    for entry in fields(OptimizationProfile):
        if entry.name == "name":
            continue
        part = entry.default_factory() if callable(entry.default_factory) else None
        names += [f"{entry.name}.{leaf.name}" for leaf in fields(part)] if part is not None else [entry.name]
    return names


def setting_choices(name: str) -> tuple[str, ...]:
    """Valid values of a dotted setting; empty where the values are open (backend names)."""
    check_choice("setting", name, tuple(setting_names()))
    part, _, leaf = name.partition(".")
    owner = OptimizationProfile if not leaf else type(getattr(PRESETS["auto"], part))
    kind = get_type_hints(owner)[leaf or part]
    return get_args(kind) if get_origin(kind) is Literal else ()


def _for_memory(name: str, budget: str) -> OptimizationProfile:
    return OptimizationProfile(name=name, offload=OffloadSpec(budget=budget))


PRESETS = MappingProxyType(
    {
        "auto": OptimizationProfile(name="auto"),
        # The yardstick: everything else is judged against it, so nothing here is chosen for speed.
        "reference": OptimizationProfile(
            name="reference",
            attention=AttentionSpec(backend="math", cross="math"),
            precision=PrecisionSpec(weights="float32"),
            guidance=GuidanceSpec(execution="sequential"),
            fusion=FusionSpec(kernels="off"),
            vae=VaeSettings(tiling="off", precision="float32"),
            on_unsupported="error",
        ),
        # Not compiled: fused kernels are as exact, start at once and measured 1 to 2% faster (one H200, docs/LOG.md).
        "exact": OptimizationProfile(name="exact"),
        # What a card of that size has left beside the driver and a desktop: 79.2, 39.4, 23.5 and 15.6 GiB, less one.
        "80gb": _for_memory("80gb", "78"),
        "40gb": _for_memory("40gb", "38"),
        "24gb": _for_memory("24gb", "22.5"),
        "16gb": _for_memory("16gb", "14.5"),
        "cpu": OptimizationProfile(
            name="cpu",
            precision=PrecisionSpec(weights="float32"),
            guidance=GuidanceSpec(execution="sequential"),
            offload=OffloadSpec(policy="resident"),
        ),
    }
)


def preset(name: str) -> OptimizationProfile:
    """The preset called `name`; raises `InputError` with the nearest name otherwise."""
    check_choice("profile", name, tuple(PRESETS))
    return PRESETS[name]
