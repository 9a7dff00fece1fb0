"""The public API: everything of one model, from a prompt to a video.

A pipeline is opened from files (headers only), planned per request, and built when something is first needed. What is
built stays, so that a second video costs no loading, and is built anew only where a plan binds something else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .attention import verdict_store
from .build import build_experts, build_text_encoder, build_vae, measure_kernels
from .checkpoint.experts import open_experts
from .checkpoint.find import ModelFiles, find_model
from .checkpoint.lora_pair import LoraChoice, Partner, choose_lora
from .checkpoint.text_encoder import open_text_encoder
from .checkpoint.vae import open_vae
from .component_plan import ComponentPlan, resolve_decode, resolve_text
from .components import Experts, TextEncoder, Vae
from .estimate import Knowledge, RunEstimate, decode_parts, learn, sampling_parts, save_parts, text_parts
from .hardware import Hardware
from .hooks import RunHooks, Silent
from .measure import measured_phase
from .offload import Place
from .plan import ExecutionPlan, Workload, resolve
from .profiles import OptimizationProfile, preset
from .recipes import SampleRequest, VideoSize
from .report import Report
from .sample import Conditioning, SampleResult, sample
from .specs import DEFAULT_NEGATIVE_PROMPT


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """The plans of all phases of one run."""

    text: ComponentPlan
    experts: ExecutionPlan
    decode: ComponentPlan

    def to_text(self) -> str:
        return "\n".join((self.experts.to_text(), self.text.to_text(), self.decode.to_text()))


class WanPipeline:
    """One model, ready for prompts."""

    def __init__(
        self, files: ModelFiles, profile: OptimizationProfile | None = None, *, device: str | None = None
    ) -> None:
        """Read the headers of all files; raises `CheckpointError` for the first that is not what it should be."""
        self.profile = profile or preset("auto")
        self.pair = open_experts(files.high, files.low)
        self._text_source = open_text_encoder(files.text_encoder, files.tokenizer)
        self._vae_source = open_vae(files.vae)
        self._device = device
        self._experts: Experts | None = None
        self._text: TextEncoder | None = None
        self._vae: Vae | None = None

    @property
    def loras(self) -> tuple[LoraChoice, ...]:
        """The LoRAs on the experts, in their order. Other strengths cost no loading."""
        return self.pair.loras

    @loras.setter
    def loras(self, choices: Sequence[LoraChoice]) -> None:
        self.pair = replace(self.pair, loras=tuple(choices))

    def add_lora(
        self,
        file: str | Path,
        *,
        partner: Partner = "by name",
        strength_high: float = 1.0,
        strength_low: float = 1.0,
    ) -> None:
        """Put a LoRA on the experts, after those that are on them; its file for the other expert is found by name.

        Raises `CheckpointError` for a file that is no LoRA or does not fit.
        """
        choice = choose_lora(
            file, self.pair.spec, partner=partner, strength_high=strength_high, strength_low=strength_low
        )
        self.pair = self.pair.with_lora(choice)

    def plan(self, request: SampleRequest, size: VideoSize, *, batch: int = 1) -> RunPlan:
        """What a run would do; builds and loads nothing."""
        hardware = self._hardware()
        workload = Workload(request=request, latent_size=size.latent_size, batch=batch, loras=self.pair.loras)
        experts = resolve(self.profile, hardware, self.pair.spec, workload, verdict_store.read(hardware))
        beside = replace(hardware, free_memory=max(hardware.free_memory - experts.weight_bytes, 0))
        return RunPlan(
            text=resolve_text(self.profile, hardware, self._text_source.spec),
            experts=experts,
            decode=resolve_decode(self.profile, beside, self._vae_source.spec, size.latent_size),
        )

    def estimate(self, plan: RunPlan) -> RunEstimate:
        """How long a run of this plan takes from now on: what is loaded already costs nothing."""
        known = Knowledge.of(self._hardware())
        experts = self._experts if self._experts and self._experts.key == plan.experts.key else None
        latent = (plan.experts.workload.batch, *plan.experts.workload.latent_size)
        return RunEstimate(
            parts=(
                *text_parts(plan.text, self._text_source.spec, known, place=_place(self._text)),
                *sampling_parts(plan.experts, self.pair.spec, known, places=experts.places if experts else None),
                *decode_parts(plan.decode, self._vae_source.spec, latent, known, place=_place(self._vae)),
                *save_parts(latent, known),
            )
        )

    def learn(self, estimate: RunEstimate, report: Report) -> None:
        """Keep how long a run took that has ended well, for the estimates of later ones."""
        learn(estimate.parts, report, self._hardware())

    def encode(
        self, plan: RunPlan, prompt: str, negative: str = "", *, hooks: RunHooks | None = None, report: Report
    ) -> Conditioning:
        """Embeddings of both prompts; an empty negative prompt stands for the model's own."""
        hooks = hooks or Silent()
        hooks.on_phase("text")
        with measured_phase(report, "text", plan.text.device):
            text = self._text = self._text or build_text_encoder(plan.text, self._text_source)
            positive, opposite = text.encode([prompt, negative.strip() or DEFAULT_NEGATIVE_PROMPT], hooks).split(1)
            if plan.text.peak_bytes + plan.experts.peak_bytes > self._hardware().free_memory:
                text.weights.drop()
        report.decisions += text.decisions
        report.warnings += text.notes({"prompt": prompt, **({"negative prompt": negative} if negative.strip() else {})})
        return Conditioning(positive=positive, negative=opposite)

    def sample(
        self,
        plan: RunPlan,
        conditioning: Conditioning,
        latent: Tensor | None = None,
        *,
        hooks: RunHooks | None = None,
        report: Report | None = None,
    ) -> SampleResult:
        """Sample a latent in raw VAE space, from pure noise where none is given."""
        hooks, report = hooks or Silent(), report or Report()
        hooks.on_phase("build")
        with report.phase("build"):
            experts = measure_kernels(plan.experts, self._hardware(), report)
            workload = experts.workload
            if self._experts is None or self._experts.key != experts.key:
                pair = replace(self.pair, loras=workload.loras)
                self._experts = build_experts(experts.binding, pair, self._hardware(), previous=self._experts)
        if latent is None:
            latent = torch.zeros(workload.batch, self.pair.spec.out_dim, *workload.latent_size)
        return sample(self._experts, experts, conditioning, latent, hooks=hooks, report=report)

    def decode_chunks(self, plan: RunPlan, latent: Tensor, *, hooks: RunHooks | None = None) -> Iterator[Tensor]:
        """Video chunks (B, 3, t, 8H, 8W) in [-1, 1] on the device, one frame and then four at a time."""
        hooks = hooks or Silent()
        hooks.on_phase("decode")
        self._vae = self._vae or build_vae(plan.decode, self._vae_source)
        self._make_room(plan.decode)
        yield from self._vae.decode_chunks(latent, plan.decode.tile, hooks)

    def environment(self) -> dict[str, str]:
        """The machine and the versions that a report is worth little without."""
        return self._hardware().environment()

    def _make_room(self, decode: ComponentPlan) -> None:
        """Move idle experts to the host where the decode would not fit beside them."""
        for weights in self._experts.weights.values() if self._experts else ():
            if decode.device.startswith("cuda") and self._hardware(own=False).free_memory < decode.peak_bytes:
                weights.to_host()

    def _hardware(self, *, own: bool = True) -> Hardware:
        """This machine; with `own`, memory that our own weights hold counts as free, since it is there to be reused."""
        hardware = Hardware.detect(self._device)
        held = [self._text.weights] if self._text else []
        held += [self._vae.weights] if self._vae else []
        held += self._experts.weights.values() if self._experts else []
        reusable = sum(weights.bytes_on_device for weights in held) if own else 0
        return replace(hardware, free_memory=hardware.free_memory + reusable)


def _place(component: TextEncoder | Vae | None) -> Place:
    return component.weights.place if component else Place.FILE


def open_pipeline(folder: str | Path, profile: str = "auto", *, device: str | None = None) -> WanPipeline:
    """The model in a folder (official or ComfyUI layout), run with a preset profile."""
    return WanPipeline(find_model(folder), preset(profile), device=device)
