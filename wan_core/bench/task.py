"""What is measured, the same for everybody, and what a contestant must be able to do.

Three parts of a run are measured apart: a step with guidance (two forwards of one expert), the decode of a latent, and
the encoding of two prompts. Inputs are drawn on the host, so that they are the same on every device; weights are drawn
where they are needed (`random_weights`). Without real files nothing says which expert is which, and nothing has to.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from ..recipes import SampleRequest, VideoSize, recipe
from ..sampling.schedule import for_request
from ..specs import T2V_A14B_TRANSFORMER, UMT5_XXL, WAN21_VAE, TextEncoderSpec, TransformerSpec, VaeSpec
from .torch_settings import TorchSettings

Part = Literal["step", "vae", "text"]
PARTS: tuple[Part, ...] = get_args(Part)

# Prompts of this many tokens: about what the default negative prompt has.
PROMPT_TOKENS = 128
NUM_PROMPTS = 2

TINY_TRANSFORMER = TransformerSpec(dim=192, ffn_dim=384, num_heads=2, num_layers=2, in_dim=16, out_dim=16, text_dim=64)
TINY_VAE = VaeSpec(dim=8)
TINY_TEXT_ENCODER = TextEncoderSpec(dim=64, attention_dim=64, ffn_dim=128, num_heads=4, num_layers=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Dimensions of the models, size of the video, and where it is computed."""

    size: VideoSize
    device: str
    transformer: TransformerSpec = T2V_A14B_TRANSFORMER
    vae: VaeSpec = WAN21_VAE
    text: TextEncoderSpec = UMT5_XXL

    @property
    def request(self) -> SampleRequest:
        return SampleRequest(recipe=recipe("official"))

    @property
    def guidance(self) -> float:
        return self.request.recipe.guidance_high

    @property
    def timestep(self) -> float:
        """Of the first step, where the high-noise expert runs."""
        return for_request(self.request).timesteps[0]

    @property
    def latent_size(self) -> tuple[int, int, int]:
        return self.size.latent_size

    @property
    def num_tokens(self) -> int:
        return self.transformer.num_tokens(self.latent_size)

    @property
    def step_flops(self) -> int:
        """Both passes of a step."""
        return 2 * self.transformer.forward_flops(self.latent_size).total

    def latent(self) -> Tensor:
        """Pure noise (1, C, T, H, W), float32 on the device; for the transformer as for the VAE."""
        return self._draw(1, self.transformer.in_dim, *self.latent_size, seed=1)

    def contexts(self) -> tuple[Tensor, Tensor]:
        """Embeddings of a prompt and of its opposite, (tokens, D) each, not padded."""
        shape = (PROMPT_TOKENS, self.transformer.text_dim)
        return self._draw(*shape, seed=2), self._draw(*shape, seed=3)

    def padded_contexts(self) -> Tensor:
        """Both of them (2, text_len, D), padded with zeros."""
        padded = torch.zeros(2, self.transformer.text_len, self.transformer.text_dim, device=self.device)
        for row, context in zip(padded, self.contexts(), strict=True):
            row[: len(context)] = context
        return padded

    def _draw(self, *shape: int, seed: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a contestant says of itself. dtype: of its matrix products, by which its ceiling is chosen."""

    summary: str
    dtype: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A contestant with its weights on the device.

    run: the work, once; returns the guided velocity (1, C, T, H, W), the video (1, 3, F, H, W) in [-1, 1], or the
    embeddings (2, L, D). module: whose modules the breakdown is by. is_compiled: its modules are not called one by one.
    settings: switches of PyTorch that its code sets for itself, `None` where it sets none.
    """

    run: Callable[[], Tensor]
    module: nn.Module
    facts: Facts
    is_compiled: bool = False
    settings: TorchSettings | None = None


def dtype_name(dtype: torch.dtype) -> str:
    """For example "bfloat16"."""
    return str(dtype).removeprefix("torch.")


class Candidate(Protocol):
    """Somebody who can be measured.

    is_peer: the code is not ours, so its failure is a result and no defect. parts: those it takes part in.
    """

    name: str
    is_peer: bool
    parts: tuple[Part, ...]

    def prepare(self, part: Part, task: Task) -> Prepared:
        """Build it for one part and load random weights; `InputError` says why it cannot take part."""
