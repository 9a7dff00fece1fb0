"""Wan Compare: how far two videos or two latents are apart, in numbers and side by side."""

from comfy_api.latest import io, ui
from einops import rearrange
from torch import Tensor, empty

from ..wan_core.errors import InputError, Interrupted
from ..wan_core.metrics import compare_latents, compare_videos
from . import host, live, native

# How much stronger than it is the difference is shown.
GAIN = 8
_PAIRS = (("images_a", "images_b"), ("latent_a", "latent_b"))


class Compare(io.ComfyNode):
    """Two videos or two latents to metrics and a picture of their difference."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanVelocityCompare",
            display_name="Wan Compare",
            category="Wan Velocity",
            description="Measures how far two videos or two latents are apart: MSE, PSNR, SSIM and steadiness in time. "
            f"Shows A, B and {GAIN} times their difference side by side.",
            search_aliases=["compare video", "compare latent", "psnr", "ssim", "mse", "difference", "flicker"],
            inputs=[
                io.Image.Input("images_a", optional=True, tooltip="The reference: frames of one video, in 0 to 1."),
                io.Image.Input("images_b", optional=True, tooltip="As many frames of the same size."),
                io.Latent.Input("latent_a", optional=True, tooltip="The reference, in place of images."),
                io.Latent.Input("latent_b", optional=True, tooltip="A latent of the same shape."),
            ],
            outputs=[
                io.String.Output("metrics", tooltip="What was measured. B against A; errors are relative to A."),
                io.Image.Output(
                    "side_by_side",
                    tooltip=f"A, B, and {GAIN} times their absolute difference. Latents are shown as the host previews "
                    "them, one pixel for 8x8.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images_a: Tensor | None = None,
        images_b: Tensor | None = None,
        latent_a: dict[str, Tensor] | None = None,
        latent_b: dict[str, Tensor] | None = None,
    ) -> io.NodeOutput:
        _check_connected(images_a=images_a, images_b=images_b, latent_a=latent_a, latent_b=latent_b)
        if images_a is not None:
            # A fourth channel is alpha, which a video has no use for.
            pictures = [images_a[..., :3], images_b[..., :3]]
            hooks = live.NodeHooks(cls.hidden.unique_id)
            with host.interruptible():
                comparison = compare_videos(*pictures, on_frame=lambda done, total: _advance(hooks, done, total))
        else:
            latents = [native.latent_samples(latent) for latent in (latent_a, latent_b)]
            comparison = compare_latents(*latents)
            pictures = [latent_pictures(latent) for latent in latents]
        text = comparison.to_text()
        return io.NodeOutput(text, side_by_side(*pictures), ui=ui.PreviewText(text))


def side_by_side(first: Tensor, second: Tensor) -> Tensor:
    """Frames (T, H, W, 3) in [0, 1] as (T, H, 3 W, 3): both, and their amplified absolute difference."""
    num_frames, height, width, channels = first.shape
    # Written to its place: at 1280x720x81 the result takes 2.5 GiB, and every temporary another 0.8.
    pictures = empty((num_frames, height, 3 * width, channels), device=first.device)
    pictures[:, :, :width] = first
    pictures[:, :, width : 2 * width] = second
    pictures[:, :, 2 * width :].copy_(first).sub_(second).abs_().mul_(GAIN).clamp_(0.0, 1.0)
    return pictures


def latent_pictures(latent: Tensor) -> Tensor:
    """Pictures (B T, H, W, 3) in [0, 1] of a latent (B, 16, T, H, W) in raw VAE space, as the host previews it."""
    known = host.latent_format()
    pixels = rearrange(known.process_in(latent.float()), "B C T H W -> (B T) H W C")
    factors, bias = pixels.new_tensor(known.latent_rgb_factors), pixels.new_tensor(known.latent_rgb_factors_bias)
    return (pixels @ factors + bias).add(1.0).div(2.0).clamp(0.0, 1.0)


def _check_connected(**inputs: object) -> None:
    connected = tuple(name for name, value in inputs.items() if value is not None)
    if connected not in _PAIRS:
        raise InputError(
            f"{' and '.join(connected) or 'nothing'} connected, expected either images_a and images_b, or latent_a and "
            "latent_b"
        )


def _advance(hooks: live.NodeHooks, done: int, total: int) -> None:
    hooks.on_chunk(done, total)
    if hooks.should_stop():
        raise Interrupted
