"""PyTorch's process-wide switches: what one contestant's code sets must not change another's numbers.

ComfyUI, for one, sets some of them when it is imported. They are read after that and set again for its turns alone.
"""

from dataclasses import dataclass
from typing import Any

import torch

_ATTRIBUTES: tuple[tuple[Any, str], ...] = (
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    (torch.backends.cuda.matmul, "allow_fp16_accumulation"),
    (torch.backends.cudnn, "enabled"),
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "deterministic"),
    (torch.backends.cudnn, "allow_tf32"),
)
_FUNCTIONS = (
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (
        torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed,
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp,
    ),
)


@dataclass(frozen=True, slots=True)
class TorchSettings:
    """The switches as they stood at one moment."""

    attributes: tuple[bool, ...]
    functions: tuple[bool, ...]

    @classmethod
    def current(cls) -> "TorchSettings":
        return cls(
            attributes=tuple(getattr(owner, name) for owner, name in _ATTRIBUTES),
            functions=tuple(read() for read, _ in _FUNCTIONS),
        )

    def apply(self) -> None:
        for (owner, name), value in zip(_ATTRIBUTES, self.attributes, strict=True):
            setattr(owner, name, value)
        for (_, write), value in zip(_FUNCTIONS, self.functions, strict=True):
            write(value)
