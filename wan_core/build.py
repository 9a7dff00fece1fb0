"""From a plan to bound objects: the only place where the order of optimizations lives.

Order: bind attention -> module on the meta device -> weights (read when first needed, straight to their place) ->
compile -> residency. After this nobody holds the profile, and no forward asks which mode it is in.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from .attention.interface import bind
from .checkpoint.experts import ExpertPair
from .checkpoint.load import load_module
from .checkpoint.read import Checkpoint
from .checkpoint.text_encoder import TextEncoderSource
from .checkpoint.vae import VaeSource
from .compilation import compile_blocks
from .components import Experts, TextEncoder, Vae
from .hardware import Hardware
from .models.t5 import Umt5Encoder
from .models.tokenizer import Tokenizer
from .models.transformer import WanTransformer, wants_float32
from .models.vae21 import WanVae
from .offload import KeepResident, OnBytes, Residency, SwapModules, Weights
from .plan import ComponentPlan, ExpertsBinding
from .specs import Expert

MakeResidency = Callable[[Mapping[Expert, Weights]], Residency]
_RESIDENCIES: Mapping[str, MakeResidency] = {"resident": KeepResident, "experts": SwapModules}


def build_experts(
    binding: ExpertsBinding, pair: ExpertPair, hardware: Hardware, *, make_residency: MakeResidency | None = None
) -> Experts:
    """Both experts as the binding says.

    make_residency: in place of the plan's own policy, where a host owns the memory.
    """
    strict = binding.on_unsupported == "error"
    attend, attention_decision = bind(binding.attention, hardware, strict=strict)
    cross_attend, cross_decision = bind(binding.cross_attention, hardware, strict=strict)
    dtype = getattr(torch, binding.dtype)
    transformers, weights = {}, {}

    def dtype_of(name: str) -> torch.dtype:
        return torch.float32 if wants_float32(name) else dtype

    for expert in Expert:
        with torch.device("meta"):
            transformer = WanTransformer(
                pair.spec,
                attend=attend,
                cross_attend=cross_attend,
                residual=getattr(torch, binding.residual),
            )
        weights[expert] = _weights(
            transformer,
            pair[expert],
            binding.device,
            lambda name: torch.float32 if wants_float32(name) else dtype,
            dtype,
        )
        if binding.compile_mode != "off":
            compile_blocks(transformer.blocks)
        transformers[expert] = transformer
    return Experts(
        spec=pair.spec,
        transformers=transformers,
        weights=weights,
        residency=(make_residency or _RESIDENCIES[binding.offload])(weights),
        decisions=(attention_decision, cross_decision),
        key=binding.key,
    )


def build_text_encoder(plan: ComponentPlan, source: TextEncoderSource) -> TextEncoder:
    """The text encoder as the plan says; its vocabulary is read at once, its weights when a prompt needs them."""
    with torch.device("meta"):
        encoder = Umt5Encoder(source.spec)
    dtype = getattr(torch, plan.dtype)
    weights = _weights(encoder, source.checkpoint, plan.device, lambda name: dtype, dtype)
    return TextEncoder(weights, Tokenizer.from_bytes(source.vocabulary()), plan.decisions)


def build_vae(plan: ComponentPlan, source: VaeSource) -> Vae:
    """The VAE as the plan says; its tiles are chosen per latent and passed to each decode."""
    with torch.device("meta"):
        vae = WanVae(source.spec)
    dtype = getattr(torch, plan.dtype)
    return Vae(_weights(vae, source.checkpoint, plan.device, lambda name: dtype, dtype), plan.decisions)


def _weights(
    module: nn.Module,
    checkpoint: Checkpoint,
    device: str,
    dtype_of: Callable[[str], torch.dtype],
    dtype: torch.dtype,
) -> Weights:
    def load(target: nn.Module, place: torch.device, on_bytes: OnBytes) -> None:
        load_module(target, checkpoint, dtype_of, place, on_bytes)

    nbytes = sum(p.numel() * dtype_of(name).itemsize for name, p in module.named_parameters())
    return Weights(module, load, device=device, dtype=dtype, nbytes=nbytes)
