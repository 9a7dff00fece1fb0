"""Kernels as opaque operators: one node of a compiled graph each, whatever is inside.

Vendors' extensions and JIT compilers cannot be traced at all. PyTorch's own kernels are traced too well: Inductor's
attention patterns put flash where "math" was asked for, and a graph that enters `sdpa_kernel` is left out of the disk
cache of AOTAutograd (both seen with torch 2.13). An operator runs what its name says, compiled or not, and is cached.

Layout: q, k, v and the result are (B, L, N, D); the result is contiguous. There is no backward: experts are run here,
not trained.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..interface import Attend

NAMESPACE = "wan_velocity"


def opaque(name: str, kernel: Attend) -> Attend:
    """`kernel` as the operator `wan_velocity::name`, defined once in a process.

    A name that is defined already stands for the same kernel and is returned as it is: backends are loaded for every
    build, ComfyUI may import the pack twice under two names, and graphs that are compiled hold the operator.
    """
    namespace = getattr(torch.ops, NAMESPACE)
    if not hasattr(namespace, name):
        _define(name, kernel)
    return getattr(namespace, name).default


def _define(name: str, kernel: Attend) -> None:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Vendors launch on the current device, which need not be the one that the tensors are on.
        with vendor_errors(), torch.cuda.device_of(q):
            return kernel(q, k, v).contiguous()

    # Not `custom_op`, whose every kernel imports PyTorch's compiler when it is first called, to keep that away from it.
    qualified = f"{NAMESPACE}::{name}"
    torch.library.define(qualified, "(Tensor q, Tensor k, Tensor v) -> Tensor")
    torch.library.impl(qualified, "default", run)
    torch.library.register_fake(qualified, lambda q, k, v: q.new_empty(q.shape))


@contextmanager
def vendor_errors() -> Iterator[None]:
    """Turn whatever a vendor raises into an error that the choice of a kernel passes over with its reason.

    Assertions on their input, the errors of their compilers, an attribute that another version of a dependency lacks:
    none of them says that something is wrong here, and `RuntimeError` is what a failing kernel of PyTorch raises.
    """
    try:
        yield
    except (ImportError, OSError, RuntimeError):
        raise
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
