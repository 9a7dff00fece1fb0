"""PyTorch's process-wide switches: what one contestant's code sets must not change another's numbers.

ComfyUI, for one, sets some of them when it is imported. They are read after that and set again for its turns alone.
"""

from dataclasses import dataclass
from typing import Any

import torch

_matmul, _cudnn, _cuda = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.cuda
# Older versions of PyTorch lack some of them.
_ATTRIBUTES: tuple[tuple[Any, str], ...] = tuple(
    (owner, name)
    for owner, name in (
        (_matmul, "allow_tf32"),
        (_matmul, "allow_fp16_reduced_precision_reduction"),
        (_matmul, "allow_bf16_reduced_precision_reduction"),
        (_matmul, "allow_fp16_accumulation"),
        (_cudnn, "enabled"),
        (_cudnn, "benchmark"),
        (_cudnn, "deterministic"),
        (_cudnn, "allow_tf32"),
    )
    if hasattr(owner, name)
)
_FUNCTIONS = tuple(
    (getattr(_cuda, read), getattr(_cuda, write))
    for read, write in (
        ("flash_sdp_enabled", "enable_flash_sdp"),
        ("mem_efficient_sdp_enabled", "enable_mem_efficient_sdp"),
        ("cudnn_sdp_enabled", "enable_cudnn_sdp"),
        ("math_sdp_enabled", "enable_math_sdp"),
        ("fp16_bf16_reduction_math_sdp_allowed", "allow_fp16_bf16_reduction_math_sdp"),
    )
    if hasattr(_cuda, read)
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
