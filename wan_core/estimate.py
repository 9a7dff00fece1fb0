"""How long a whole run will take, part by part: from what this machine did before, else from the shapes.

A part that ran here before takes what it took then; one that ran at another size takes that in proportion to its work;
what never ran is estimated: the roofline at the measured rate of matrix products, with attention at the measured rate
of its kernel where that was timed, and fixed rates for files and compilation. `learn` is called when a run has ended
well, with the parts that were expected of it: each is looked up in the report and kept.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from . import history as store
from .attention import verdict_store
from .attention.calibrate import BUDGET_SECONDS, CALL_SECONDS, ROUNDS, is_measurable
from .attention.interface import KernelChoice
from .attention.verdicts import Calibration
from .component_plan import ComponentPlan
from .footprint import expert_sizes, text_encoder_sizes
from .hardware import Hardware
from .history import History, Task
from .offload.weights import Place
from .plan import ExecutionPlan
from .predict import ATTENTION_EFFICIENCY, LINEAR_EFFICIENCY, READ_RATE, decode_flops, decode_seconds
from .report import Report
from .specs import Expert, TextEncoderSpec, TransformerSpec, VaeSpec, video_frames

# Bytes per second of a copy between host and device in a first run, to be replaced by what is measured in it.
COPY_RATE = 8.0e9
# Seconds for modules without weights, and for importing what compiles and attends; in a process that has built before
# nothing is imported any more (one H200: 0.3).
BUILD_SECONDS, REBUILD_SECONDS = 2.0, 0.3
# Seconds before the first step of a new build: kernels loaded and tuned, and with torch.compile the block compiled
# (one H200: 1.1 and 11.2 s, benchmarks/results/attention_h200_202611.md).
WARM_UP_SECONDS, COMPILE_SECONDS = 1.0, 11.0
# Share of the rate of matrix products that attention kernels reach at 720p on one H200
# (benchmarks/results/attention_h200_202611.md); what is not here counts as `ATTENTION_EFFICIENCY`.
ATTENTION_SHARES = {"flash-attn-4": 0.85, "flash-attn-3": 0.80, "cudnn": 0.70, "sdpa": 0.72, "flash": 0.45,
                    "flash-attn-2": 0.45, "xformers": 0.45, "efficient": 0.22}  # fmt: skip
# Frames to H.264, pixels per second.
VIDEO_RATE = 5.0e7
# Operations per token and parameter of the text encoder; both prompts are padded to nothing, so this is an upper bound.
_TEXT_TOKENS = 2 * 512

Source = Literal["learned", "scaled", "roofline"]
# What experts a process has built: none, those of another plan, or those of this one.
Built = Literal["nothing", "another", "this"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a run, `count` times `seconds`.

    stage: the phase of the hooks in which it happens. runs: how many earlier runs of the very same it was learned from.
    """

    name: str
    stage: str
    task: Task
    seconds: float
    count: int = 1
    runs: int = 0
    source: Source = "roofline"

    @property
    def total(self) -> float:
        return self.seconds * self.count

    def __str__(self) -> str:
        each = f"{self.name} {self.seconds:.3g} s"
        return each if self.count == 1 else f"{self.count} x {each}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEstimate:
    """The parts of a run in their order."""

    parts: tuple[Part, ...]

    @property
    def seconds(self) -> float:
        return sum(part.total for part in self.parts)

    @property
    def runs(self) -> int:
        """Earlier runs that the estimate rests on: 0 where a part that matters never ran here at this size."""
        return min((part.runs for part in self.parts if part.total > 0.02 * self.seconds), default=0)

    def to_text(self) -> str:
        """For people, for example "time: about 8 min 32 s (learned from 3 runs here)", and the parts."""
        if self.runs:
            basis = f"learned from {self.runs} run{'s' if self.runs > 1 else ''} here"
        elif all(part.source == "roofline" for part in self.parts):
            basis = "estimate from this machine's rates; it is learned from finished runs"
        else:
            basis = "estimate, partly from other runs here"
        shown = [str(part) for part in self.parts if part.total > 0.01 * self.seconds]
        return f"time: about {duration(self.seconds)} ({basis}): {', '.join(shown)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """What an estimate rests on beside the plan."""

    hardware: Hardware
    history: History
    calibration: Calibration

    @classmethod
    def of(cls, hardware: Hardware) -> "Knowledge":
        """What is kept on disk of this machine."""
        return cls(hardware=hardware, history=store.read(hardware), calibration=verdict_store.read(hardware))

    def expect(self, part: Part) -> Part:
        """The part with what is known of it in place of its roofline."""
        if (known := self.history.expect(part.task)) is None:
            return part
        return replace(part, seconds=known.seconds, runs=known.runs, source="learned" if known.runs else "scaled")


def text_parts(
    plan: ComponentPlan, spec: TextEncoderSpec, known: Knowledge, *, place: Place = Place.FILE
) -> tuple[Part, ...]:
    """Both prompts, and the encoder from where its weights wait."""
    nbytes = text_encoder_sizes(spec, plan.dtype).total
    rate = known.hardware.rate(plan.dtype)
    compute = 0.0 if rate is None else 2.0 * spec.num_parameters * _TEXT_TOKENS / (rate * LINEAR_EFFICIENCY * 1e12)
    task = Task(
        kind=f"text encoder from {place.value}, {plan.dtype}", size=f"{spec.num_layers}x{spec.dim}", work=nbytes
    )
    part = Part(name="text", stage="text", task=task, seconds=_moving(nbytes, place) + compute)
    return (known.expect(part),)


def sampling_parts(
    plan: ExecutionPlan,
    spec: TransformerSpec,
    known: Knowledge,
    *,
    places: Mapping[Expert, Place] | None = None,
    built: Built | None = None,
) -> tuple[Part, ...]:
    """Loading the experts, the first step's extra time, the steps of each expert and the switch between them.

    places: where their weights are; both in files unless given. built: by the places unless given: who has weights in
    memory has built.
    """
    places = places or dict.fromkeys(Expert, Place.FILE)
    built = built or ("nothing" if Place.FILE in places.values() else "this")
    order = tuple(dict.fromkeys(plan.split))
    parts = [_build(plan, spec, known, built), _load(plan, spec, places, order)]
    warm = Place.FILE not in (places[expert] for expert in order)
    parts.append(_first_step(plan, spec, known, warm=warm))
    for position, expert in enumerate(order):
        if position:
            parts.append(_switch(plan, spec, places[expert]))
        parts.append(_steps(plan, spec, known, expert))
    return tuple(known.expect(part) for part in parts)


def decode_parts(
    plan: ComponentPlan,
    spec: VaeSpec,
    latent_shape: tuple[int, int, int, int],
    known: Knowledge,
    *,
    place: Place = Place.FILE,
) -> tuple[Part, ...]:
    """The decode of a latent (B, T, H, W), and the VAE from where its weights wait."""
    batch, *latent_size = latent_shape
    rate = known.hardware.rate(plan.dtype)
    task = Task(
        kind=f"decode from {place.value}, width {spec.dim}, {plan.dtype}, {plan.tile or 'whole frames'}"
        + (f", {plan.kernels}" if plan.kernels != "off" else ""),
        size=_size(latent_shape),
        work=decode_flops(spec, tuple(latent_size)) * batch,
    )
    seconds = 0.0 if rate is None else decode_seconds(spec, tuple(latent_size), rate, plan.kernels) * batch
    return (known.expect(Part(name="decode", stage="decode", task=task, seconds=seconds)),)


def likely_decode(latent_shape: tuple[int, int, int, int], known: Knowledge) -> tuple[Part, ...]:
    """The decode that last followed a latent (B, T, H, W) here; nothing where none did. For who sees no VAE."""
    size = _size(latent_shape)
    pasts = [
        (kind, sizes[size])
        for kind, sizes in known.history.kinds.items()
        if kind.startswith("decode ") and size in sizes
    ]
    if not pasts:
        return ()
    kind, past = pasts[-1]
    task = Task(kind=kind, size=size, work=past.work)
    return (known.expect(Part(name="decode", stage="decode", task=task, seconds=past.expected)),)


def save_parts(latent_shape: tuple[int, int, int, int], known: Knowledge) -> tuple[Part, ...]:
    """Writing the frames of a latent (B, T, H, W) as MP4."""
    batch, t, h, w = latent_shape
    pixels = batch * video_frames(t) * h * w * 64
    task = Task(kind="write MP4", size=_size(latent_shape), work=pixels)
    return (known.expect(Part(name="save", stage="decode", task=task, seconds=pixels / VIDEO_RATE)),)


def learn(parts: Iterable[Part], report: Report, hardware: Hardware) -> None:
    """Keep what the parts took, by the report of a run that has ended well."""
    note = store.keep([(part.task, seconds) for part, seconds in observed(parts, report)], hardware)
    if note and note not in report.warnings:
        report.warnings.append(note)


def observed(parts: Iterable[Part], report: Report) -> list[tuple[Part, float]]:
    """Each part with the seconds that it took once; parts that the report says nothing of are left out."""
    measured = _measured(report)
    return [(part, measured[part.name]) for part in parts if part.name in measured]


def duration(seconds: float) -> str:
    """Seconds as people say them: "0.4 s", "42 s", "8 min 32 s", "2 h 05 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _build(plan: ExecutionPlan, spec: TransformerSpec, known: Knowledge, built: Built) -> Part:
    """Modules and kernels made ready, attention kernels timed where that was never done; nothing when all is there."""
    kind = {"nothing": "build anew", "another": "build after another", "this": "build again"}[built]
    seconds = {"nothing": BUILD_SECONDS, "another": REBUILD_SECONDS, "this": 0.0}[built]
    if timing := _timing_seconds(plan, known, is_first=built == "nothing"):
        kind, seconds = f"{kind}, timing attention kernels", seconds + timing
    task = Task(kind=kind, size=f"{_model(spec)} {plan.binding.key_without_loras}", work=1.0)
    return Part(name="build", stage="build", task=task, seconds=seconds)


