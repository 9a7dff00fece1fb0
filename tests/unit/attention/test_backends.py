"""Every attention backend: what it refuses on which machine, and that those which run here compute attention."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from wan_core.attention.backends import BACKEND_NAMES, BACKENDS
from wan_core.attention.interface import AttentionProblem, bind, survivors

REAL = AttentionProblem(batch=1, q_len=75_600, kv_len=75_600, num_heads=40, head_dim=128, dtype="bfloat16")
SMALL = AttentionProblem(batch=2, q_len=100, kv_len=100, num_heads=3, head_dim=16, dtype="float32")


def reasons(problem: AttentionProblem, hardware) -> dict[str, str | None]:
    return {backend.name: backend.rejects(problem, hardware) for backend in BACKENDS}


def accepted(problem: AttentionProblem, hardware) -> tuple[str, ...]:
    return survivors("attention", "auto", problem, hardware, BACKENDS).names


def test_the_last_backend_refuses_nothing(machine):
    for name in ("cpu", "2080ti", "a100", "h200"):
        for problem in (REAL, SMALL, replace(REAL, head_dim=512), replace(REAL, dtype="float16")):
            assert BACKENDS[-1].rejects(problem, machine(name)) is None
    assert len(set(BACKEND_NAMES)) == len(BACKENDS)
    assert "auto" not in BACKEND_NAMES


@pytest.mark.parametrize(
    ("name", "problem", "order"),
    [
        ("h200", REAL, ("cudnn", "flash", "efficient", "sdpa")),
        ("h200", replace(SMALL, dtype="bfloat16"), ("cudnn", "flash", "efficient", "math", "sdpa")),
        ("h200", SMALL, ("efficient", "math", "sdpa")),
        ("h200", replace(REAL, head_dim=256), ("flash", "efficient", "sdpa")),
        ("a100", REAL, ("flash", "efficient", "sdpa")),
        ("2080ti", replace(REAL, dtype="float16"), ("efficient", "sdpa")),
        ("2080ti", REAL, ("sdpa",)),
        ("cpu", SMALL, ("flash", "math", "sdpa")),
        ("cpu", REAL, ("flash", "sdpa")),
    ],
)
def test_order_of_preference_by_machine(machine, name, problem, order):
    assert tuple(
        n for n in accepted(problem, machine(name)) if n in {"cudnn", "flash", "efficient", "math", "sdpa"}
    ) == (order)


@pytest.mark.parametrize(
    ("name", "problem", "backend", "reason"),
    [
        ("cpu", SMALL, "cudnn", "needs an NVIDIA GPU"),
        ("cpu", SMALL, "efficient", "needs an NVIDIA GPU"),
        ("a100", REAL, "cudnn", "needs compute capability 9.0, this is 8.0"),
        ("2080ti", replace(REAL, dtype="float16"), "flash", "needs compute capability 8.0, this is 7.5"),
        ("2080ti", REAL, "efficient", "needs float16 or float32 below compute capability 8.0"),
        ("h200", SMALL, "cudnn", "needs bfloat16 or float16, the plan computes in float32"),
        ("h200", SMALL, "flash", "needs bfloat16 or float16, the plan computes in float32"),
        ("h200", replace(REAL, head_dim=256), "cudnn", "needs a head dimension up to 128, got 256"),
        ("h200", replace(REAL, head_dim=512), "flash", "needs a head dimension up to 256, got 512"),
        ("h200", REAL, "math", "its score matrix would take 852 GiB, over its limit of 8"),
    ],
)
def test_reasons_name_the_limit_and_what_was_got(machine, name, problem, backend, reason):
    assert reason in reasons(problem, machine(name))[backend]


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in the dtype of its input, in plain PyTorch."""
    scores = torch.einsum("blnd,bknd->bnlk", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bnlk,bknd->blnd", scores.softmax(-1), v)


def relative_error(got: Tensor, exact: Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kv_len", [100, 37])
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_backends_that_run_here_compute_attention(machine, backend, kv_len, dtype):
    hardware, problem = machine("cpu"), replace(SMALL, kv_len=kv_len, dtype=dtype)
    if (reason := backend.rejects(problem, hardware)) is not None:
        assert reason == "needs an NVIDIA GPU"
        return
    attend, decision = bind(survivors("attention", backend.name, problem, hardware, BACKENDS), hardware, strict=True)
    assert decision.chosen == backend.name
    torch.manual_seed(0)
    # The layout that the models hand over: heads split from a (B, L, N * D) product, not contiguous by head.
    q, k, v = (
        torch.randn(2, length, 3 * 16).to(getattr(torch, dtype)).unflatten(2, (3, 16))
        for length in (100, kv_len, kv_len)
    )
    exact = reference(q.double(), k.double(), v.double())
    plain = relative_error(reference(q, k, v), exact)
    got = attend(q, k, v)
    assert (got.shape, got.dtype) == (q.shape, q.dtype)
    assert relative_error(got, exact) <= 2 * plain


def test_bound_attention_compiles_into_one_graph(machine):
    choice = survivors("attention", "auto", SMALL, machine("cpu"), BACKENDS)
    attend, _ = bind(choice, machine("cpu"))
    q, k, v = SMALL.tensors("cpu")
    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), attend(q, k, v), rtol=0, atol=0)
