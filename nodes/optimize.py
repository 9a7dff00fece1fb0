"""Wan Optimization Profile: how to run. What to make is the sampler's recipe; the two share no field."""

from collections.abc import Mapping
from types import MappingProxyType

from comfy_api.latest import io

from ..wan_core import profiles
from ..wan_core.attention.backends import BACKEND_NAMES
from .io_types import WanProfile

# The value that keeps what the preset says.
KEEP = "preset"

# Widget id (permanent) -> (setting of the profile, tooltip).
SETTINGS = MappingProxyType(
    {
        "attention": (
            "attention.backend",
            "Kernel of the self attention. auto takes the fastest within the quality ceiling that works here.",
        ),
        "cross_attention": ("attention.cross", "Kernel of the attention to the text (512 tokens)."),
        "weights": (
            "precision.weights",
            "Dtype of the experts' weights and matrix products. auto: bfloat16 where the GPU computes it natively, "
            "float32 on a CPU.",
        ),
        "residual": (
            "precision.residual",
            "Dtype of the stream between blocks: float32 as in the reference, or that of the weights.",
        ),
        "tf32": ("precision.tf32", "TF32 for what is left in float32, during the run only. Needs an NVIDIA GPU."),
        "guidance": (
            "guidance.execution",
            "Conditional and unconditional pass in one batch, one after the other, or on two CUDA streams at once: "
            "same result, different memory.",
        ),
        "offload": (
            "offload.policy",
            "resident keeps both experts on the device; experts keeps the idle one in host memory; stream lets the "
            "last blocks of the running one pass through two buffers. auto: the first of these that fits.",
        ),
        "compile": (
            "compile.mode",
            "torch.compile of the transformer block, in place of fused kernels; the first step of a new size is slow.",
        ),
        "vae_tiling": (
            "vae.tiling",
            "The VAE takes whole frames or overlapping tiles. auto: tiles where frames do not fit.",
        ),
        "vae_precision": ("vae.precision", "Dtype of the VAE."),
        "quality": (
            "quality",
            "The ceiling that auto never crosses: exact (same math), near (8-bit math, bounded error), lossy.",
        ),
        "on_unsupported": (
            "on_unsupported",
            "What happens when an option named here cannot run: fall back and say so in the report, or stop.",
        ),
        "lora": (
            "lora.application",
            "LoRAs beside the layers, where a change of strength reloads nothing, or merged into the weights, where "
            "they cost no time in a step. auto: beside.",
        ),
        "streamed_blocks": (
            "offload.streamed_blocks",
            "With offload stream or auto: how many of the 40 blocks pass through. auto: the fewest that fit.",
        ),
        "memory_budget": (
            "offload.budget",
            "GiB of the GPU's memory that a run may take, for example 22.5. auto: what is free.",
        ),
        "fused_kernels": (
            "fusion.kernels",
            "Norms, sums and rotations of a block in Triton kernels, with float32 inside. auto: where they run.",
        ),
        "weight_storage": (
            "precision.storage",
            "What the weights of fp8, int8 and GGUF files are kept in: file keeps linear layers as the file stores "
            "them, half of the memory or less, and decodes each before its product; compute decodes them while "
            "loading. Same result. auto: file where decoded weights would not stay on the device.",
        ),
    }
)
# Settings that take a number; the other open ones take the name of a kernel.
_NUMBERS = frozenset({"offload.streamed_blocks", "offload.budget"})


class OptimizationProfileNode(io.ComfyNode):
    """A preset, and single settings that replace the preset's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanVelocityProfile",
            display_name="Wan Optimization Profile",
            category="Wan Velocity",
            description="How to run: a preset, with single settings changed where wanted. The sampler's report says "
            "what was chosen for each and why.",
            search_aliases=["wan profile", "wan speed", "attention backend", "low vram", "offload", "torch compile"],
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=list(profiles.PRESETS),
                    default="auto",
                    tooltip="auto: chosen for this machine. reference: float32, the yardstick, slow. exact: exact "
                    "kernels only, whatever auto may come to allow. "
                    "80gb, 40gb, 24gb, 16gb: auto within 78, 38, 22.5 and 14.5 GiB of the GPU; weights that do not "
                    "fit wait in host memory. cpu: float32, for running without a GPU.",
                ),
                *(_input(widget, setting, tooltip) for widget, (setting, tooltip) in SETTINGS.items()),
            ],
            outputs=[
                WanProfile.Output(
                    display_name="profile", tooltip="For the sampler and the nodes that encode and decode."
                )
            ],
        )

    @classmethod
    def execute(cls, preset: str, **widgets: str) -> io.NodeOutput:
        return io.NodeOutput(chosen_profile(preset, widgets))


def chosen_profile(preset: str, widgets: Mapping[str, str]) -> profiles.OptimizationProfile:
    """The profile that a preset and the widgets of single settings stand for."""
    changes = {SETTINGS[widget][0]: value.strip() for widget, value in widgets.items() if value != KEEP}
    return profiles.preset(preset).with_settings(changes)


def _input(widget: str, setting: str, tooltip: str) -> io.Combo.Input | io.String.Input:
    tooltip = f"{tooltip} {KEEP}: what the preset says."
    if setting in _NUMBERS:
        return io.String.Input(widget, default=KEEP, tooltip=tooltip, optional=True, advanced=True)
    return io.Combo.Input(
        widget,
        options=[KEEP, *(profiles.setting_choices(setting) or ("auto", *BACKEND_NAMES))],
        default=KEEP,
        tooltip=tooltip,
        optional=True,
        advanced=True,
    )
