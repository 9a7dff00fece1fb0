"""Which functions do the blocks' work between their products: `choose_work` is the pure half, `bind_work` tries them.

The names are those of the setting `fusion.kernels`, and "torch" for a CPU, where the functions run in plain PyTorch:
there is nothing to be gained there, and nothing to be lost, and the way that a block takes is the same everywhere. On a
card they would read and write more than what they replace, so without Triton the blocks keep their own.
"""

from dataclasses import replace

from ..choices import choose_block_kernels
from ..hardware import Hardware
from ..kernels.bind import bind_kernels
from ..kernels.block import TORCH, BlockKernels
from ..profiles import OptimizationProfile
from ..report import Decision, Rejection
from .facts import NativeModel


def choose_work(profile: OptimizationProfile, hardware: Hardware, model: NativeModel) -> Decision:
    """Norms, modulation, rotation and residual sums of the blocks: in our functions, or "off", as they are.

    Raises `UnsupportedError` where a strict profile cannot be kept.
    """
    asked = profile.fusion.kernels
    topic, on_a_cpu = f"block work of {model.name}", not hardware.is_cuda and asked != "off"
    _, decision = choose_block_kernels(asked, "off", model.dtype, hardware, profile)
    if model.compiled_whole:
        return Decision(topic=topic, asked=asked, chosen="off", reason="another node compiles the model")
    if len(model.left) >= 2 * model.num_blocks:
        return Decision(
            topic=topic, asked=asked, chosen="off", reason="no block is as we know it", rejected=model.left[:1]
        )
    if decision.chosen == "off" and not on_a_cpu:
        return replace(decision, topic=topic)
    chosen, reason = ("torch", "; on a CPU there is nothing to fuse") if on_a_cpu else ("triton", "")
    return Decision(
        topic=topic, asked=asked, chosen=chosen, reason=f"{model.num_blocks} blocks{reason}", rejected=model.left
    )


def bind_work(decision: Decision, device: str) -> tuple[BlockKernels | None, Decision]:
    """The functions of a choice, tried on the device, and what was decided in the end; `None` is as it is."""
    if decision.chosen != "triton":
        return (TORCH if decision.chosen == "torch" else None), decision
    kernels, problem = bind_kernels("triton", device)
    if problem is None:
        return kernels, decision
    rejected = (Rejection(name="triton", reason=problem), *decision.rejected)
    return None, replace(decision, chosen="off", reason="", rejected=rejected)
