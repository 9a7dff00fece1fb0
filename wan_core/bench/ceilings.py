"""What this device can do at most, measured in the run that its contestants are measured in.

Memory: a copy, bytes read and written. Products: 8192 x 8192 x 8192, two operations per multiply-add; short enough that
no power limit is reached, so a share of it that falls in a long run is partly the card's own doing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from ..hardware import Hardware
from .clock import timed
from .task import dtype_name

FLOAT8 = "float8_e4m3fn"
_REPEATS, _WARM_UPS = 10, 3
_COPY_BYTES = {"cuda": 4 << 30, "cpu": 64 << 20}
_SIZE = {"cuda": 8192, "cpu": 768}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """copy: bytes per second. products: operations per second by dtype. missing: why a dtype has none."""

    copy: float
    products: dict[str, float]
    missing: dict[str, str]

    def __str__(self) -> str:
        rates = [f"{dtype} products {rate / 1e12:.3g} TFLOP/s" for dtype, rate in self.products.items()]
        gaps = [f"no {dtype}: {reason}" for dtype, reason in self.missing.items()]
        return ", ".join((f"copy {self.copy / 1e12:.3g} TB/s", *rates, *gaps))


def measure_ceilings(hardware: Hardware) -> Ceilings:
    """Some tenths of a second of work."""
    device = hardware.device
    dtypes = (torch.bfloat16, torch.float32) if hardware.is_cuda else (torch.float32,)
    with torch.inference_mode():
        products = {dtype_name(dtype): _product_rate(device, dtype) for dtype in dtypes}
        reason = _no_float8(hardware)
        if reason is None:
            products[FLOAT8] = _float8_rate(device)
        return Ceilings(
            copy=_copy_rate(hardware), products=products, missing={} if reason is None else {FLOAT8: reason}
        )


def _copy_rate(hardware: Hardware) -> float:
    size = min(_COPY_BYTES[_kind(hardware.device)], hardware.free_memory // 4)
    source = torch.empty(size, dtype=torch.uint8, device=hardware.device).random_()
    target = torch.empty_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), hardware.device)


def _product_rate(device: str, dtype: torch.dtype) -> float:
    a, b = _factors(device, dtype)
    return 2 * len(a) ** 3 / _seconds(lambda: a @ b, device)


def _float8_rate(device: str) -> float:
    a, b = (factor.to(torch.float8_e4m3fn) for factor in _factors(device, torch.bfloat16))
    one = torch.ones((), device=device)

    def product() -> Tensor:
        return torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)

    return 2 * len(a) ** 3 / _seconds(product, device)


def _factors(device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    size = _SIZE[_kind(device)]
    return torch.randn(size, size, device=device, dtype=dtype), torch.randn(size, size, device=device, dtype=dtype)


def _no_float8(hardware: Hardware) -> str | None:
    if hardware.capability is None:
        return "needs an NVIDIA GPU"
    if hardware.capability < (8, 9):
        return "needs compute capability 8.9, this is {}.{}".format(*hardware.capability)
    return None


def _seconds(run: Callable[[], Tensor], device: str) -> float:
    for _ in range(_WARM_UPS):
        run()
    return median(timed(run, device)[0] for _ in range(_REPEATS))


def _kind(device: str) -> str:
    return device.partition(":")[0]
