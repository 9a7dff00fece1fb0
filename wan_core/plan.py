"""From what is asked to what will run: `resolve` is pure, needs no GPU and explains every choice.

It asks each option "can you run this?" and loads nothing; `build` does that, and what fails there is passed over with
its reason in the report. Placement is decided last, because it depends on all the other choices.
"""

import hashlib
from dataclasses import dataclass, replace

from .adaptation import Application
from .attention.interface import AttentionProblem, KernelChoice
from .attention.verdicts import NOTHING_MEASURED, Calibration
from .checkpoint.lora_pair import LoraChoice
from .choices import choose_attention, choose_block_kernels, choose_compile, choose_dtype, choose_guidance, choose_tf32
from .errors import OutOfMemoryError
from .hardware import Hardware
from .lora_plan import LoraIdentity, LoraPlan, lora_disagreements, plan_loras
from .placement import Placement
from .predict import (
    DTYPE_BYTES,
    RESERVED_BYTES,
    ForwardShape,
    expert_bytes,
    forward_bytes,
    forward_seconds,
    text_context_bytes,
)
from .profiles import PRESETS, OptimizationProfile
from .recipes import SampleRequest, disagreements
from .report import Decision, Rejection, gib
from .sampling.experts import split
from .sampling.schedule import Schedule, for_request
from .specs import Expert, TransformerSpec, video_frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is to be computed: the latent (T, H, W), the number of videos in the batch, the request, and the LoRAs."""

    request: SampleRequest
    latent_size: tuple[int, int, int]
    batch: int = 1
    loras: tuple[LoraChoice, ...] = ()

    @property
    def is_guided(self) -> bool:
        """Whether any step needs an unconditional pass."""
        return any(self.request.recipe.guidance(expert) != 1.0 for expert in Expert)


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

    @property
    def key(self) -> str:
        """Hash of what is bound. The size of the video and the strengths of LoRAs are no part of it.

        Of the kernels only the first counts: where another size has another order behind it, the build serves both.
        """
        return _hash(self.key_without_loras, self.lora, self.lora_files)

    @property
    def weights_key(self) -> str:
        """Builds that agree in this one hold the same weights, but for what LoRAs change of them."""
        return _hash(self.device, self.dtype, self.placement)

    @property
    def key_without_loras(self) -> str:
        """Builds that agree in this one run the same kernels on the same weights, LoRAs aside: as fast, that is."""
        return _hash(self.device, self.dtype, self.residual, self.attention.names[0], self.cross_attention.names[0],
                     self.compile_mode, self.block_kernels, self.placement)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionPlan:
    """How the experts will run, with a reason for each choice. Bytes are device memory; seconds are estimates."""

    workload: Workload
    schedule: Schedule
    split: tuple[Expert, ...]
    binding: ExpertsBinding
    guidance: str
    tf32: str
    weight_bytes: int
    activation_bytes: int
    step_flops: tuple[tuple[Expert, float], ...]
    step_seconds: tuple[tuple[Expert, float], ...]
    decisions: tuple[Decision, ...]
    warnings: tuple[str, ...]

    @property
    def key(self) -> str:
        return self.binding.key

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes

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

    def to_text(self) -> str:
        """The plan for people: warnings, the split, the choices, the predictions."""
        lines = [f"! {warning}" for warning in self.warnings]
        lines += [f"experts: {self.describe_split()}", *map(str, self.decisions)]
        for expert, seconds in self.step_seconds:
            lines.append(f"{expert.value} noise: about {seconds:.3g} s/step (estimate from the measured matmul rate)")
        lines.append(
            f"sampling: at most {self.peak_bytes / 2**30:.2f} GiB on {self.binding.device}, "
            f"{self.weight_bytes / 2**30:.2f} of it weights (estimate)"
        )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Forward:
    """The choices that fix the shape of a forward, and what it needs beside the weights."""

    shape: ForwardShape
    guidance: str
    activation_bytes: int
    lora: LoraPlan
    dtype_decision: Decision
    guidance_decision: Decision


def _forward(profile: OptimizationProfile, hardware: Hardware, spec: TransformerSpec, workload: Workload) -> _Forward:
    dtype, dtype_decision = choose_dtype("precision", profile.precision.weights, hardware)
    guidance, guidance_decision = choose_guidance(profile.guidance.execution, spec.num_tokens(workload.latent_size))
    shape = ForwardShape(
        latent_size=workload.latent_size,
        batch=workload.batch * (2 if guidance == "batched" and workload.is_guided else 1),
        dtype=dtype,
        residual=dtype if profile.precision.residual == "weights" else "float32",
    )
    # A batched pair of contexts stands beside the conditional one, which steps at guidance 1 use alone.
    contexts = 1 if not workload.is_guided else 3 if guidance == "batched" else 2
    forwards_at_once = 2 if guidance == "two-stream" and workload.is_guided else 1
    return _Forward(
        shape=shape,
        guidance=guidance,
        activation_bytes=forwards_at_once * forward_bytes(spec, shape)
        + text_context_bytes(spec, contexts * workload.batch, dtype)
        + RESERVED_BYTES,
        lora=plan_loras(workload.loras, spec, profile, DTYPE_BYTES[dtype]),
        dtype_decision=dtype_decision,
        guidance_decision=guidance_decision,
    )


def resolve(
    profile: OptimizationProfile,
    hardware: Hardware,
    spec: TransformerSpec,
    workload: Workload,
    calibration: Calibration = NOTHING_MEASURED,
) -> ExecutionPlan:
    """Decide how the experts run. `hardware.free_memory` counts what our own weights would give back as free.

    calibration: what is known of the speed of attention kernels on this machine.

    Raises `InputError` for a request that makes no sense, `UnsupportedError` where a strict profile cannot be kept and
    `OutOfMemoryError` where nothing fits, each in one sentence.
    """
    schedule = for_request(workload.request)
    experts = split(schedule, workload.request.recipe.boundary)
    forward = _forward(profile, hardware, spec, workload)
    shape = forward.shape
    num_tokens = spec.num_tokens(workload.latent_size)
    problem = AttentionProblem(
        batch=shape.batch, q_len=num_tokens, kv_len=num_tokens, num_heads=spec.num_heads, head_dim=spec.head_dim,
        dtype=shape.dtype,
    )  # fmt: skip
    attention = choose_attention("self attention", profile.attention.backend, problem, hardware, profile)
    cross = choose_attention(
        "cross attention", profile.attention.cross, replace(problem, kv_len=spec.text_len), hardware, profile
    )
    compile_mode, compile_decision = choose_compile(profile.compile.mode, hardware, profile)
    block_kernels, kernels_decision = choose_block_kernels(
        profile.fusion.kernels, compile_mode, shape.dtype, hardware, profile
    )
    tf32, tf32_decision = choose_tf32(profile.precision.tf32, hardware)
    placement, weight_bytes, placement_decision = _place(profile, hardware, spec, workload, forward)
    return ExecutionPlan(
        workload=workload,
        schedule=schedule,
        split=experts,
        binding=ExpertsBinding(
            device=hardware.device,
            dtype=shape.dtype,
            residual=shape.residual,
            attention=attention,
            cross_attention=cross,
            compile_mode=compile_mode,
            block_kernels=block_kernels,
            placement=placement,
            on_unsupported=profile.on_unsupported,
            lora=forward.lora.application,
            lora_files=forward.lora.files,
        ),
        guidance=forward.guidance,
        tf32=tf32,
        weight_bytes=weight_bytes,
        activation_bytes=forward.activation_bytes,
        step_flops=_per_expert(experts, workload, spec.forward_flops(workload.latent_size, workload.batch).total),
        step_seconds=_step_seconds(experts, workload, spec, replace(shape, batch=workload.batch), hardware),
        decisions=(
            forward.dtype_decision,
            attention.decision,
            cross.decision,
            forward.guidance_decision,
            compile_decision,
            kernels_decision,
            tf32_decision,
            placement_decision,
            *forward.lora.decisions,
        ),
        warnings=_warnings(workload),
    ).with_calibration(calibration)


def _warnings(workload: Workload) -> tuple[str, ...]:
    recipe, loras = workload.request.recipe, workload.loras
    notes = (note for choice in loras for note in choice.notes)
    return (*notes, *disagreements(recipe), *lora_disagreements(recipe, loras))


def _place(
    profile: OptimizationProfile, hardware: Hardware, spec: TransformerSpec, workload: Workload, forward: _Forward
) -> tuple[Placement, int, Decision]:
    """Placement of the experts, bytes of weights on the device, decision."""
    asked = profile.offload.policy
    needed = _weight_bytes(spec, forward, hardware, asked)
    rejected = []
    for policy, weight_bytes in needed.items():
        total = weight_bytes + forward.activation_bytes
        short = total - hardware.free_memory
        if short <= 0:
            reason = f"{gib(total)} of the {gib(hardware.free_memory)} free"
            decision = Decision(topic="placement", asked=asked, chosen=policy, reason=reason, rejected=tuple(rejected))
            return Placement(policy=policy), weight_bytes, decision
        rejected.append(Rejection(name=policy, reason=f"{gib(short)} short"))
    raise OutOfMemoryError(
        f"this run needs {gib(total)} on {hardware.device} with placement {policy!r}, {gib(short)} more than the "
        f"{gib(hardware.free_memory)} that are free; {_what_would_fit(profile, hardware, spec, workload)}"
    )


def _weight_bytes(spec: TransformerSpec, forward: _Forward, hardware: Hardware, asked: str) -> dict[str, int]:
    """Bytes of weights on the device by placement policy, in order of preference."""
    each = [expert_bytes(spec, forward.shape.dtype) + adapters for adapters in forward.lora.adapter_bytes]
    if not hardware.is_cuda:
        return {"resident": sum(each)}  # on a CPU the host is the device: there is nowhere else for the idle expert
    policies = {"resident": sum(each), "experts": max(each)}
    return policies if asked == "auto" else {asked: policies[asked]}


def _what_would_fit(profile: OptimizationProfile, hardware: Hardware, spec: TransformerSpec, workload: Workload) -> str:
    """The preset that fits, else the longest video of this size that does."""
    for name, candidate in PRESETS.items():
        if name != profile.name and _fits(candidate, hardware, spec, workload):
            return f"the profile {name!r} fits"
    t, h, w = workload.latent_size
    for shorter in range(t - 1, 0, -1):
        if _fits(profile, hardware, spec, replace(workload, latent_size=(shorter, h, w))):
            return f"{video_frames(shorter)} frames of this size fit"
    return "no profile fits, not even one frame; free memory or use a smaller size"


def _fits(profile: OptimizationProfile, hardware: Hardware, spec: TransformerSpec, workload: Workload) -> bool:
    forward = _forward(profile, hardware, spec, workload)
    weights = _weight_bytes(spec, forward, hardware, profile.offload.policy)
    return min(weights.values()) + forward.activation_bytes <= hardware.free_memory


def _per_expert(experts: tuple[Expert, ...], workload: Workload, one_pass: float) -> tuple[tuple[Expert, float], ...]:
    """A cost of one forward, times the passes of each expert that runs."""
    recipe = workload.request.recipe
    return tuple((e, one_pass * (2 if recipe.guidance(e) != 1.0 else 1)) for e in Expert if e in experts)


def _step_seconds(
    experts: tuple[Expert, ...], workload: Workload, spec: TransformerSpec, shape: ForwardShape, hardware: Hardware
) -> tuple[tuple[Expert, float], ...]:
    rate = hardware.rate(shape.dtype)
    return () if rate is None else _per_expert(experts, workload, forward_seconds(spec, shape, rate))


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
