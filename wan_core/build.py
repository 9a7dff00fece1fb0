"""From a plan to bound objects: the only place where the order of optimizations lives.

Order: bind fused kernels and attention -> module on the meta device -> layers that keep the codes of their file ->
LoRAs beside its layers -> weights, and LoRAs merged into them (read when first needed, straight to their place) ->
compile -> residency. After this nobody holds the profile, and no forward asks which mode it is in.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from .adaptation import ExpertLoras, arrange
from .attention import verdict_store
from .attention.calibrate import calibrate, is_measurable
from .attention.interface import bind, import_ahead
from .checkpoint.codes import as_stored
from .checkpoint.experts import ExpertPair
from .checkpoint.load import ParameterSource
from .checkpoint.read import Checkpoint
from .checkpoint.text_encoder import TextEncoderSource
from .checkpoint.vae import VaeSource
from .choices import KERNELS_TOPIC, VAE_KERNELS_TOPIC
from .compilation import Region
from .component_plan import ComponentPlan
from .components import Experts, TextEncoder, Vae
from .errors import UnsupportedError
from .hardware import Hardware
from .kernels.bind import bind_kernels, bind_vae_kernels
from .kernels.block import BlockKernels
from .linear.adapter import is_of_adapter
from .lora_plan import lora_files
from .meta import without_numbers
from .models.t5 import Umt5Encoder
from .models.tokenizer import Tokenizer
from .models.transformer import WanTransformer, wants_float32
from .models.vae21 import WanVae
from .offload.residency import Residency, residency_for
from .offload.weights import Weights
from .plan import ExecutionPlan, ExpertsBinding
from .report import Decision, Rejection, Report
from .specs import Expert
from .storage import NOTHING_STORED, StoredLayers, keep_as_stored

MakeResidency = Callable[[Mapping[Expert, Weights]], Residency]


def measure_kernels(plan: ExecutionPlan, hardware: Hardware, report: Report) -> ExecutionPlan:
    """The plan with its attention kernels in the order in which they are fast here, to be built and run.

    What is not known of this machine yet is timed now, for some seconds once; the report says for how long.
    """
    choices = [each for each in (plan.binding.attention, plan.binding.cross_attention) if is_measurable(each, hardware)]
    if not choices:
        return plan
    known = verdict_store.read(hardware)
    if not all(known.covers(choice) for choice in choices):
        with report.phase("timing attention kernels"):
            known = calibrate(choices, hardware, known)
    return plan.with_calibration(known)


def build_experts(
    binding: ExpertsBinding,
    pair: ExpertPair,
    hardware: Hardware,
    *,
    make_residency: MakeResidency | None = None,
    previous: Experts | None = None,
) -> Experts:
    """Both experts as the binding says.

    make_residency: in place of the plan's own policy, where a host owns the memory. previous: the last build of these
    experts, which is left without weights: those that are the same but for LoRAs are taken over, others read anew.
    """
    strict = binding.on_unsupported == "error"
    # While a vendor's library is imported, Triton reads and loads its kernels, which leaves Python alone.
    import_ahead(binding.attention)
    forms = sorted({coding.dtype for _, coding in binding.stored.codings})
    kernels, kernel_problem = bind_kernels(binding.block_kernels, binding.device, forms)
    attend, attention_decision = bind(binding.attention, hardware, strict=strict)
    cross_attend, cross_decision = bind(binding.cross_attention, hardware, strict=strict)
    region = Region(binding.compile_mode)
    transformers, loras, weights = {}, {}, {}
    assert binding.lora_files == lora_files(pair.loras), "the binding is of a plan for these LoRAs"
    for expert in Expert:
        with without_numbers():
            transformers[expert] = WanTransformer(
                pair.spec,
                attend=attend,
                cross_attend=cross_attend,
                residual=getattr(torch, binding.residual),
                kernels=kernels,
            )
        loras[expert], weights[expert] = _weights_of(expert, transformers[expert], binding, pair, kernels)
        if previous and previous.weights_key == binding.weights_key:
            loras[expert].take_over(weights[expert], previous.loras[expert], previous.weights[expert])
        elif previous:
            # Whoever still holds the old build (compiled blocks refer to themselves) must not hold its memory.
            previous.weights[expert].drop()
        region.add(transformers[expert].blocks)
    return Experts(
        spec=pair.spec,
        transformers=transformers,
        loras=loras,
        weights=weights,
        residency=make_residency(weights) if make_residency else residency_for(binding.placement, weights),
        placement=binding.placement,
        decisions=(
            attention_decision,
            cross_decision,
            *_kernels_passed_over(KERNELS_TOPIC, binding.block_kernels, kernel_problem, strict=strict),
            *(each for expert in Expert for each in _decoded(str(expert), pair[expert], binding.dtype, binding.stored)),
        ),
        key=binding.key,
        weights_key=binding.weights_key,
        region=region,
    )


def build_text_encoder(plan: ComponentPlan, source: TextEncoderSource) -> TextEncoder:
    """The text encoder as the plan says; its vocabulary is read at once, its weights when a prompt needs them."""
    with without_numbers():
        encoder = Umt5Encoder(source.spec)
    dtype = getattr(torch, plan.dtype)
    fill = ParameterSource(typed(encoder, lambda name: dtype), source.checkpoint, plan.device).fill
    weights = Weights(encoder, fill, device=plan.device, dtype=dtype, streamed_blocks=plan.streamed_blocks)
    decisions = (*plan.decisions, *_decoded("text encoder", source.checkpoint, plan.dtype))
    tokenizer = Tokenizer.from_bytes(source.vocabulary(), str(source.tokenizer or source.checkpoint.label))
    return TextEncoder(weights, tokenizer, decisions)


def build_vae(plan: ComponentPlan, source: VaeSource) -> Vae:
    """The VAE as the plan says; its tiles are chosen per latent and passed to each decode."""
    kernels, problem = bind_vae_kernels(plan.kernels, plan.device)
    with without_numbers():
        vae = WanVae(source.spec, kernels)
    dtype = getattr(torch, plan.dtype)
    fill = ParameterSource(typed(vae, lambda name: dtype), source.checkpoint, plan.device).fill
    weights = Weights(vae, fill, device=plan.device, dtype=dtype)
    decisions = _kernels_passed_over(VAE_KERNELS_TOPIC, plan.kernels, problem, strict=plan.strict)
    return Vae(weights, (*plan.decisions, *decisions, *_decoded("VAE", source.checkpoint, plan.dtype)))


def _weights_of(
    expert: Expert, transformer: WanTransformer, binding: ExpertsBinding, pair: ExpertPair, kernels: BlockKernels
) -> tuple[ExpertLoras, Weights]:
    """One expert's weights, still in its file, and the LoRAs that stand beside them or are merged while they are read.

    The LoRAs come first: what they put beside the layers is among the parameters that the weights count.
    """
    dtype, stored = getattr(torch, binding.dtype), dict(binding.stored.codings)
    typed(transformer, lambda name: torch.float32 if wants_float32(name) else dtype)
    keep_as_stored(transformer, stored, dtype, kernels)
    loras = ExpertLoras(
        transformer,
        as_stored(pair[expert], stored),
        arrange(pair.loras, expert, binding.lora),
        tuple(choice.strength(expert) for choice in pair.loras),
        dtype,
        binding.device,
    )
    weights = Weights(
        transformer,
        loras.fill,
        device=binding.device,
        dtype=dtype,
        streamed_blocks=binding.placement.streamed_blocks,
        is_beside=is_of_adapter,
        may_read_in_thread=not loras.merges,
    )
    return loras, weights


def _kernels_passed_over(topic: str, asked: str, problem: str | None, *, strict: bool) -> tuple[Decision, ...]:
    """That the planned kernels do not work here was found out now."""
    if problem is None:
        return ()
    if strict:
        raise UnsupportedError(f"{topic} {asked!r} cannot run here: {problem}")
    return (Decision(topic=topic, asked=asked, chosen="off", rejected=(Rejection(name=asked, reason=problem),)),)


def _decoded(
    what: str, checkpoint: Checkpoint, dtype: str, kept: StoredLayers = NOTHING_STORED
) -> tuple[Decision, ...]:
    """What a file stores, where that is not what is computed with. kept: layers that are decoded for each product."""
    if not (stored := checkpoint.encoding.text):
        return ()
    chosen = f"{kept}, {dtype} in the others" if kept else dtype
    when = "decoded before each product, the others while loading" if kept else "decoded while loading"
    reason = f"{when}; {checkpoint.label} stores {stored}"
    return (Decision(topic=f"weights of the {what}", asked="auto", chosen=chosen, reason=reason),)


def typed(module: nn.Module, dtype_of: Callable[[str], torch.dtype]) -> nn.Module:
    """A module on the meta device, its parameters changed to the dtypes that they will have once loaded."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(requires_grad=False).data = parameter.data.to(dtype_of(name))
    return module
