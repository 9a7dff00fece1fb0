"""From what is asked to what will run: `resolve` is pure, needs no GPU and explains every choice.

It asks each option "can you run this?" and loads nothing; `build` does that, and what fails there is passed over with
its reason in the report. Placement is decided last, because it depends on all the other choices.
"""

import hashlib
from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass, replace

from .adaptation import Application
from .attention.interface import KernelChoice
from .attention.verdicts import NOTHING_MEASURED, Calibration
from .choices import choose_tf32, compile_with
from .demand import ExpertsDemand, choose
from .errors import OutOfMemoryError
from .hardware import Hardware
from .lora_plan import LoraIdentity, lora_disagreements
from .memory_plan import Phase
from .placement import Placement
from .placing import Placed, place, within_budget
from .predict import forward_seconds
from .profiles import PRESETS, OptimizationProfile
from .recipes import disagreements
from .report import Decision
from .sampling.experts import split
from .sampling.schedule import Schedule, for_request
from .specs import Expert, TransformerSpec, video_frames
from .storage import NOTHING_STORED, StoredLayers
from .workload import Workload

# Latent rows and columns of 832x480, the smaller of the sizes that the model was trained for.
SMALL_LATENT = (60, 104)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsBinding:
    """Everything `build` binds into the experts; equal keys need no new build."""

    device: str
    dtype: str
    residual: str
    attention: KernelChoice
    cross_attention: KernelChoice
    compile_mode: str
    block_kernels: str
    placement: Placement
    on_unsupported: str
    lora: Application
    lora_files: tuple[LoraIdentity, ...]
    stored: StoredLayers = NOTHING_STORED

    @property
    def key(self) -> str:
        """Hash of what is bound. The size of the video and the strengths of LoRAs are no part of it.

        Of the kernels only the first counts: where another size has another order behind it, the build serves both.
        """
        return _hash(self.key_without_loras, self.stored.codings, self.lora, self.lora_files)

    @property
    def weights_key(self) -> str:
        """Builds that agree in this one hold the same weights, wherever they are and but for what LoRAs change."""
        return _hash(self.device, self.dtype, self.stored.codings)

    @property
    def key_without_loras(self) -> str:
        """Builds that agree in this one run the same kernels on the same weights, LoRAs aside: as fast, that is."""
        return _hash(self.device, self.dtype, self.residual, self.attention.names[0], self.cross_attention.names[0],
                     self.compile_mode, self.block_kernels, self.placement)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionPlan:
    """How the experts will run, with a reason for each choice. Seconds are estimates.

    videos_at_once: of the batch, in one forward. phases: what the device holds, for the experts alone.
    slack_bytes: what the allocator cannot use of it. resting_bytes: weights that stay there after the run.
    """

    workload: Workload
    schedule: Schedule
    split: tuple[Expert, ...]
    binding: ExpertsBinding
    guidance: str
    videos_at_once: int
    tf32: str
    phases: tuple[Phase, ...]
    slack_bytes: int
    resting_bytes: int
    step_flops: tuple[tuple[Expert, float], ...]
    step_seconds: tuple[tuple[Expert, float], ...]
    decisions: tuple[Decision, ...]
    warnings: tuple[str, ...]

    @property
    def key(self) -> str:
        return self.binding.key

    @property
    def peak_bytes(self) -> int:
        """Predicted peak of allocated device memory, of the experts and what sampling holds beside them."""
        return max(phase.peak_bytes for phase in self.phases)

    @property
    def weight_bytes(self) -> int:
        """Weights on the device at most, with what streams through and what stands beside the layers."""
        return max(part.nbytes for phase in self.phases for part in phase.parts if part.what == "weights")

    @property
    def activation_bytes(self) -> int:
        """What must be free beside the weights, with what the allocator cannot use."""
        return self.peak_bytes - self.weight_bytes + self.slack_bytes

    @property
    def seconds(self) -> float | None:
        """Estimated time of all steps, without loading and switching."""
        per_step = dict(self.step_seconds)
        return sum(per_step[expert] for expert in self.split) if per_step else None

    def with_calibration(self, calibration: Calibration) -> "ExecutionPlan":
        """This plan with its attention kernels in measured order, where "auto" was asked for and all were measured."""
        attention = calibration.order(self.binding.attention)
        cross = calibration.order(self.binding.cross_attention)
        decided = {choice.topic: choice.decision for choice in (attention, cross)}
        return replace(
            self,
            binding=replace(self.binding, attention=attention, cross_attention=cross),
            decisions=tuple(decided.get(decision.topic, decision) for decision in self.decisions),
            warnings=tuple(dict.fromkeys((*self.warnings, *calibration.notes))),
        )

    def describe_split(self) -> str:
        """For example "26 high + 14 low, switch at timestep 875 (step 27 of 40)"."""
        num_high = self.split.count(Expert.HIGH)
        text = f"{num_high} high + {len(self.split) - num_high} low"
        if 0 < num_high < len(self.split):
            boundary = self.workload.request.recipe.boundary * 1000
            text += f", switch below timestep {boundary:g} (step {num_high + 1} of {len(self.split)})"
        return text

    def describe(self) -> str:
        """Warnings, the split, the choices, the time."""
        lines = [f"! {warning}" for warning in self.warnings]
        lines += [f"experts: {self.describe_split()}", *map(str, self.decisions)]
        for expert, seconds in self.step_seconds:
            lines.append(f"{expert.value} noise: about {seconds:.3g} s/step (estimate from the measured matmul rate)")
        return "\n".join(lines)

    def to_text(self) -> str:
        """The plan of the experts alone, for people."""
        return "\n".join((self.describe(), *(f"memory, {phase} (estimate)" for phase in self.phases)))


