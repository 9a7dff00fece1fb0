"""Which functions do the blocks' work between their products, and whether they really run here.

`choose_work` is the pure half. `load_work` imports Triton and tries the kernels once on a few tokens: a Triton without
a compiler to lean on is installed and useless, and that is found out before a run rather than in it.
"""

import torch

from ..attention.backends.opaque import vendor_errors
from ..attention.interface import first_line
from ..hardware import Hardware
from ..kernels.block import TORCH, BlockKernels
from ..report import Decision, Rejection
from .facts import NativeModel

TRITON, PLAIN, NATIVE = "fused kernels", "plain functions", "as it is"

_EPS = 1e-6
# What the kernels may differ from their definition by, in float32 on a few tokens.
_TOLERANCE = 1e-5


def choose_work(model: NativeModel, hardware: Hardware) -> Decision:
    """Norms, modulation, rotation and residual sums of the blocks: in our functions, or as they are."""

    def decide(chosen: str, reason: str, rejected: tuple[Rejection, ...] = ()) -> Decision:
        return Decision(
            topic=f"block work of {model.name}", asked="auto", chosen=chosen, reason=reason, rejected=rejected
        )

    if model.compiled_whole:
        return decide(NATIVE, "another node compiles the whole model")
    if len(model.left) >= 2 * model.num_blocks:
        return decide(NATIVE, "no block is as we know it", model.left[:1])
    if not hardware.is_cuda:
        return decide(PLAIN, f"{model.num_blocks} blocks; on a CPU there is nothing to fuse", model.left)
    if hardware.library("triton") is None:
        # In plain PyTorch our functions would read and write more than what they replace.
        return decide(NATIVE, "Triton is not installed")
    return decide(TRITON, f"{model.num_blocks} blocks, one Triton kernel for each stretch", model.left)


def load_work(decision: Decision, device: torch.device) -> tuple[BlockKernels | None, Decision]:
    """The functions of a choice, tried once on the device, and what was decided in the end; `None` is as it is."""
    if decision.chosen != TRITON:
        return (TORCH if decision.chosen == PLAIN else None), decision
    try:
        with vendor_errors():
            from ..kernels.triton_block import TRITON as FUSED

            _try(FUSED, device)
    except (ImportError, OSError, RuntimeError) as error:
        failed = Rejection(name=TRITON, reason=f"{type(error).__name__}: {first_line(error)}")
        return None, Decision(topic=decision.topic, asked="auto", chosen=NATIVE, rejected=(failed, *decision.rejected))
    return FUSED, decision


def _try(kernels: BlockKernels, device: torch.device) -> None:
    """Raise `RuntimeError` where the kernels do not compute what `TORCH` does."""
    generator = torch.Generator().manual_seed(0)
    x, y, scale, shift, gate = torch.randn(5, 1, 4, 96, generator=generator).to(device)
    scale, shift, gate = scale[:, :1], shift[:, :1], gate[:, :1]
    tables = tuple(torch.randn(2, 4, 1, 24, generator=generator).to(device))
    found, expected = (
        (
            each.norm(x, scale, shift, _EPS, x.dtype),
            each.add(x, y, gate),
            *each.add_norm(x, y, None, scale, shift, _EPS, x.dtype),
            each.rms_norm(x, y[0, 0], 2, tables, _EPS, x.dtype),
        )
        for each in (kernels, TORCH)
    )
    for ours, theirs in zip(found, expected, strict=True):
        error = float((ours - theirs).norm() / theirs.norm())
        if not error <= _TOLERANCE:
            raise RuntimeError(f"gave a relative error of {error:.1e} on a few tokens")
