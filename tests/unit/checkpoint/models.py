"""Models of the format tests: small in number, wide enough for blocks of 256, and what they compute."""

from pathlib import Path

import torch
from torch import Tensor

from tests.unit.checkpoint.loading import load
from wan_core.attention.backends import BACKENDS
from wan_core.checkpoint.inventory import Shapes, text_encoder_shapes, transformer_shapes, vae_shapes
from wan_core.checkpoint.read import Checkpoint, open_checkpoint
from wan_core.models.t5 import Umt5Encoder
from wan_core.models.transformer import WanTransformer
from wan_core.models.vae21 import WanVae
from wan_core.specs import TextEncoderSpec, TransformerSpec, VaeSpec

TRANSFORMER = TransformerSpec(
    dim=256, ffn_dim=512, num_heads=2, num_layers=2, in_dim=16, out_dim=16, text_dim=256, freq_dim=256
)
TEXT_ENCODER = TextEncoderSpec(vocab_size=300, dim=256, attention_dim=256, ffn_dim=512, num_heads=4, num_layers=2)
VAE = VaeSpec(dim=4)


def draw(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the sizes that training gives: nothing at its neutral value, activations of order one."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if "norm" in name or name.endswith("gamma"):
            weights[name] = 1 + 0.3 * noise if name.endswith(("weight", "gamma")) else 0.2 * noise
        elif "modulation" in name:
            weights[name] = 0.5 * noise
        elif len(shape) == 1:
            weights[name] = 0.2 * noise
        else:
            weights[name] = noise * noise[0].numel() ** -0.5
    return weights


def draw_transformer(seed: int = 0, spec: TransformerSpec = TRANSFORMER) -> dict[str, Tensor]:
    return draw(transformer_shapes(spec), seed)


def draw_text_encoder(seed: int = 0) -> dict[str, Tensor]:
    weights = draw(text_encoder_shapes(TEXT_ENCODER), seed)
    # T5 does not divide its scores by the root of a head's width; its queries are trained to be small instead.
    head_dim = TEXT_ENCODER.attention_dim // TEXT_ENCODER.num_heads
    return {name: tensor * head_dim**-0.5 if ".q." in name else tensor for name, tensor in weights.items()}


def draw_vae(seed: int = 0) -> dict[str, Tensor]:
    return draw(vae_shapes(VAE), seed)


def loaded_transformer(source: Path | Checkpoint, spec: TransformerSpec = TRANSFORMER) -> WanTransformer:
    attend = next(backend for backend in BACKENDS if backend.name == "sdpa").load()
    with torch.device("meta"):
        module = WanTransformer(spec, attend=attend, cross_attend=attend)
    return _loaded(module, source)


def loaded_text_encoder(source: Path | Checkpoint) -> Umt5Encoder:
    with torch.device("meta"):
        module = Umt5Encoder(TEXT_ENCODER)
    return _loaded(module, source)


def loaded_vae(source: Path | Checkpoint) -> WanVae:
    with torch.device("meta"):
        module = WanVae(VAE)
    return _loaded(module, source)


def _loaded(module: torch.nn.Module, source: Path | Checkpoint) -> torch.nn.Module:
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    load(module, checkpoint, lambda name: torch.float32)
    return module.eval()


@torch.inference_mode()
def velocity(model: WanTransformer) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    latent = torch.randn(1, model.spec.in_dim, 2, 4, 6, generator=generator)
    context = torch.randn(1, 5, model.spec.text_dim, generator=generator)
    return model(latent, torch.tensor([875.0]), model.prepare_text(context))


@torch.inference_mode()
def embedding(model: Umt5Encoder) -> Tensor:
    ids = torch.randint(0, model.spec.vocab_size, (1, 9), generator=torch.Generator().manual_seed(7))
    return model(ids, torch.ones_like(ids, dtype=torch.bool))


@torch.inference_mode()
def decoded(model: WanVae) -> Tensor:
    return model.decode(torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(7)))


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())
