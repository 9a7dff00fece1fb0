"""Wan Plan: what a run would do and cost, before it does."""

from collections.abc import Mapping

from comfy_api.latest import io
from torch import Tensor

from ..wan_core.component_plan import ComponentPlan, resolve_decode, resolve_text
from ..wan_core.estimate import Knowledge, RunEstimate, decode_parts, sampling_parts, text_parts
from ..wan_core.outlook import estimate_facts, part_facts, plan_facts
from ..wan_core.plan import ExecutionPlan, Workload, resolve
from ..wan_core.profiles import OptimizationProfile, preset
from ..wan_core.recipes import SampleRequest
from ..wan_core.storage import storable
from . import host, native
from .handles import ExpertsHandle, TextEncoderHandle, VaeHandle
from .io_types import WanExperts, WanProfile, WanTextEncoder, WanVae
from .sample import chosen_recipe, recipe_input


class ShowPlan(io.ComfyNode):
    """The plan of a run as text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanVelocityPlan",
            display_name="Wan Plan",
            category="Wan Velocity",
            description="Says which steps each expert takes, what is chosen on this machine and why, and the predicted "
            "time and memory. Loads no weights and samples nothing.",
            search_aliases=["wan plan", "explain", "memory estimate", "time estimate", "expert split"],
            inputs=[
                WanExperts.Input("experts", tooltip="Both experts, from Load Wan Experts."),
                io.Latent.Input("latent", tooltip="The latent that would be sampled; only its size matters."),
                WanProfile.Input("profile", optional=True, tooltip="How to run. Not connected: the preset auto."),
                WanTextEncoder.Input("text_encoder", optional=True, tooltip="Adds the text encoder to the plan."),
                WanVae.Input("vae", optional=True, tooltip="Adds the decode to the plan."),
                recipe_input(),
            ],
            outputs=[io.String.Output("plan", tooltip="The plan in words.")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        experts: ExpertsHandle,
        latent: dict[str, Tensor],
        recipe: Mapping[str, object],
        profile: OptimizationProfile | None = None,
        text_encoder: TextEncoderHandle | None = None,
        vae: VaeHandle | None = None,
    ) -> io.NodeOutput:
        samples, profile = native.latent_samples(latent), profile or preset("auto")
        hardware = host.hardware(copies=experts.bytes_on_host)
        size = tuple(samples.shape[2:])
        workload = Workload(
            request=SampleRequest(recipe=chosen_recipe(recipe)),
            latent_size=size,
            batch=samples.shape[0],
            loras=experts.pair.loras,
            stored=storable(experts.pair),
        )
        known = Knowledge.of(hardware)
        plan = resolve(profile, hardware, experts.pair.spec, workload, known.calibration, current=experts.placement)
        plans: dict[str, ExecutionPlan | ComponentPlan] = {"experts": plan}
        parts = list(sampling_parts(plan, experts.pair.spec, known))
        if text_encoder is not None:
            text_plan = resolve_text(profile, hardware, text_encoder.spec)
            plans = {"text encoder": text_plan, **plans}
            parts = [*text_parts(text_plan, text_encoder.spec, known), *parts]
        if vae is not None:
            plans["VAE decode"] = resolve_decode(profile, hardware, vae.spec, size)
            parts += decode_parts(plans["VAE decode"], vae.spec, (workload.batch, *size), known)
        estimate = RunEstimate(parts=tuple(parts))
        text = "\n\n".join((*(each.to_text() for each in plans.values()), estimate.to_text()))
        shown = {
            **plan_facts(plan),
            "estimate": estimate_facts(estimate),
            "parts": [part_facts(name, each) for name, each in plans.items() if each is not plan],
            "text": text,
        }
        return io.NodeOutput(text, ui={"text": (text,), "wan_velocity": [shown]})