def _timing_seconds(plan: ExecutionPlan, known: Knowledge, *, is_first: bool) -> float:
    """Timing the attention kernels that were never timed; is_first: vendors' kernels are imported and compiled too."""
    choices = (plan.binding.attention, plan.binding.cross_attention)
    missing = [each for each in choices if is_measurable(each, known.hardware) and not known.calibration.covers(each)]
    calls = ROUNDS * sum(len(each.accepted) for each in missing)
    return min(calls * CALL_SECONDS, BUDGET_SECONDS) + (BUDGET_SECONDS if missing and is_first else 0.0)


def _load(plan: ExecutionPlan, spec: TransformerSpec, places: Mapping[Expert, Place], order: Sequence[Expert]) -> Part:
    each = expert_sizes(spec, plan.binding.dtype, plan.binding.stored).total
    at_once = tuple(Expert) if plan.weight_bytes >= 2 * each else order[:1]
    moved = [expert for expert in at_once if places[expert] is not Place.DEVICE]
    source = places[moved[0]] if moved else Place.DEVICE
    task = Task(
        kind=f"load experts from {source.value}",
        size=f"{_model(spec)} {plan.key}",
        work=float(each * max(len(moved), 1)),
    )
    return Part(name="load", stage="load", task=task, seconds=_moving(each * len(moved), source))


