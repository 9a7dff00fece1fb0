"""Stand-ins for kernels and for the libraries of vendors, on the CPU."""

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from wan_core.attention.interface import Attend, AttentionBackend
from wan_core.profiles import Quality

# What each vendor's library is called: as a package, as a module, and the function that is called in it.
VENDORS = {
    "flash-attn-4": ("flash-attn-4", "flash_attn.cute", "flash_attn_func"),
    "flash-attn-4-wide": ("flash-attn-4", "flash_attn.cute.interface", "_flash_attn_fwd"),
    "flash-attn-3": ("flash-attn-3", "flash_attn_interface", "flash_attn_func"),
    "flash-attn-2": ("flash-attn", "flash_attn", "flash_attn_func"),
    "xformers": ("xformers", "xformers.ops", "memory_efficient_attention"),
}


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in the dtype of its input, in plain PyTorch."""
    scores = torch.einsum("blnd,bknd->bnlk", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bnlk,bknd->blnd", scores.softmax(-1), v)


def backend(
    name: str, run: Attend = attend, *, quality: Quality = "exact", load: Callable[[], Attend] | None = None
) -> AttentionBackend:
    """A backend that accepts everything."""
    return AttentionBackend(
        name=name, quality=quality, rejects=lambda problem, hardware: None, load=load or (lambda: run)
    )


def failing(error: Exception) -> Callable[..., object]:
    def fail(*arguments: object) -> object:
        raise error

    return fail


def install(monkeypatch: pytest.MonkeyPatch, vendor: str, function: object) -> None:
    """Put a library with this function where the backend looks for it, until the end of the test."""
    _, path, name = VENDORS[vendor]
    for depth in range(1, path.count(".") + 2):
        package = ".".join(path.split(".")[:depth])
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    setattr(sys.modules[path], name, function)


def install_broken(monkeypatch: pytest.MonkeyPatch, vendor: str, error: Exception) -> None:
    """Make the import of a vendor's function raise `error`, as an extension built for another torch does."""
    install(monkeypatch, vendor, None)
    _, path, name = VENDORS[vendor]

    class Broken(ModuleType):
        def __getattr__(self, wanted: str) -> object:
            raise error if wanted == name else AttributeError(wanted)

    monkeypatch.setitem(sys.modules, path, Broken(path))
