"""The public API: everything of one model, from a prompt to a video.

A pipeline is opened from files (headers only), planned per request, and built when something is first needed. What is
built stays, so that a second video costs no loading, and is built anew only where a plan binds something else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .attention import verdict_store
from .attention.interface import import_ahead
from .build import build_experts, build_text_encoder, build_vae, measure_kernels
from .checkpoint.experts import open_experts
from .checkpoint.find import ModelFiles, find_model
from .checkpoint.lora_pair import LoraChoice, Partner, choose_lora
from .checkpoint.text_encoder import open_text_encoder
from .checkpoint.vae import open_vae
from .components import Experts, TextEncoder, Vae
from .estimate import Knowledge, RunEstimate, decode_parts, learn, sampling_parts, save_parts, text_parts
from .hardware import Hardware
from .hooks import RunHooks, Silent
from .measure import measured_phase
from .offload.weights import Place
from .plan import ExecutionPlan
from .profiles import OptimizationProfile, preset
from .recipes import SampleRequest, VideoSize
from .recovery.identity import facts_of
from .recovery.journal import Journal
from .recovery.ladder import Ladder, code_down_the_ladder, give_back, sample_down_the_ladder, smaller_tiles
from .recovery.state import Facts
from .report import Report
from .run_plan import Loaded, ModelSpecs, RunPlan, resolve_run
from .sample import Conditioning, SampleResult, sample
from .specs import DEFAULT_NEGATIVE_PROMPT
from .storage import storable
from .workload import Workload

# Fewer than a text encoder remembers.
_PROMPTS_AHEAD = 24


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
        workload = Workload(
            request=request,
            latent_size=size.latent_size,
            batch=batch,
            loras=self.pair.loras,
            stored=storable(self.pair),
        )
        specs = ModelSpecs(transformer=self.pair.spec, text_encoder=self._text_source.spec, vae=self._vae_source.spec)
        known = verdict_store.read(hardware)
        current = self._experts.placement if self._experts else None
        return resolve_run(self.profile, hardware, specs, workload, known, loaded=self._loaded(), current=current)

    def estimate(self, plan: RunPlan) -> RunEstimate:
        """How long a run of this plan takes from now on: what is loaded already costs nothing."""
        known = Knowledge.of(self._hardware())
        held = self._experts
        # Another size or LoRA is another build, but around the weights that are there.
        takes_over = held is not None and held.weights_key == plan.experts.binding.weights_key
        built = "nothing" if held is None else "this" if held.key == plan.experts.key else "another"
        latent = (plan.experts.workload.batch, *plan.experts.workload.latent_size)
        return RunEstimate(
            parts=(
                *text_parts(plan.text, self._text_source.spec, known, place=_place(self._text)),
                *sampling_parts(
                    plan.experts, self.pair.spec, known, places=held.places if takes_over else None, built=built
                ),
                *decode_parts(plan.decode, self._vae_source.spec, latent, known, place=_place(self._vae)),
                *save_parts(latent, known),
            )
        )

    def learn(self, estimate: RunEstimate, report: Report) -> None:
        """Keep how long a run took that has ended well, for the estimates of later ones."""
        learn(estimate.parts, report, self._hardware())

    def encode(
        self,
        plan: RunPlan,
        prompt: str,
        negative: str = "",
        *,
        ahead: Sequence[str] = (),
        hooks: RunHooks | None = None,
        report: Report,
    ) -> Conditioning:
        """Embeddings of both prompts; an empty negative prompt stands for the model's own.

        ahead: prompts that will be asked for later, encoded now and remembered where the encoder has to be loaded.
        """
        hooks = hooks or Silent()
        hooks.on_phase("text")
        if self._experts is None:
            import_ahead(plan.experts.binding.attention)  # needed next; reading the text encoder leaves Python idle
        report.predicted_bytes |= plan.predicted_bytes
        texts = [prompt, negative.strip() or DEFAULT_NEGATIVE_PROMPT]
        with measured_phase(report, "text", plan.text.device):
            text = self._text = self._text or build_text_encoder(plan.text, self._text_source)
            if not text.is_cached(texts):
                if plan.text_needs_room:
                    self._move_experts_away()
                text.encode([*ahead[:_PROMPTS_AHEAD], *texts], hooks)
            positive, opposite = text.encode(texts, hooks).split(1)
            if not plan.keeps_text:
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
        journal: Journal | None = None,
    ) -> SampleResult:
        """Sample a latent in raw VAE space, from pure noise where none is given.

        Where memory runs out the run goes on with less, from its last finished step. journal: remembers that step, and
        writes it where it has a file.
        """
        hooks, report, journal = hooks or Silent(), report or Report(), journal or Journal()
        if latent is None:
            workload = plan.experts.workload
            latent = torch.zeros(workload.batch, self.pair.spec.out_dim, *workload.latent_size)

        def attempt(experts: ExecutionPlan) -> SampleResult:
            hooks.on_phase("build")
            with report.phase("build"):
                experts = measure_kernels(experts, self._hardware(), report)
                self._build_experts(experts)
            return sample(self._experts, experts, conditioning, latent, hooks=hooks, report=report, journal=journal)

        ladder = Ladder(profile=self.profile, hardware=self._hardware, spec=self.pair.spec)
        return sample_down_the_ladder(attempt, plan.experts, ladder, journal, report, self._free, hooks.on_warning)

    def facts(
        self, plan: RunPlan, conditioning: Conditioning, latent: Tensor | None = None, *, driver: dict[str, object]
    ) -> Facts:
        """Which run this is, for its journal. driver: words of the caller that are kept with the state."""
        prompts = {"positive": conditioning.positive, "negative": conditioning.negative}
        experts = plan.experts.with_calibration(verdict_store.read(self._hardware()))
        return facts_of(self.pair, experts, prompts, latent, environment=self.environment(), driver=driver)

    def decode_chunks(
        self, plan: RunPlan, latent: Tensor, *, hooks: RunHooks | None = None, report: Report | None = None
    ) -> Iterator[Tensor]:
        """Video chunks (B, 3, t, 8H, 8W) in [-1, 1] on the device, one frame and then four at a time.

        The plan counts with one video; where memory runs out they go on in smaller tiles.
        """
        hooks = hooks or Silent()
        hooks.on_phase("decode")
        self._vae = self._vae or build_vae(plan.decode, self._vae_source)
        if not plan.keeps_experts:
            self._move_experts_away()
        smaller = smaller_tiles(plan.decode, self._vae_source.spec, tuple(latent.shape[2:]))
        yield from code_down_the_ladder(
            "decode",
            lambda tile: self._vae.decode_chunks(latent, tile, hooks),
            plan.decode.tile,
            smaller,
            report or Report(),
            self._free,
            hooks.on_warning,
        )

    def environment(self) -> dict[str, str]:
        """The machine and the versions that a report is worth little without."""
        return self._hardware().environment()

    def _build_experts(self, plan: ExecutionPlan) -> None:
        if self._experts is None or self._experts.key != plan.key:
            pair = replace(self.pair, loras=plan.workload.loras)
            self._experts = build_experts(plan.binding, pair, self._hardware(), previous=self._experts)

    def _free(self) -> None:
        """Give back everything on the device that is not needed at once: what is needed comes back by itself."""
        device = self._hardware().device
        if device.startswith("cuda"):
            held = [each.weights for each in (self._text, self._vae) if each]
            held += self._experts.weights.values() if self._experts else []
            for weights in held:
                weights.leave_device()
        give_back(device)

    def _loaded(self) -> frozenset[Loaded]:
        """What is on the device from a run before."""
        experts = any(weights.bytes_on_device for weights in self._experts.weights.values()) if self._experts else False
        held = {"experts": experts, "VAE": bool(self._vae and self._vae.weights.bytes_on_device)}
        return frozenset(name for name, is_loaded in held.items() if is_loaded)

    def _move_experts_away(self) -> None:
        for weights in self._experts.weights.values() if self._experts else ():
            weights.leave_device()

    def _hardware(self) -> Hardware:
        """This machine; memory that our own weights hold counts as free, since it is there to be reused."""
        hardware = Hardware.detect(self._device)
        held = [self._text.weights] if self._text else []
        held += [self._vae.weights] if self._vae else []
        held += self._experts.weights.values() if self._experts else []
        return replace(
            hardware,
            free_memory=hardware.free_memory + sum(weights.bytes_on_device for weights in held),
            host_free_memory=hardware.host_free_memory + sum(weights.bytes_on_host for weights in held),
        )


def _place(component: TextEncoder | Vae | None) -> Place:
    return component.weights.place if component else Place.FILE


def open_pipeline(folder: str | Path, profile: str = "auto", *, device: str | None = None) -> WanPipeline:
    """The model in a folder (official or ComfyUI layout), run with a preset profile."""
    return WanPipeline(find_model(folder), preset(profile), device=device)