def resolve(
    profile: OptimizationProfile,
    hardware: Hardware,
    spec: TransformerSpec,
    workload: Workload,
    calibration: Calibration = NOTHING_MEASURED,
    *,
    aside: int = 0,
    current: Placement | None = None,
) -> ExecutionPlan:
    """Decide how the experts run. `hardware.free_memory` counts what our own weights would give back as free.

    calibration: what is known of the speed of attention kernels on this machine. aside: bytes of device memory that
    must stay free for others. current: the placement of experts that are built already, which is kept where it is about
    as good as the best.

    Raises `InputError` for a request that makes no sense, `UnsupportedError` where a strict profile cannot be kept and
    `OutOfMemoryError` where nothing fits, each in one sentence.
    """
    hardware = within_budget(profile.offload, hardware)
    try:
        plan = _resolve(profile, hardware, spec, workload, aside, current)
    except OutOfMemoryError as error:
        raise OutOfMemoryError(f"{error}; {_what_would_fit(profile, hardware, spec, workload, aside)}") from None
    return plan.with_calibration(calibration)


def _resolve(
    profile: OptimizationProfile,
    hardware: Hardware,
    spec: TransformerSpec,
    workload: Workload,
    aside: int,
    current: Placement | None = None,
) -> ExecutionPlan:
    schedule = for_request(workload.request)
    experts = split(schedule, workload.request.recipe.boundary)
    tf32, tf32_decision = choose_tf32(profile.precision.tf32, hardware)
    demand, placed = _place(profile, hardware, choose(profile, hardware, spec, workload), aside, current)
    attention, cross = demand.kernels(placed.split)
    compiling = compile_with(placed.placement, demand.compile_decision)
    return ExecutionPlan(
        workload=workload,
        schedule=schedule,
        split=experts,
        binding=ExpertsBinding(
            device=hardware.device,
            dtype=demand.dtype,
            residual=demand.residual,
            attention=attention,
            cross_attention=cross,
            compile_mode=compiling.chosen,
            block_kernels=demand.block_kernels,
            placement=placed.placement,
            on_unsupported=profile.on_unsupported,
            lora=demand.lora.application,
            lora_files=demand.lora.files,
            stored=demand.stored,
        ),
        guidance=placed.split.guidance,
        videos_at_once=placed.split.batch,
        tf32=tf32,
        phases=placed.sampling.phases(placed.placement, experts),
        slack_bytes=placed.sampling.slack,
        resting_bytes=placed.sampling.resting_bytes(placed.placement),
        step_flops=_per_expert(experts, workload, spec.forward_flops(workload.latent_size, workload.batch).total),
        step_seconds=_step_seconds(experts, workload, spec, demand.dtype, hardware),
        decisions=(
            demand.dtype_decision,
            attention.decision,
            cross.decision,
            *demand.decide_split(placed.split),
            compiling,
            demand.kernels_decision,
            tf32_decision,
            placed.decision,
            *demand.decide_storage(placed.placement),
            *demand.lora.decisions,
        ),
        warnings=(*_warnings(workload), *placed.warnings),
    )


