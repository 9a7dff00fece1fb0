"""PyTorch's own kernels behind `scaled_dot_product_attention`, each forced by name.

Chosen one by one because PyTorch's default order is not the fastest everywhere: on one H200 at 75,600 tokens cuDNN
reaches 546-573 TFLOP/s and torch's flash 363 (2026-11-21, torch 2.11). "math" is plain matrix products and a softmax,
in float32 also where the input is narrower; it materialises the score matrix and is the yardstick on small problems.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...hardware import Hardware
from ..interface import Attend, AttentionBackend, AttentionProblem

# Above this the score matrix of "math" is hopeless, and no exception should have to say so.
MATH_SCORE_BYTES = 8 << 30


def _attend(q: Tensor, k: Tensor, v: Tensor, *, kernel: SDPBackend) -> Tensor:
    with sdpa_kernel(kernel):
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def _attend_any(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def _load(kernel: SDPBackend) -> Attend:
    return partial(_attend, kernel=kernel)


def _needs_cuda_half(problem: AttentionProblem, hardware: Hardware, least: tuple[int, int]) -> str | None:
    if not hardware.is_cuda:
        return "needs an NVIDIA GPU"
    if hardware.capability < least:
        return (
            f"needs compute capability {least[0]}.{least[1]}, this is {hardware.capability[0]}.{hardware.capability[1]}"
        )
    if problem.dtype == "float32":
        return "needs bfloat16 or float16, the plan computes in float32"
    return None


def _rejects_cudnn(problem: AttentionProblem, hardware: Hardware) -> str | None:
    if reason := _needs_cuda_half(problem, hardware, (9, 0)):
        return reason
    return None if problem.head_dim <= 128 else f"needs a head dimension up to 128, got {problem.head_dim}"


def _rejects_flash(problem: AttentionProblem, hardware: Hardware) -> str | None:
    if not hardware.is_cuda:
        return None  # PyTorch has a CPU kernel of that name, for every dtype
    if reason := _needs_cuda_half(problem, hardware, (8, 0)):
        return reason
    return None if problem.head_dim <= 256 else f"needs a head dimension up to 256, got {problem.head_dim}"


def _rejects_efficient(problem: AttentionProblem, hardware: Hardware) -> str | None:
    if not hardware.is_cuda:
        return "needs an NVIDIA GPU"
    if problem.dtype == "bfloat16" and not hardware.has_bfloat16:
        return "needs float16 or float32 below compute capability 8.0, the plan computes in bfloat16"
    return None


def _rejects_math(problem: AttentionProblem, hardware: Hardware) -> str | None:
    scores = problem.batch * problem.num_heads * problem.q_len * problem.kv_len * 4
    if scores > MATH_SCORE_BYTES:
        return f"its score matrix would take {scores / 2**30:.0f} GiB, over its limit of {MATH_SCORE_BYTES / 2**30:.0f}"
    return None


BACKENDS = (
    AttentionBackend(
        name="cudnn", quality="exact", rejects=_rejects_cudnn, load=partial(_load, SDPBackend.CUDNN_ATTENTION)
    ),
    AttentionBackend(
        name="flash", quality="exact", rejects=_rejects_flash, load=partial(_load, SDPBackend.FLASH_ATTENTION)
    ),
    AttentionBackend(
        name="efficient",
        quality="exact",
        rejects=_rejects_efficient,
        load=partial(_load, SDPBackend.EFFICIENT_ATTENTION),
    ),
    AttentionBackend(name="math", quality="exact", rejects=_rejects_math, load=partial(_load, SDPBackend.MATH)),
    # PyTorch's own choice: the fallback that refuses nothing.
    AttentionBackend(name="sdpa", quality="exact", rejects=lambda problem, hardware: None, load=lambda: _attend_any),
)
