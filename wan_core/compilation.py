"""Regional compilation: one graph for the block, shared by all blocks of both experts, in a mode that works.

Only `forward` is compiled, not the module call, so that hooks on blocks (pacing, offload) stay outside the graph.
Blocks of one shape differ only in their parameters, which are inputs of the graph, so the first block compiles and the
others reuse it. Prompts, seeds, timesteps and strengths of LoRAs are tensors of fixed shape: they change no graph.

Shapes: a graph per length and batch (`dynamic=False`), since kernels for one length are faster and a run has one or two
of them; up to `MAX_GRAPHS` are kept. A second process finds what the first one compiled on disk. What is left to it is
to import the compiler, some 1,600 modules, and to trace one block.

A compiler that fails is no reason to lose a run: the region falls back to the next mode of `FALLBACKS`, for good, and
keeps the reason. Only what a compiler raises is caught; a kernel that fails in a run stays an error.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from types import MappingProxyType

import torch
from torch import nn

from .hardware import cache_folder
from .importing import collector_paused
from .profiles import CompileMode
from .report import Rejection

FALLBACKS = MappingProxyType(
    {
        "max-autotune": "max-autotune-no-cudagraphs",
        "max-autotune-no-cudagraphs": "default",
        "reduce-overhead": "default",
        "default": "off",
    }
)
CUDA_GRAPH_MODES = frozenset({"reduce-overhead", "max-autotune"})
# Those that time no matrix products to choose among them, and so leave no large tensors to be collected.
QUICK_MODES = frozenset({"default", "reduce-overhead"})
# Sizes of video times batches of one and two; PyTorch's own limit of 8 would stop a session that tries out sizes.
MAX_GRAPHS = 64


class Region:
    """Blocks that are compiled together. `mode` is the one in use, `rejected` those that failed before it."""

    def __init__(self, mode: CompileMode, *, backend: str = "inductor", dynamic: bool | None = False) -> None:
        self.mode: CompileMode = mode
        self.rejected: list[Rejection] = []
        self._backend = backend
        self._dynamic = dynamic
        self._compiler_errors: tuple[type[Exception], ...] = ()
        self._started: set[CompileMode] = set()

    def add(self, blocks: Iterable[nn.Module]) -> None:
        """Compile the forward of every block, in place; the first call of each shape pays for it."""
        if self.mode == "off":
            return
        _keep_on_disk()
        _import_compiler(self._backend)
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        self._compiler_errors = (TorchDynamoException, FailOnRecompileLimitHit)
        for block in blocks:
            block.forward = partial(self._call, block.forward, {})

    def _call(self, plain: Callable, compiled: dict[CompileMode, Callable], *inputs: object) -> torch.Tensor:
        while (mode := self.mode) != "off":
            if mode not in compiled:
                compiled[mode] = self._compile(plain, mode)
            pause = collector_paused if mode in QUICK_MODES - self._started else nullcontext
            self._started.add(mode)
            try:
                with pause(), torch._dynamo.config.patch(cache_size_limit=MAX_GRAPHS):
                    x = compiled[mode](*inputs)
                # What a CUDA graph answers is overwritten when it runs again, for the next block or the other pass.
                return x.clone() if mode in CUDA_GRAPH_MODES and x.is_cuda else x
            except self._compiler_errors as error:
                self.rejected.append(Rejection(name=mode, reason=_reason(error)))
                self.mode = FALLBACKS[mode]
        return plain(*inputs)

    def _compile(self, plain: Callable, mode: CompileMode) -> Callable:
        options = {"mode": mode} if self._backend == "inductor" else {}
        return torch.compile(plain, fullgraph=True, dynamic=self._dynamic, backend=self._backend, **options)


def compile_blocks(blocks: Iterable[nn.Module], mode: CompileMode = "default") -> Region:
    """Compile the blocks of one model in a region of their own."""
    region = Region(mode)
    region.add(blocks)
    return region


def _keep_on_disk() -> None:
    """Let Inductor keep what it compiles where it survives a restart, unless the user has named a place."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))


def _import_compiler(backend: str) -> None:
    """It takes seconds, which who does not compile need not wait; Inductor the first call would import.

    Not in a thread: modules that import each other in circles break where two threads import them at a time.
    """
    with collector_paused():
        import_module("torch._dynamo")
        if backend == "inductor":
            import_module("torch._inductor.compile_fx")


def _reason(error: BaseException) -> str:
    """What went wrong inside the compiler: its own exceptions wrap that, with pages around it."""
    while isinstance(inner := getattr(error, "inner_exception", None), BaseException):
        error = inner
    first = next(filter(None, (line.strip() for line in str(error).splitlines())), "")
    return f"{type(error).__name__}: {first}"