def _first_step(plan: ExecutionPlan, spec: TransformerSpec, known: Knowledge, *, warm: bool) -> Part:
    """What the first step takes longer than the others."""
    seconds = WARM_UP_SECONDS if known.hardware.is_cuda and not warm else 0.0
    if plan.binding.compile_mode != "off" and not warm:
        seconds = COMPILE_SECONDS
    kind = f"first step, {'warm' if warm else 'cold'}, {_model(spec)} {plan.binding.key_without_loras}"
    task = Task(kind=kind, size=_size((plan.workload.batch, *plan.workload.latent_size)), work=1.0)
    return Part(name="first step", stage="sample", task=task, seconds=seconds)


def _switch(plan: ExecutionPlan, spec: TransformerSpec, place: Place) -> Part:
    each = expert_sizes(spec, plan.binding.dtype, plan.binding.stored).total
    source = Place.DEVICE if plan.weight_bytes >= 2 * each else place
    kind = f"switch, from {source.value}"
    task = Task(kind=kind, size=f"{_model(spec)} {plan.key}", work=float(each))
    return Part(name="switch", stage="sample", task=task, seconds=_moving(each, source))


def _steps(plan: ExecutionPlan, spec: TransformerSpec, known: Knowledge, expert: Expert) -> Part:
    workload = plan.workload
    passes = 2 if workload.request.recipe.guidance(expert) != 1.0 else 1
    flops = spec.forward_flops(workload.latent_size, workload.batch)
    attention = flops.self_attention + flops.cross_attention
    # Of the LoRAs only their number counts: another one of them takes as long.
    kind = f"{expert.value} noise step, {_model(spec)} {plan.binding.key_without_loras}, {len(workload.loras)} LoRAs"
    task = Task(
        kind=f"{kind}, {plan.guidance} x{passes}",
        size=_size((workload.batch, *workload.latent_size)),
        work=passes * (flops.linear / LINEAR_EFFICIENCY + attention / ATTENTION_EFFICIENCY),
    )
    seconds = 0.0
    if rate := known.hardware.rate(plan.binding.dtype):
        self_rate = _attention_rate(plan.binding.attention, rate, known)
        cross_rate = _attention_rate(plan.binding.cross_attention, rate, known)
        attention_seconds = flops.self_attention / self_rate + flops.cross_attention / cross_rate
        seconds = passes * (flops.linear / (LINEAR_EFFICIENCY * rate) + attention_seconds) / 1e12
    name = f"{expert.value} noise step"
    return Part(name=name, stage="sample", task=task, seconds=seconds, count=plan.split.count(expert))


