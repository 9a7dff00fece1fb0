"""What the machine under a training is, and what follows from it: dtype, compilation, the form of convolutions."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

from miniature import architecture
from wan_core.compilation import compile_blocks
from wan_core.models.vae21 import WanVae
from wan_core.specs import TextEncoderSpec, TransformerSpec, VaeSpec

from .whole_clip import WholeClip, activate

# Every width and resolution of the VAE is a graph of its own.
_MAX_GRAPHS = 128
_TRIAL_SHAPE = (4, 3, 17, 128, 128)
_TRIALS = 3

Function = TypeVar("Function", bound=Callable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Dimensions of what is trained."""

    transformer: TransformerSpec = architecture.TRANSFORMER
    vae: VaeSpec = architecture.VAE
    text_encoder: TextEncoderSpec = architecture.TEXT_ENCODER


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A device; on a GPU everything runs in bfloat16 and compiled, on a CPU in float32 and as it is written."""

    device: torch.device
    architecture: Architecture = field(default_factory=Architecture)

    @classmethod
    def detect(cls) -> "Machine":
        machine = cls(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        # einops enters torch in its table at the first call; inside a compiled function that would invalidate the graph.
        rearrange(torch.zeros(1), "A -> A")
        if machine.is_gpu:
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
            torch._dynamo.config.recompile_limit = _MAX_GRAPHS
        return machine

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
        return torch.compile(function, dynamic=False) if self.is_gpu else function

    def compile_blocks(self, blocks: nn.ModuleList) -> None:
        if self.is_gpu:
            compile_blocks(blocks)

    def synchronize(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def whole_clip(self, vae: WanVae) -> WholeClip:
        """The VAE over whole clips, with its convolutions in the form that is fastest here."""
        planes = WholeClip(vae, "planes")
        if self.is_gpu:
            video = torch.rand(_TRIAL_SHAPE, device=self.device) * 2 - 1
            volume = replace(planes, form="volume")
            planes = min((planes, volume), key=lambda form: self._seconds(form, video))
        return replace(planes, activate=self.compiled(activate))

    def _seconds(self, clip: WholeClip, video: Tensor) -> float:
        """Time of a few trainings steps' worth of forward and backward, after a first that searches for algorithms."""
        start = 0.0
        for trial in range(_TRIALS + 1):
            if trial == 1:
                self.synchronize()
                start = time.perf_counter()
            with self.autocast():
                loss = clip.decode(clip.encode(video)[0]).square().mean()
            torch.autograd.grad(loss, list(clip.vae.parameters()), allow_unused=True)
        self.synchronize()
        return time.perf_counter() - start
