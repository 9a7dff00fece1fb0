"""One attention problem of real size with random numbers: how long a kernel takes on it, and how wrong it is.

The keys are always all there. The queries may be fewer than the problem's, because a kernel works on them in blocks of
about a hundred and takes its time block by block; the last block stays as ragged as the real one.
"""

from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from .interface import Attend, AttentionProblem

# Rows and heads whose exact answer is computed: the first, the last, and evenly between.
CHECKED_ROWS = 64
CHECKED_HEADS = 4
BLOCK = 128
# A shorter call is repeated until launching it weighs nothing.
LEAST_SECONDS = 5e-3
MOST_REPEATS = 50


class Probe:
    """Random q, k, v (1, L, N, D) on a device, and the exact answer for some of their rows and heads."""

    def __init__(self, problem: AttentionProblem, device: str, *, num_queries: int | None = None) -> None:
        """Draw the tensors; `num_queries` is at most the problem's own number, which it is by default."""
        generator = torch.Generator(device=device).manual_seed(0)
        dtype = getattr(torch, problem.dtype)

        def draw(length: int) -> Tensor:
            shape = (1, length, problem.num_heads, problem.head_dim)
            return torch.randn(shape, generator=generator, device=device, dtype=dtype)

        self._q, self._k, self._v = draw(num_queries or problem.q_len), draw(problem.kv_len), draw(problem.kv_len)
        self._rows = _evenly(self._q.shape[1], CHECKED_ROWS, device)
        self._heads = _evenly(problem.num_heads, CHECKED_HEADS, device)
        q, k, v = self._checked(self._q)[:, self._rows], self._checked(self._k), self._checked(self._v)
        # One head at a time: in float64 the keys of all of them would take more room than the problem itself.
        heads = zip(q.unbind(2), k.unbind(2), v.unbind(2), strict=True)
        self._exact = torch.stack([_exact_attention(*head) for head in heads], dim=2)
        own = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
        self.own_error = self._relative(own)  # what PyTorch itself loses in this dtype

    @property
    def flops(self) -> int:
        """Floating point operations of one call: the two matrix products."""
        _, num_queries, num_heads, head_dim = self._q.shape
        return 4 * num_queries * self._k.shape[1] * num_heads * head_dim

    def error(self, attend: Attend) -> float:
        """Relative Frobenius error of one call on the checked rows; also compiles and warms up what has to be.

        Raises `RuntimeError` for a result of the wrong shape.
        """
        out = attend(self._q, self._k, self._v)
        if out.shape != self._q.shape:
            raise RuntimeError(f"gave shape {tuple(out.shape)} for queries {tuple(self._q.shape)}")
        return self._relative(self._checked(out)[:, self._rows])

    def seconds(self, attend: Attend) -> float:
        """Device seconds of one call; a short one is repeated and averaged. The kernel must be warm."""
        once = self._timed(attend, 1)
        repeats = min(int(LEAST_SECONDS / once), MOST_REPEATS)
        return once if repeats <= 1 else self._timed(attend, repeats)

    def _timed(self, attend: Attend, repeats: int) -> float:
        self._wait()
        start = perf_counter()
        for _ in range(repeats):
            attend(self._q, self._k, self._v)
        self._wait()
        return (perf_counter() - start) / repeats

    def _wait(self) -> None:
        if self._q.is_cuda:
            torch.cuda.synchronize(self._q.device)

    def _checked(self, tensor: Tensor) -> Tensor:
        return tensor[:, :, self._heads]

    def _relative(self, out: Tensor) -> float:
        return float((out.double() - self._exact).norm() / self._exact.norm())


def queries_within(problem: AttentionProblem, flops: float) -> int:
    """How many queries of the problem cost about `flops`: all, or whole blocks and the ragged one that ends them."""
    num_queries = int(flops / (4 * problem.kv_len * problem.num_heads * problem.head_dim))
    whole = max(num_queries // BLOCK, 1) * BLOCK
    return min(problem.q_len, whole + problem.q_len % BLOCK)


def probe_bytes(problem: AttentionProblem, num_queries: int) -> int:
    """Device memory of a probe and of one kernel's result."""
    element = getattr(torch, problem.dtype).itemsize
    per_token = problem.num_heads * problem.head_dim
    tensors = element * per_token * 2 * (num_queries + problem.kv_len)
    heads = min(CHECKED_HEADS, problem.num_heads)
    exact = 8 * problem.kv_len * (2 * problem.head_dim + 3 * CHECKED_ROWS)
    return tensors + element * heads * problem.kv_len * 2 * problem.head_dim + exact


def _exact_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one head, q, k, v (B, L, D), in float64."""
    scores = q.double() @ k.double().transpose(1, 2) * q.shape[-1] ** -0.5
    return scores.softmax(-1) @ v.double()


def _evenly(length: int, count: int, device: str) -> Tensor:
    return torch.linspace(0, length - 1, min(count, length), device=device).round().long()
