"""The rules of planning, one function per topic: what was asked, what this machine allows, what is best.

Each returns the choice and the `Decision` that explains it; none loads anything. Rules that concern several features
stand here and nowhere else.
"""

from collections.abc import Collection
from dataclasses import replace

from .attention.backends import BACKENDS
from .attention.calibrate import is_measurable
from .attention.interface import AttentionProblem, KernelChoice, survivors
from .errors import UnsupportedError
from .hardware import Hardware
from .placement import Placement
from .profiles import OptimizationProfile
from .report import Decision, gib
from .storage import NOTHING_STORED, StoredLayers

# Below this many tokens one pass leaves the device idle and a batch of two is faster; above, batching gains nothing
# and costs memory (32,760 tokens, one H200, 2026-11-21: sequential 5.15 s a step, batched 5.23, two streams 5.24).
BATCHED_GUIDANCE_TOKENS = 16_384
KERNELS_TOPIC = "fused kernels"
VAE_KERNELS_TOPIC = "VAE fused kernels"
STORAGE_TOPIC = "weight storage"

_NOTHING_ENCODED = "the files of these experts hold no linear layers in 8 bits or fewer"
_WITHOUT_GRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}


def choose_dtype(topic: str, asked: str, hardware: Hardware) -> tuple[str, Decision]:
    """Dtype of weights and matrix products."""
    if asked != "auto":
        return asked, Decision(topic=topic, asked=asked, chosen=asked, reason="as asked")
    if hardware.has_bfloat16:
        chosen, reason = "bfloat16", "the released models' own dtype, native on this GPU"
    elif hardware.is_cuda:
        chosen, reason = "float16", f"compute capability {hardware.capability} has no native bfloat16"
    else:
        chosen, reason = "float32", "on a CPU float32 is as fast as bfloat16 and more exact"
    return chosen, Decision(topic=topic, asked=asked, chosen=chosen, reason=reason)


def choose_attention(
    topic: str, asked: str, problem: AttentionProblem, hardware: Hardware, profile: OptimizationProfile
) -> KernelChoice:
    """Attention backends for one kind of attention, in order of preference.

    Raises `UnsupportedError` where a strict profile cannot be kept.
    """
    choice = survivors(topic, asked, problem, hardware, BACKENDS, ceiling=profile.quality)
    if profile.on_unsupported == "error" and asked not in ("auto", *choice.names[:1]):
        reason = next(item.reason for item in choice.rejected if item.name == asked)
        raise UnsupportedError(f"{topic} {asked!r} cannot run here: {reason}; {choice.names[0]!r} can")
    if is_measurable(choice, hardware):
        return replace(choice, reason="in order of preference, not timed on this machine yet")
    return choice


def choose_guidance(asked: str, num_tokens: int) -> tuple[str, Decision]:
    """How the two passes of guidance run."""
    if asked != "auto":
        chosen, reason = asked, "as asked"
    elif num_tokens < BATCHED_GUIDANCE_TOKENS:
        chosen, reason = "batched", f"{num_tokens:,} tokens do not fill the device with one pass"
    else:
        chosen, reason = "sequential", f"{num_tokens:,} tokens fill the device with one pass"
    return chosen, Decision(topic="guidance passes", asked=asked, chosen=chosen, reason=reason)


def choose_compile(asked: str, hardware: Hardware, profile: OptimizationProfile) -> tuple[str, Decision]:
    """Whether blocks are compiled."""
    reason = None
    if asked != "off" and not hardware.is_cuda:
        reason = "compiling pays on an NVIDIA GPU only"
    elif asked != "off" and hardware.library("triton") is None:
        reason = "Triton is not installed"
    if reason is None:
        return asked, Decision(topic="compile", asked=asked, chosen=asked)
    if profile.on_unsupported == "error":
        raise UnsupportedError(f"compile {asked!r} cannot run here: {reason}; use 'off'")
    return "off", Decision(topic="compile", asked=asked, chosen="off", reason=reason)


