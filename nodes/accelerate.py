"""Accelerate Native Wan Model: the host's own MODEL, faster, with nothing else in the graph rewired."""

from dataclasses import replace

from comfy_api.latest import io

from ..wan_core.attention import verdict_store
from ..wan_core.native.kernels import AttentionKernels
from ..wan_core.native.plan import resolve_native
from ..wan_core.native.work import bind_work
from ..wan_core.profiles import OptimizationProfile, preset
from . import host, native_model
from .io_types import WanProfile


class AccelerateNativeModel(io.ComfyNode):
    """Our kernels on the host's Wan model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanVelocityAccelerate",
            display_name="Accelerate Native Wan Model",
            category="Wan Velocity",
            description="Makes a native Wan 2.1 or 2.2 model faster: attention kernels chosen and timed on this "
            "machine, and fused kernels for norms, modulation, rotary positions and residual sums. The same "
            "mathematics on the same weights; LoRAs, samplers, caches and memory management stay ComfyUI's. One node "
            "for each expert, after its loader and its LoRAs.",
            search_aliases=["wan speed", "sage attention", "flash attention", "torch compile", "native wan", "unet"],
            inputs=[
                io.Model.Input("model", tooltip="A native Wan model, from Load Diffusion Model or any node after it."),
                WanProfile.Input(
                    "profile",
                    optional=True,
                    tooltip="Attention kernels and quality ceiling. What concerns loading, placement and guidance is "
                    "ComfyUI's here; the report names what is without effect. Not connected: the preset auto.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="A copy of the same model, faster."),
                io.String.Output(
                    display_name="report",
                    tooltip="What is accelerated, what is left as it is, and why. Kernels are those for 832x480x81; "
                    "for the size that is sampled they are chosen then, and shown on this node.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: object, profile: OptimizationProfile | None = None) -> io.NodeOutput:
        profile, hardware, node_id = profile or preset("auto"), host.hardware(), cls.hidden.unique_id
        plan = resolve_native(profile, hardware, native_model.read(model), verdict_store.read(hardware))
        work, decision = bind_work(plan.work, hardware.device)

        shown: dict[str, str] = {}

        def show(topic: str, line: str) -> None:
            # Another size of video brings other kernels, whose line takes the place of the last one.
            if shown.get(topic) != line:
                shown[topic] = line
                host.say("\n".join(shown.values()), node_id)

        kernels = AttentionKernels(profile, host.hardware, lambda each: show(each.topic, str(each)))
        clone = native_model.accelerated(model, kernels, work, lambda line: show(decision.topic, f"! {line}"))
        return io.NodeOutput(clone, replace(plan, work=decision).to_text())