def _place(
    profile: OptimizationProfile, hardware: Hardware, demand: ExpertsDemand, aside: int, current: Placement | None
) -> tuple[ExpertsDemand, Placed]:
    """Where the weights go, and what they are kept in: where they stay on the device anyway, decoded.

    What is built as its files store it and stays on the device goes on so: another way would read them again.
    """
    if not demand.storable:
        return demand, place(profile.offload, demand.placeable(aside, current), hardware)
    is_built_so = current is not None and current.policy == "resident" and current.storage == "file"
    if profile.precision.storage == "auto" and not is_built_so:
        with suppress(OutOfMemoryError):
            placed = place(profile.offload, demand.placeable(aside, current), hardware)
            if placed.placement.policy == "resident":
                return demand, placed
    as_stored = demand.as_stored()
    return as_stored, place(profile.offload, as_stored.placeable(aside, current), hardware)


def _warnings(workload: Workload) -> tuple[str, ...]:
    recipe, loras = workload.request.recipe, workload.loras
    notes = (note for choice in loras for note in choice.notes)
    return (*notes, *disagreements(recipe), *lora_disagreements(recipe, loras))


def _what_would_fit(
    profile: OptimizationProfile, hardware: Hardware, spec: TransformerSpec, workload: Workload, aside: int
) -> str:
    """The nearest thing to what was asked that fits: another profile, fewer frames, a smaller size."""

    def fits(profile: OptimizationProfile, workload: Workload) -> bool:
        try:
            _resolve(profile, hardware, spec, workload, aside)
        except OutOfMemoryError:
            return False
        return True

    if profile.name != "auto" and fits(PRESETS["auto"], workload):
        return "the profile 'auto' fits"
    t, h, w = workload.latent_size
    # Bisection: what fits grows with the number of frames.
    shorter = [_sized(workload, (frames, h, w)) for frames in range(1, t)]
    longest = bisect_left(shorter, 1, key=lambda candidate: 0 if fits(profile, candidate) else 1)
    if longest:
        return f"{video_frames(longest)} frames of this size fit"
    if SMALL_LATENT < (h, w) and fits(profile, _sized(workload, (t, *SMALL_LATENT))):
        return "832x480 fits at this length"
    return "no profile fits, not even one frame; free memory or use a smaller size"


def _sized(workload: Workload, latent_size: tuple[int, int, int]) -> Workload:
    return replace(workload, latent_size=latent_size)


def _per_expert(experts: tuple[Expert, ...], workload: Workload, one_pass: float) -> tuple[tuple[Expert, float], ...]:
    """A cost of one forward, times the passes of each expert that runs."""
    recipe = workload.request.recipe
    return tuple((e, one_pass * (2 if recipe.guidance(e) != 1.0 else 1)) for e in Expert if e in experts)


def _step_seconds(
    experts: tuple[Expert, ...], workload: Workload, spec: TransformerSpec, dtype: str, hardware: Hardware
) -> tuple[tuple[Expert, float], ...]:
    if (rate := hardware.rate(dtype)) is None:
        return ()
    return _per_expert(experts, workload, forward_seconds(spec, workload.latent_size, workload.batch, rate))


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
