"""Our own profiles as contestants: planned and built as for a run, with random numbers where the files would be.

One expert is on the device, which is what a step needs and what the peers hold. A step is a step of the real loop: both
passes of guidance and the solver (the peers stop at guidance), paced and with the switches that `sample` sets. The text
is projected to keys and values once and not in every step, because that is how a run has it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..attention import verdict_store
from ..build import build_experts, build_text_encoder, build_vae, measure_kernels
from ..checkpoint.experts import ExpertPair
from ..checkpoint.inventory import text_encoder_shapes, transformer_shapes, vae_shapes
from ..checkpoint.vae import VaeSource
from ..choices import KERNELS_TOPIC
from ..compilation import Region
from ..component_plan import ComponentPlan, resolve_decode, resolve_text
from ..components import TextEncoder
from ..errors import UnsupportedError
from ..hardware import Hardware
from ..hooks import Silent
from ..models.transformer import WanTransformer
from ..offload.residency import KeepResident
from ..offload.weights import Weights
from ..pacing import Pacer
from ..plan import ExecutionPlan, Workload, resolve
from ..precision import tf32
from ..profiles import OffloadSpec, OptimizationProfile
from ..report import Decision, Report
from ..sampling.guidance import GuidedVelocity
from ..sampling.loop import SolverStep, denoise
from ..sampling.solvers import SOLVERS
from ..specs import Expert, TextEncoderSpec
from .breakdown import place
from .operations import GUIDANCE, SOLVER
from .prompts import prompts, vocabulary
from .random_weights import RandomCheckpoint, random_checkpoint
from .task import PARTS, Facts, Part, Prepared, Task

_PLACEMENT = "placement"
Lap = Callable[[str], None]


class ProfileCandidate:
    """One profile; `name` is what was asked for."""

    is_peer = False
    parts = PARTS

    def __init__(self, name: str, profile: OptimizationProfile) -> None:
        self.name = name
        self._profile = profile

    def prepare(self, part: Part, task: Task) -> Prepared:
        prepare = {"step": self.prepare_step, "vae": self._vae, "text": self._text}[part]
        return prepare(task, Hardware.detect(task.device))

    def prepare_step(self, task: Task, hardware: Hardware, lap: Lap = lambda name: None) -> Prepared:
        """A step, in the order of a run. lap: told what has just ended, for who asks where a start's time goes."""
        spec = task.transformer
        # As for a run that keeps one expert on the device: this one does.
        profile = replace(self._profile, offload=OffloadSpec(policy="experts"))
        workload = Workload(request=task.request, latent_size=task.latent_size)
        plan = resolve(profile, hardware, spec, workload, verdict_store.read(hardware))
        lap("planned")
        plan = measure_kernels(plan, hardware, Report())
        lap("attention kernels looked up")
        source = random_checkpoint(transformer_shapes(spec))
        pair = ExpertPair(high=source, low=source, spec=spec)
        experts = build_experts(plan.binding, pair, hardware, make_residency=_one_expert)
        lap("kernels bound, experts built")
        experts.residency.activate(Expert.HIGH, lambda what, done, total: None)
        lap("weights drawn")
        steps = _Steps(experts.transformers[Expert.HIGH], plan, task)
        return Prepared(
            run=partial(_as_asked, steps, experts.region),
            module=experts.transformers[Expert.HIGH],
            facts=_facts_of_step(plan, experts.decisions),
            is_compiled=plan.binding.compile_mode != "off",
        )

    def _vae(self, task: Task, hardware: Hardware) -> Prepared:
        plan = resolve_decode(self._profile, hardware, task.vae, task.latent_size)
        vae = build_vae(plan, VaeSource(checkpoint=random_checkpoint(vae_shapes(task.vae)), spec=task.vae))
        vae.weights.to_device()
        latent = task.latent()

        def run() -> Tensor:
            return torch.cat(list(vae.decode_chunks(latent, plan.tile, Silent())), dim=2)

        return Prepared(run=run, module=vae.weights.module, facts=_facts(plan))

    def _text(self, task: Task, hardware: Hardware) -> Prepared:
        plan = resolve_text(self._profile, hardware, task.text)
        source = RandomTextEncoder(checkpoint=random_checkpoint(text_encoder_shapes(task.text)), spec=task.text)
        built = build_text_encoder(plan, source)
        built.weights.to_device()

        def run() -> Tensor:
            # A new one each time: the encoder keeps the prompts that it has met.
            return TextEncoder(built.weights, built.tokenizer, ()).encode(prompts(), Silent())

        return Prepared(run=run, module=built.weights.module, facts=_facts(plan))


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomTextEncoder:
    """What `build` needs of a `TextEncoderSource`, without files."""

    checkpoint: RandomCheckpoint
    spec: TextEncoderSpec
    tokenizer: None = None

    def vocabulary(self) -> bytes:
        return vocabulary()