def _attention_rate(choice: KernelChoice, rate: float, known: Knowledge) -> float:
    """TFLOP/s of the kernel that runs: timed here, else a share of the rate of matrix products."""
    return known.calibration.rate(choice) or rate * ATTENTION_SHARES.get(choice.names[0], ATTENTION_EFFICIENCY)


def _measured(report: Report) -> dict[str, float]:
    """What a report says of each part, by name. Steps count by their mean, for what they add up to."""
    phases = ("text", "build", "load", "decode", "save")
    measured = {phase: report.seconds[phase] for phase in phases if phase in report.seconds}
    for position, expert in enumerate(dict.fromkeys(step.expert for step in report.steps)):
        first, *others = (step.seconds for step in report.steps if step.expert == expert)
        before = "switch" if position else "first step"
        if others:
            extra = max(first - fmean(others), 0.0)
        else:
            extra = report.seconds.get("expert switch (within sample)", 0.0) if position else 0.0
        measured[f"{expert} noise step"] = fmean(others) if others else max(first - extra, 0.0)
        if others or position:
            measured[before] = extra
    return measured


def _moving(nbytes: int, source: Place) -> float:
    return {Place.FILE: nbytes / READ_RATE, Place.HOST: nbytes / COPY_RATE}.get(source, 0.0)


def _model(spec: TransformerSpec) -> str:
    return f"{spec.num_layers}x{spec.dim}"


def _size(latent_shape: Sequence[int]) -> str:
    return "x".join(map(str, latent_shape))
