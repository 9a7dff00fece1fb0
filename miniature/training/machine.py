"""What the machine under a training is, and what follows from it: the dtype of products, and what is compiled."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from einops import rearrange
from torch import nn

from miniature import architecture
from wan_core.compilation import compile_blocks
from wan_core.models.vae21 import WanVae
from wan_core.specs import TextEncoderSpec, TransformerSpec, VaeSpec

from .whole_clip import WholeClip, activated_planes

# Every width and resolution of the VAE is a graph of its own.
_MAX_GRAPHS = 128

Function = TypeVar("Function", bound=Callable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Dimensions of what is trained."""

    transformer: TransformerSpec = architecture.TRANSFORMER
    vae: VaeSpec = architecture.VAE
    text_encoder: TextEncoderSpec = architecture.TEXT_ENCODER


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A device. On a GPU products run in bfloat16, what is written in many small steps is compiled, and whole steps of
    training are recorded and replayed."""

    device: torch.device
    compiles: bool = False
    records: bool = False
    architecture: Architecture = field(default_factory=Architecture)

    @classmethod
    def detect(cls, *, compiles: bool = True, records: bool = True) -> "Machine":
        on_gpu = torch.cuda.is_available()
        machine = cls(
            device=torch.device("cuda" if on_gpu else "cpu"), compiles=compiles and on_gpu, records=records and on_gpu
        )
        # einops notes every type it meets in a table; one first met later would cost all graphs compiled before.
        for tensor in (torch.zeros(1), nn.Parameter(torch.zeros(1))):
            rearrange(tensor, "A -> A")
        if machine.is_gpu:
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
            torch._dynamo.config.recompile_limit = _MAX_GRAPHS
        return machine

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name() if self.is_gpu else "CPU"

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.is_gpu else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager:
        """bfloat16 for products and convolutions where the machine has it, parameters staying in float32."""
        return torch.autocast("cuda", torch.bfloat16) if self.is_gpu else contextlib.nullcontext()

    def compiled(self, function: Function) -> Function:
        return torch.compile(function, dynamic=False) if self.compiles else function

    def compile_blocks(self, blocks: nn.ModuleList) -> None:
        if self.compiles:
            compile_blocks(blocks)

    def whole_clip(self, vae: WanVae) -> WholeClip:
        return WholeClip(vae, self.compiled(activated_planes))