def choose_block_kernels(
    asked: str, compile_mode: str, dtype: str, hardware: Hardware, profile: OptimizationProfile
) -> tuple[str, Decision]:
    """What computes the norms, sums and rotations of a block: kernels of our own, or PyTorch's operators.

    A compiled block needs none: its compiler fuses the same operators into kernels of the same traffic.
    """
    if not hardware.is_cuda:
        reason = "need an NVIDIA GPU"
    elif compile_mode != "off":
        reason = "a compiled block is fused by its compiler"
    elif hardware.library("triton") is None:
        reason = "Triton is not installed"
    elif dtype == "float32" and asked == "auto":
        reason = "float32 products leave nothing to be gained"
    elif asked != "off":
        return "triton", Decision(topic=KERNELS_TOPIC, asked=asked, chosen="triton")
    if asked == "triton" and profile.on_unsupported == "error":
        raise UnsupportedError(f"fused kernels {asked!r} cannot run here: {reason}; use 'off'")
    if asked == "off":
        return "off", Decision(topic=KERNELS_TOPIC, asked=asked, chosen="off")
    return "off", Decision(topic=KERNELS_TOPIC, asked=asked, chosen="off", reason=reason)


def storable_layers(profile: OptimizationProfile, stored: StoredLayers, merged_layers: Collection[str]) -> StoredLayers:
    """The layers that may stay as their files store them; a LoRA can only be merged into decoded weights.

    Raises `UnsupportedError` where a strict profile asks for them and cannot have them.
    """
    asked = profile.precision.storage
    if asked == "compute":
        return NOTHING_STORED
    kept = stored.without(merged_layers, "changed by a merged LoRA")
    if asked == "file" and profile.on_unsupported == "error" and (kept.left or not kept):
        reason = "; ".join(kept.left) or _NOTHING_ENCODED
        raise UnsupportedError(f"{STORAGE_TOPIC} 'file' cannot be kept to here: {reason}; use 'auto'")
    return kept


def decide_storage(
    asked: str, stored: StoredLayers, placement: Placement, decoded_bytes: int, kept_bytes: int
) -> tuple[Decision, ...]:
    """What the weights are kept in, and why; nothing to be said of files with plain weights.

    stored: the layers that may stay. decoded_bytes, kept_bytes: of an expert without and with them.
    """
    if not stored:
        reason = "; ".join(stored.left) or _NOTHING_ENCODED
        is_news = stored.left or asked == "file"
        return (Decision(topic=STORAGE_TOPIC, asked=asked, chosen="compute", reason=reason),) if is_news else ()
    if placement.storage == "compute":
        reason = f"decoded weights stay on the device; {stored} could be kept as stored"
        return (Decision(topic=STORAGE_TOPIC, asked=asked, chosen="compute", reason=reason),)
    sizes = f"{gib(kept_bytes)} an expert instead of {gib(decoded_bytes)}"
    reasons = (f"{stored}, decoded before each product; {sizes}", *stored.left)
    return (Decision(topic=STORAGE_TOPIC, asked=asked, chosen="file", reason="; ".join(reasons)),)


def compile_with(placement: Placement, decision: Decision) -> Decision:
    """The compile mode beside a placement: a CUDA graph repeats its addresses, and weights that move change them."""
    without_graphs = _WITHOUT_GRAPHS.get(decision.chosen)
    if placement.policy == "resident" or without_graphs is None:
        return decision
    return replace(decision, chosen=without_graphs, reason="CUDA graphs need weights that stay where they are")


def choose_vae_kernels(
    asked: str, dtype: str, hardware: Hardware, profile: OptimizationProfile
) -> tuple[str, Decision]:
    """What computes the norms, activations and sums between the VAE's convolutions, which are never compiled."""
    chosen, decision = choose_block_kernels(asked, "off", dtype, hardware, profile)
    return chosen, replace(decision, topic=VAE_KERNELS_TOPIC)


def choose_tf32(asked: str, hardware: Hardware) -> tuple[str, Decision]:
    """Whether float32 products on CUDA may use TF32."""
    if asked == "on" and not hardware.is_cuda:
        return "off", Decision(topic="TF32", asked=asked, chosen="off", reason="needs an NVIDIA GPU")
    return asked, Decision(topic="TF32", asked=asked, chosen=asked)
