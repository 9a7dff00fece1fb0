"""Wan VAE Decode: a latent to images."""

from comfy_api.latest import io
from einops import rearrange
from torch import Tensor, empty

from ..wan_core.component_plan import ComponentPlan, resolve_decode
from ..wan_core.estimate import Knowledge, decode_parts, learn
from ..wan_core.frames import fractions, on_host
from ..wan_core.profiles import OptimizationProfile, preset
from ..wan_core.recovery.ladder import code_down_the_ladder, smaller_tiles
from ..wan_core.report import Report
from ..wan_core.specs import video_frames
from . import host, live, native, saved_runs
from .handles import VaeHandle
from .io_types import WanProfile, WanVae


class DecodeLatent(io.ComfyNode):
    """A latent to native IMAGE frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanVelocityDecode",
            display_name="Wan VAE Decode",
            category="Wan Velocity",
            description="Decodes a latent to frames, chunk by chunk, in tiles where whole frames do not fit.",
            search_aliases=["vae decode", "latent to video", "tiled decode"],
            inputs=[
                io.Latent.Input("latent", tooltip="Video latent with 16 channels in raw VAE space."),
                WanVae.Input("vae", tooltip="From Load Wan VAE."),
                WanProfile.Input(
                    "profile", optional=True, tooltip="Tiling and precision. Not connected: the preset auto."
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images", tooltip="Frames in 0 to 1; the videos of a batch one after the other."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, latent: dict[str, Tensor], vae: VaeHandle, profile: OptimizationProfile | None = None
    ) -> io.NodeOutput:
        samples = native.latent_samples(latent)
        hardware, report = host.hardware(), Report()
        plan = resolve_decode(profile or preset("auto"), hardware, vae.spec, tuple(samples.shape[2:]))
        shape = (samples.shape[0], *samples.shape[2:])
        parts = decode_parts(plan, vae.spec, shape, Knowledge.of(hardware), place=vae.place)
        hooks = live.NodeHooks(cls.hidden.unique_id)
        hooks.tell_concessions(plan)
        with host.interruptible(), report.phase("decode"):
            images = _decode(vae, samples, plan, hooks, report)
        if not report.decisions:  # smaller tiles take another time
            learn(parts, report, hardware)
        saved_runs.decoded(latent)
        return io.NodeOutput(images)


def _decode(vae: VaeHandle, samples: Tensor, plan: ComponentPlan, hooks: live.NodeHooks, report: Report) -> Tensor:
    """Frames (B F, H, W, 3) in [0, 1], written to their place as they are decoded; in smaller tiles where they must."""
    batch, _, num_latent_frames, height, width = samples.shape
    shape = (batch, video_frames(num_latent_frames), height * 8, width * 8, 3)
    device = host.result_device()
    images = empty(shape, device=device)
    smaller = smaller_tiles(plan, vae.spec, tuple(samples.shape[2:]))
    # One video at a time, as the plan counts: a batch would take as many times the memory, and no less time.
    for video, latent in zip(images, samples.split(1), strict=True):
        chunks = code_down_the_ladder(
            "decode",
            lambda tile, latent=latent: vae.ready(plan, hooks.on_load).decode_chunks(latent, tile, hooks),
            plan.tile,
            smaller,
            report,
            host.free_device,
            hooks.on_warning,
        )
        start = 0
        # Where the host wants results on the device, they never leave it.
        for frames in on_host(chunks, fractions) if device.type == "cpu" else map(fractions, chunks):
            end = start + frames.shape[1]
            video[start:end] = frames[0]
            start = end
    return rearrange(images, "B T H W C -> (B T) H W C")