def _one_expert(weights: Mapping[Expert, Weights]) -> KeepResident:
    return KeepResident({Expert.HIGH: weights[Expert.HIGH]})


class _Steps:
    """The steps of one run, one at a time, by the high-noise expert alone; after the last one a new run begins."""

    def __init__(self, transformer: WanTransformer, plan: ExecutionPlan, task: Task) -> None:
        self._blocks = tuple(transformer.blocks)
        self._plan = plan
        self._guidance = task.guidance
        self._noise = task.latent()
        with torch.inference_mode():
            positive, negative = (transformer.prepare_text(context[None]) for context in task.contexts())
        self._velocity = GuidedVelocity(transformer, positive, negative, execution=plan.guidance)
        self._steps: Iterator[SolverStep] = iter(())
        self._predicted = self._noise

    def run(self) -> Tensor:
        """One step; the guided velocity it was made with."""
        with (
            torch.inference_mode(),
            tf32(enabled=self._plan.tf32 == "on"),
            Pacer(self._blocks, lambda: False),
            place(SOLVER),
        ):
            if next(self._steps, None) is None:
                solver = SOLVERS[self._plan.workload.request.recipe.solver]
                self._steps = denoise(self._predict, self._noise, self._plan.schedule, solver)
                next(self._steps)
        return self._predicted

    def _predict(self, latent: Tensor, index: int) -> Tensor:
        timestep = torch.full((1,), self._plan.schedule.timesteps[index], dtype=torch.float32, device=latent.device)
        with place(GUIDANCE):
            self._predicted = self._velocity(latent, timestep, self._guidance)
        return self._predicted


def _as_asked(steps: _Steps, region: Region) -> Tensor:
    """A step; one that fell back to another mode of compiling is not what the row says it is."""
    output = steps.run()
    if region.rejected:
        reasons = "; ".join(f"{item.name}: {item.reason}" for item in region.rejected)
        raise UnsupportedError(f"compiling fell back to {region.mode!r} here ({reasons}); measure that by its name")
    return output


def _facts_of_step(plan: ExecutionPlan, built: tuple[Decision, ...]) -> Facts:
    decisions = {decision.topic: decision for decision in (*plan.decisions, *built) if decision.topic != _PLACEMENT}
    binding = plan.binding
    attention, cross = (decisions[choice.topic].chosen for choice in (binding.attention, binding.cross_attention))
    return Facts(
        summary=f"{binding.dtype}, {binding.residual} residual, attention {attention}, cross attention {cross}, "
        f"{plan.guidance} guidance, compile {binding.compile_mode}, "
        f"fused kernels {decisions[KERNELS_TOPIC].chosen}; with the solver's step",
        dtype=binding.dtype,
        details=tuple(map(str, decisions.values())),
    )


def _facts(plan: ComponentPlan) -> Facts:
    tiles = "" if plan.tile is None else f", in tiles {plan.tile}"
    return Facts(
        summary=f"{plan.dtype} on {plan.device}{tiles}", dtype=plan.dtype, details=tuple(map(str, plan.decisions))
    )
