"""What this machine is: a frozen description that plans are resolved against, and that tests can invent.

Nothing here chooses anything. Libraries are looked up without importing them; whether one really works is found out
when a backend is loaded.
"""

import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter

import torch

from .allocator import segments_grow
from .errors import UnsupportedError
from .host_ram import host_ram

OPTIONAL_LIBRARIES = (
    "triton",
    "flash-attn-4",
    "flash-attn-3",
    "flash-attn",
    "xformers",
    "sageattention",
    "comfy-kitchen",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One compute device and its host.

    device: torch device string. capability: CUDA compute capability, `None` without CUDA. Memory in bytes.
    tflops: measured matrix product rate by dtype name, in TFLOP/s (a moment of work at detection).
    host_bandwidth: measured bytes per second from page-locked host memory to the device, `None` where it was not.
    has_fixed_segments: whether PyTorch's allocator keeps memory in segments of fixed size, of which rests stay unused.
    """

    device: str
    name: str
    capability: tuple[int, int] | None
    total_memory: int
    free_memory: int
    host_memory: int
    host_free_memory: int
    torch_version: str
    cuda_version: str | None
    cudnn_version: str | None = None
    libraries: tuple[tuple[str, str], ...] = ()
    tflops: tuple[tuple[str, float], ...] = ()
    host_bandwidth: float | None = None
    has_fixed_segments: bool = False

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def has_bfloat16(self) -> bool:
        """Whether bfloat16 products run natively; CPUs are counted out, where float32 is as fast and safer."""
        return self.capability is not None and self.capability >= (8, 0)

    def rate(self, dtype: str) -> float | None:
        """Measured TFLOP/s of a matrix product in `dtype`, `None` where it was not measured."""
        return dict(self.tflops).get(dtype)

    def library(self, name: str) -> str | None:
        """Version of an optional library, `None` where it is not installed."""
        return dict(self.libraries).get(name)

    def environment(self) -> dict[str, str]:
        """What a report is worth little without."""
        versions = {
            "torch": self.torch_version,
            "CUDA": self.cuda_version or "none",
            "cuDNN": self.cudnn_version or "none",
            "Python": platform.python_version(),
        }
        return {"device": self.name, **versions, **dict(self.libraries)}

    @classmethod
    def detect(cls, device: str | None = None, *, free_memory: int | None = None, measure: bool = True) -> "Hardware":
        """Describe `device` (the first CUDA device, else the CPU). `free_memory` overrides what the driver says.

        measure: `False` leaves `tflops` empty, for a look at a device that is at work.

        Raises `UnsupportedError` for a device that this machine does not have.
        """
        device = _existing_device(device)
        host = host_ram()
        name, capability = _cpu_name(), None
        total, free = host.total, host.free
        if device.startswith("cuda"):
            name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
            free, total = torch.cuda.mem_get_info(device)
            # What our own allocator holds but does not use is free to us.
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            free = min(free, int(_share_of_process(device) * total) - torch.cuda.memory_allocated(device))
        return cls(
            device=device,
            name=name,
            capability=capability,
            total_memory=total,
            free_memory=free if free_memory is None else free_memory,
            host_memory=host.total,
            host_free_memory=host.free,
            torch_version=torch.__version__,
            cuda_version=torch.version.cuda,
            cudnn_version=_cudnn_version(),
            libraries=_installed_libraries(),
            tflops=_measured_rates(device) if measure else (),
            host_bandwidth=_measured_bandwidth(device) if measure and device.startswith("cuda") else None,
            has_fixed_segments=device.startswith("cuda") and _has_fixed_segments(),
        )


def cache_folder() -> Path:
    """Folder for what is worth keeping between runs; it need not exist yet.

    The environment variable WAN_VELOCITY_CACHE names it; else it is "wan-velocity" in the user's own cache folder.
    """
    if given := os.environ.get("WAN_VELOCITY_CACHE"):
        return Path(given)
    try:
        base = _user_cache(Path.home())
    except RuntimeError:  # a user without a home, as in some containers
        base = Path(tempfile.gettempdir())
    return base / "wan-velocity"


def _user_cache(home: Path) -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return given if given.is_absolute() else home / ".cache"  # the XDG specification ignores relative paths


def _existing_device(asked: str | None) -> str:
    """`asked` as "cpu" or "cuda:N", if this machine has it; `None` stands for the best there is."""
    present = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if asked is None:
        return present[min(1, len(present) - 1)]
    device = "cuda:0" if asked == "cuda" else asked
    if device not in present:
        raise UnsupportedError(f"device is {asked!r}, expected one that this machine has: {', '.join(present)}")
    return device


@cache
def _cpu_name() -> str:
    """Model name of the CPU where Linux tells it; `platform` knows only the architecture there."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def _installed_libraries() -> tuple[tuple[str, str], ...]:
    found = []
    for name in OPTIONAL_LIBRARIES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def _cudnn_version() -> str | None:
    """For example "91900"; it is replaced apart from torch by those who want its newer kernels."""
    try:
        version = torch.backends.cudnn.version() if torch.version.cuda else None
    except (
        RuntimeError
    ):  # another cuDNN was found than torch was built for; its kernels are refused when they are tried
        version = None
    return None if version is None else str(version)


@cache
def _measured_rates(device: str) -> tuple[tuple[str, float], ...]:
    """Matrix product rates by dtype: a few products, large enough for the device, some tenths of a second in all."""
    size, repeats = (8192, 5) if device.startswith("cuda") else (768, 3)
    dtypes = (torch.bfloat16, torch.float16, torch.float32) if device.startswith("cuda") else (torch.float32,)
    rates = []
    for dtype in dtypes:
        a = torch.randn(size, size, device=device, dtype=dtype)
        best = min(_seconds(lambda a=a: a @ a, device) for _ in range(repeats))
        rates.append((str(dtype).removeprefix("torch."), 2 * size**3 / best / 1e12))
    return tuple(rates)


def _share_of_process(device: str) -> float:
    """Share of the memory that this process may take, where somebody has limited it."""
    # Younger than the oldest torch that ComfyUI runs on.
    share = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    return 1.0 if share is None else share(device)


def _has_fixed_segments() -> bool:
    """PyTorch's own allocator without growing segments; CUDA's, which ComfyUI asks for, maps memory page by page."""
    if torch.cuda.get_allocator_backend() != "native":
        return False
    return sys.platform == "win32" or not segments_grow()


@cache
def _measured_bandwidth(device: str) -> float | None:
    """Bytes per second of copies from page-locked memory, some hundredths of a second of work."""
    try:
        waiting = torch.empty(64 << 20, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:  # the system locks no pages, as some containers
        return None
    arrived = torch.empty_like(waiting, device=device)
    return waiting.nbytes / min(_seconds(lambda: arrived.copy_(waiting, non_blocking=True), device) for _ in range(4))


def _seconds(work: Callable[[], object], device: str) -> float:
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    synchronize()
    start = perf_counter()
    work()
    synchronize()
    return perf_counter() - start
