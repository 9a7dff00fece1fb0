"""What the experts ask of a machine before it is decided where they go: dtypes, kernels, and the memory of each way to
cut a step into forwards.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .activations import DTYPE_BYTES, ForwardShape, forward_bytes
from .attention.interface import AttentionProblem, KernelChoice
from .choices import (
    choose_attention,
    choose_block_kernels,
    choose_compile,
    choose_dtype,
    choose_guidance,
    decide_storage,
    storable_layers,
)
from .footprint import (
    FIXED_SEGMENTS_SHARE,
    ROUNDING_BYTES,
    SLACK_BYTES,
    WORKSPACE_BYTES,
    UnitSizes,
    expert_sizes,
    latents_bytes,
    text_context_bytes,
)
from .hardware import Hardware
from .lora_plan import LoraPlan, plan_loras
from .memory_plan import Sampling
from .placement import Placement
from .placing import Demand, Split
from .predict import forward_seconds
from .profiles import OptimizationProfile
from .report import Decision
from .specs import TransformerSpec
from .storage import NOTHING_STORED, StoredLayers
from .workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsDemand:
    """Choices that hold wherever the weights are, each with its reason, and what follows from them.

    storable: layers that may stay as their files store them. stored: those of them that do.
    """

    profile: OptimizationProfile
    hardware: Hardware
    spec: TransformerSpec
    workload: Workload
    dtype: str
    compile_mode: str
    block_kernels: str
    guidance: str
    lora: LoraPlan
    dtype_decision: Decision
    compile_decision: Decision
    kernels_decision: Decision
    guidance_decision: Decision
    storable: StoredLayers = NOTHING_STORED
    stored: StoredLayers = NOTHING_STORED

    @property
    def residual(self) -> str:
        return self.dtype if self.profile.precision.residual == "weights" else "float32"

    @property
    def weights(self) -> UnitSizes:
        """Of one expert."""
        return expert_sizes(self.spec, self.dtype, self.stored)

    def as_stored(self) -> "ExpertsDemand":
        """The same with all layers as their files store them that may stay so."""
        return replace(self, stored=self.storable)

    def kernels(self, cut: Split) -> tuple[KernelChoice, KernelChoice]:
        """Kernels for self and cross attention."""
        num_tokens, asked = self.spec.num_tokens(self.workload.latent_size), self.profile.attention
        problem = AttentionProblem(
            batch=self._samples(cut), q_len=num_tokens, kv_len=num_tokens, num_heads=self.spec.num_heads,
            head_dim=self.spec.head_dim, dtype=self.dtype,
        )  # fmt: skip
        across = replace(problem, kv_len=self.spec.text_len)
        return (
            choose_attention("self attention", asked.backend, problem, self.hardware, self.profile),
            choose_attention("cross attention", asked.cross, across, self.hardware, self.profile),
        )

    def sampling(self, cut: Split) -> Sampling:
        """What sampling takes when its steps are cut like this."""
        attention, cross = self.kernels(cut)
        shape = ForwardShape(
            latent_size=self.workload.latent_size,
            batch=self._samples(cut),
            dtype=self.dtype,
            residual=self.residual,
            attention=attention.names[0],
            cross_attention=cross.names[0],
            is_compiled=self.compile_mode != "off",
            block_kernels=self.block_kernels,
            has_adapters=any(self.lora.adapter_bytes),
        )
        batch = self.workload.batch
        forwards_at_once = 2 if cut.guidance == "two-stream" and self.workload.is_guided else 1
        # A batched pair of contexts stands beside the conditional one, which steps at guidance 1 use alone.
        contexts = 1 if not self.workload.is_guided else 3 if cut.guidance == "batched" else 2
        # Blocks that a file stores in different ways take different room while they are decoded.
        layouts = self.stored.layouts or ({},)
        shapes = (replace(shape, stored=tuple(layout.items())) for layout in layouts)
        activations = forwards_at_once * max(forward_bytes(self.spec, each) for each in shapes)
        rests = int(FIXED_SEGMENTS_SHARE * activations) if self.hardware.has_fixed_segments else 0
        return Sampling(
            weights=self.weights,
            adapters=self.lora.adapter_bytes,
            activations=activations,
            text=text_context_bytes(self.spec, contexts * batch, self.dtype),
            latents=latents_bytes(self.spec, self.workload.latent_size, batch),
            workspaces=forwards_at_once * WORKSPACE_BYTES + ROUNDING_BYTES if self.hardware.is_cuda else 0,
            slack=SLACK_BYTES + rests,
        )

    def placeable(self, aside: int, current: Placement | None) -> Demand:
        """As the ladder of placements wants it; aside, current: see there."""
        rate = self.hardware.rate(self.dtype)
        return Demand(
            sampling=self.sampling,
            splits=tuple(self._splits()),
            aside=aside,
            current=current,
            storage="file" if self.stored else "compute",
            passes=2 if self.workload.is_guided else 1,
            seconds=None if rate is None else forward_seconds(self.spec, self.workload.latent_size, 1, rate),
        )

    def decide_storage(self, placement: Placement) -> tuple[Decision, ...]:
        """What the weights are kept in, and why."""
        decoded, kept = (expert_sizes(self.spec, self.dtype, each).total for each in (NOTHING_STORED, self.stored))
        return decide_storage(self.profile.precision.storage, self.storable, placement, decoded, kept)

    def decide_split(self, cut: Split) -> Iterator[Decision]:
        """Why a step is cut as it is."""
        decision = self.guidance_decision
        if cut.guidance != self.guidance:
            decision = replace(
                decision, chosen=cut.guidance, reason="both passes at once do not fit, or weights are streamed"
            )
        yield decision
        if cut.batch < self.workload.batch:
            chosen = f"{cut.batch} of {self.workload.batch} videos at a time"
            yield Decision(topic="batch", asked="auto", chosen=chosen, reason="all at once do not fit")

    def _splits(self) -> Iterator[Split]:
        batch, guidance = self.workload.batch, self.guidance
        yield Split(guidance=guidance, batch=batch)
        saves_memory = self.profile.guidance.execution == "auto" and guidance == "batched" and self.workload.is_guided
        # Two streams go only with resident weights, whatever was asked.
        if saves_memory or guidance == "two-stream":
            guidance = "sequential"
            yield Split(guidance=guidance, batch=batch)
        while batch > 1:
            batch = -(-batch // 2)
            yield Split(guidance=guidance, batch=batch)

    def _samples(self, cut: Split) -> int:
        return cut.batch * (2 if cut.guidance == "batched" and self.workload.is_guided else 1)


def choose(
    profile: OptimizationProfile, hardware: Hardware, spec: TransformerSpec, workload: Workload
) -> ExpertsDemand:
    """Choose what the placement depends on; raises `UnsupportedError` where a strict profile cannot be kept."""
    dtype, dtype_decision = choose_dtype("precision", profile.precision.weights, hardware)
    guidance, guidance_decision = choose_guidance(profile.guidance.execution, spec.num_tokens(workload.latent_size))
    compile_mode, compile_decision = choose_compile(profile.compile.mode, hardware, profile)
    block_kernels, kernels_decision = choose_block_kernels(
        profile.fusion.kernels, compile_mode, dtype, hardware, profile
    )
    lora = plan_loras(workload.loras, spec, profile, DTYPE_BYTES[dtype])
    return ExpertsDemand(
        profile=profile,
        hardware=hardware,
        spec=spec,
        workload=workload,
        dtype=dtype,
        compile_mode=compile_mode,
        block_kernels=block_kernels,
        guidance=guidance,
        lora=lora,
        dtype_decision=dtype_decision,
        compile_decision=compile_decision,
        kernels_decision=kernels_decision,
        guidance_decision=guidance_decision,
        storable=storable_layers(profile, workload.stored, lora.merged_layers),
    )
