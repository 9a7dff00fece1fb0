"""Into latents and conditioning: prompts, an empty latent, images."""

from comfy_api.latest import io
from einops import rearrange
from torch import Tensor, cat, zeros

from ..wan_core.component_plan import resolve_decode, resolve_text
from ..wan_core.errors import InputError
from ..wan_core.estimate import Knowledge, learn, text_parts
from ..wan_core.profiles import OptimizationProfile, preset
from ..wan_core.recipes import FRAME_STEP, MAX_SIDE, SIZE_STEP, VideoSize
from ..wan_core.recovery.ladder import code_down_the_ladder, smaller_tiles
from ..wan_core.report import Report
from ..wan_core.specs import DEFAULT_NEGATIVE_PROMPT, T2V_A14B
from . import host, live, native
from .handles import TextEncoderHandle, VaeHandle
from .io_types import WanProfile, WanTextEncoder, WanVae


class EncodeText(io.ComfyNode):
    """Prompt and negative prompt to native CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanVelocityEncodeText",
            display_name="Wan Text Encode",
            category="Wan Velocity",
            description="Encodes both prompts with UMT5: [1, 512, width] with zeros after the prompt, as native text "
            "encoding gives it. Prompts that were encoded before are remembered.",
            search_aliases=["wan prompt", "clip text encode", "umt5", "t5 encode"],
            inputs=[
                WanTextEncoder.Input("text_encoder", tooltip="From Load Wan Text Encoder."),
                io.String.Input(
                    "prompt", multiline=True, dynamic_prompts=True, default="", tooltip="At most 512 tokens."
                ),
                io.String.Input(
                    "negative_prompt",
                    optional=True,
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    placeholder="empty: the model's own negative prompt",
                    tooltip="What to avoid. Empty stands for the fixed Chinese negative prompt of the reference.",
                ),
                WanProfile.Input("profile", optional=True, tooltip="How to run. Not connected: the preset auto."),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="Of the prompt."),
                io.Conditioning.Output("negative", tooltip="Of the negative prompt."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        text_encoder: TextEncoderHandle,
        prompt: str,
        negative_prompt: str = "",
        profile: OptimizationProfile | None = None,
    ) -> io.NodeOutput:
        hardware, report, place = host.hardware(), Report(), text_encoder.place
        plan = resolve_text(profile or preset("auto"), hardware, text_encoder.spec)
        hooks = live.NodeHooks(cls.hidden.unique_id)
        prompts = {"prompt": prompt, "negative prompt": negative_prompt.strip() or DEFAULT_NEGATIVE_PROMPT}
        with host.interruptible(), report.phase("text"):
            encoder = text_encoder.ready(plan, list(prompts.values()), hooks.on_load)
            positive, negative = encoder.encode(list(prompts.values()), hooks).split(1)
        if text_encoder.place is not place:  # else some prompt was remembered, which says nothing about a new one
            learn(text_parts(plan, text_encoder.spec, Knowledge.of(hardware), place=place), report, hardware)
        if notes := encoder.notes(prompts):
            host.say("\n".join(notes), cls.hidden.unique_id)
        return io.NodeOutput(native.conditioning(positive), native.conditioning(negative))


class EmptyLatent(io.ComfyNode):
    """A latent of zeros, which the sampler takes for pure noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanVelocityEmptyLatent",
            display_name="Wan Empty Latent",
            category="Wan Velocity",
            description="Size and length of the video: an empty latent (batch, 16, (frames - 1) / 4 + 1, height / 8, "
            "width / 8).",
            search_aliases=["empty latent video", "wan size", "resolution", "number of frames"],
            inputs=[
                _side("width", 1280),
                _side("height", 720),
                io.Int.Input(
                    "frames",
                    default=T2V_A14B.num_frames,
                    min=1,
                    max=8 * 1024 + 1,
                    step=FRAME_STEP,
                    tooltip=f"4n + 1 frames; the model makes {T2V_A14B.fps} per second and was trained on "
                    f"{T2V_A14B.num_frames}.",
                ),
                io.Int.Input("batch", optional=True, default=1, min=1, max=64, tooltip="Videos at once."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="Zeros, which the sampler takes for pure noise.")],
        )

    @classmethod
    def validate_inputs(
        cls, width: int | None = None, height: int | None = None, frames: int | None = None
    ) -> bool | str:
        """Refuse an impossible size before anything runs; `None` is a connected value, checked when it is there."""
        try:
            VideoSize(
                width=SIZE_STEP if width is None else width,
                height=SIZE_STEP if height is None else height,
                num_frames=1 if frames is None else frames,
            )
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, width: int, height: int, frames: int, batch: int = 1) -> io.NodeOutput:
        size = VideoSize(width=width, height=height, num_frames=frames)
        shape = (batch, T2V_A14B.latent_channels, *size.latent_size)
        return io.NodeOutput({"samples": zeros(shape, device=host.result_device())})


class EncodeVideo(io.ComfyNode):
    """Images to a latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanVelocityEncode",
            display_name="Wan VAE Encode",
            category="Wan Velocity",
            description="Encodes the frames of one video to a latent in raw VAE space, for video to video; in tiles "
            "where whole frames do not fit.",
            search_aliases=["vae encode", "video to latent", "vid2vid"],
            inputs=[
                io.Image.Input("images", tooltip="4n + 1 frames of one video; width and height multiples of 16."),
                WanVae.Input("vae", tooltip="From Load Wan VAE."),
                WanProfile.Input("profile", optional=True, tooltip="How to run. Not connected: the preset auto."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="In raw VAE space, float32.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images: Tensor, vae: VaeHandle, profile: OptimizationProfile | None = None) -> io.NodeOutput:
        num_frames, height, width, _ = images.shape
        size = VideoSize(width=width, height=height, num_frames=num_frames)
        plan = resolve_decode(profile or preset("auto"), host.hardware(), vae.spec, size.latent_size)
        hooks = live.NodeHooks(cls.hidden.unique_id)
        hooks.tell_concessions(plan)
        # A fourth channel is alpha, which a video has no use for.
        video = rearrange(images[..., :3], "T H W C -> 1 C T H W").mul(2.0).sub(1.0)
        with host.interruptible():
            chunks = code_down_the_ladder(
                "encode",
                lambda tile: vae.ready(plan, hooks.on_load).encode_chunks(video, tile, hooks),
                plan.tile,
                smaller_tiles(plan, vae.spec, size.latent_size),
                Report(),
                host.free_device,
                hooks.on_warning,
            )
            latent = cat([chunk.float().to(host.result_device()) for chunk in chunks], dim=2)
        return io.NodeOutput({"samples": latent})


def _side(name: str, default: int) -> io.Int.Input:
    return io.Int.Input(
        name,
        default=default,
        min=SIZE_STEP,
        max=MAX_SIDE,
        step=SIZE_STEP,
        tooltip=f"Pixels, a multiple of {SIZE_STEP}.",
    )
