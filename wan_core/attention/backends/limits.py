"""What a kernel can take, as data, and its refusal in words: what is needed and what was found."""

from dataclasses import dataclass

from ...hardware import Hardware
from ...profiles import DtypeName
from ..interface import AttentionProblem

HALF: tuple[DtypeName, ...] = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a CUDA kernel.

    oldest, newest: compute capabilities, both included. library: the package that holds the kernel, `None` where torch
    does. head_dim: the largest that is taken; every one must be a multiple of `head_dim_step`.
    """

    head_dim: int | None = None
    head_dim_step: int = 1
    dtypes: tuple[DtypeName, ...] = HALF
    oldest: tuple[int, int] = (0, 0)
    newest: tuple[int, int] | None = None
    library: str | None = None

    def rejects(self, problem: AttentionProblem, hardware: Hardware) -> str | None:
        """`None`, or the first reason against it; that a library is missing is said only where it would be of use."""
        if not hardware.is_cuda:
            return "needs an NVIDIA GPU"
        if self.library is None or hardware.library(self.library) is not None:
            missing = None
        else:
            missing = f"the library {self.library} is not installed"
        return self._card(hardware) or self._dtype(problem, hardware) or self._head_dim(problem) or missing

    def _card(self, hardware: Hardware) -> str | None:
        found = "{}.{}".format(*hardware.capability)
        if hardware.capability < self.oldest:
            return "needs compute capability {}.{}, this is {}".format(*self.oldest, found)
        if self.newest is not None and hardware.capability > self.newest:
            return "is made for compute capabilities up to {}.{}, this is {}".format(*self.newest, found)
        return None

    def _dtype(self, problem: AttentionProblem, hardware: Hardware) -> str | None:
        if problem.dtype not in self.dtypes:
            return f"needs {' or '.join(self.dtypes)}, the plan computes in {problem.dtype}"
        if problem.dtype == "bfloat16" and not hardware.has_bfloat16:
            others = " or ".join(dtype for dtype in self.dtypes if dtype != "bfloat16")
            return f"needs {others} below compute capability 8.0, the plan computes in bfloat16"
        return None

    def _head_dim(self, problem: AttentionProblem) -> str | None:
        if self.head_dim is not None and problem.head_dim > self.head_dim:
            return f"needs a head dimension up to {self.head_dim}, got {problem.head_dim}"
        if problem.head_dim % self.head_dim_step:
            return f"needs a head dimension in multiples of {self.head_dim_step}, got {problem.head_dim}"
        return None
