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
from .limits import HALF, Limits
from .opaque import opaque

# Above this the score matrix of "math" is hopeless, and no exception should have to say so.
MATH_SCORE_BYTES = 8 << 30


def _attend(q: Tensor, k: Tensor, v: Tensor, *, kernel: SDPBackend) -> Tensor:
    with sdpa_kernel(kernel):
        return _attend_any(q, k, v)


def _attend_any(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def _load(name: str, kernel: SDPBackend) -> Attend:
    return opaque(f"sdpa_{name}", partial(_attend, kernel=kernel))


def _rejects_flash(problem: AttentionProblem, hardware: Hardware) -> str | None:
    if not hardware.is_cuda:
        return None  # PyTorch has a CPU kernel of that name, for every dtype
    return Limits(oldest=(8, 0), head_dim=256).rejects(problem, hardware)


def _rejects_math(problem: AttentionProblem, hardware: Hardware) -> str | None:
    scores = problem.batch * problem.num_heads * problem.q_len * problem.kv_len * 4
    if scores > MATH_SCORE_BYTES:
        return f"its score matrix would take {scores / 2**30:.0f} GiB, over its limit of {MATH_SCORE_BYTES / 2**30:.0f}"
    return None


CUDNN = AttentionBackend(
    name="cudnn",
    quality="exact",
    rejects=Limits(oldest=(9, 0), head_dim=128).rejects,
    load=partial(_load, "cudnn", SDPBackend.CUDNN_ATTENTION),
)
FLASH = AttentionBackend(
    name="flash",
    quality="exact",
    rejects=_rejects_flash,
    load=partial(_load, "flash", SDPBackend.FLASH_ATTENTION),
)
EFFICIENT = AttentionBackend(
    name="efficient",
    quality="exact",
    rejects=Limits(dtypes=(*HALF, "float32")).rejects,
    load=partial(_load, "efficient", SDPBackend.EFFICIENT_ATTENTION),
)
MATH = AttentionBackend(
    name="math", quality="exact", rejects=_rejects_math, load=partial(_load, "math", SDPBackend.MATH)
)
# PyTorch's own choice: the fallback that refuses nothing, and the one that can be trained through.
ANY = AttentionBackend(name="sdpa", quality="exact", rejects=lambda problem, hardware: None, load=lambda: _attend_any)

BACKENDS = (CUDNN, FLASH, EFFICIENT, MATH, ANY)
