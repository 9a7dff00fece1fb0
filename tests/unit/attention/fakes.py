"""Stand-ins for kernels and for the libraries of vendors, on the CPU."""

from types import ModuleType

import torch
from torch import Tensor

# What each vendor's library is called: as a package, as a module, and the function that is called in it.
VENDORS = {
    "flash-attn-4": ("flash-attn-4", "flash_attn.cute", "flash_attn_func"),
    "flash-attn-3": ("flash-attn-3", "flash_attn_interface", "flash_attn_func"),
    "flash-attn-2": ("flash-attn", "flash_attn", "flash_attn_func"),
    "xformers": ("xformers", "xformers.ops", "memory_efficient_attention"),
}


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in the dtype of its input, in plain PyTorch."""
    scores = torch.einsum("blnd,bknd->bnlk", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bnlk,bknd->blnd", scores.softmax(-1), v)


def install(monkeypatch, vendor: str, function: object) -> None:
    """Put a library with this function where `load` looks for it; `monkeypatch` takes it away again."""
    _, module, name = VENDORS[vendor]
    parts = module.split(".")
    for depth in range(len(parts)):
        path = ".".join(parts[: depth + 1])
        monkeypatch.setitem(__import__("sys").modules, path, ModuleType(path))
    setattr(__import__("sys").modules[module], name, function)
