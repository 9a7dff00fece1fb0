"""Every attention kernel that this GPU can run, against float64: lengths that end in the middle of a block, and text.

The bound is relative to what PyTorch's own kernel loses in the same dtype on the same inputs.
"""

from dataclasses import replace

import pytest
import torch

from wan_core.attention.backends import BACKENDS, sdpa
from wan_core.attention.calibrate import calibrate, is_measurable
from wan_core.attention.interface import Attend, AttentionBackend, AttentionProblem, bind, survivors
from wan_core.attention.probe import Probe
from wan_core.attention.verdict_store import read
from wan_core.attention.verdicts import NOTHING_MEASURED
from wan_core.hardware import Hardware

pytestmark = pytest.mark.gpu
each_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)

# Queries and keys: whole blocks, ragged ones, a single row over a block, fewer than a block, and text as keys.
LENGTHS = [(1024, 1024), (1000, 1000), (1025, 1025), (4097, 4097), (77, 77), (1000, 512), (4097, 512), (32_760, 512)]
WAN = AttentionProblem(batch=1, q_len=32_760, kv_len=32_760, num_heads=40, head_dim=128, dtype="bfloat16")


@pytest.fixture(scope="module")
def gpu() -> Hardware:
    return Hardware.detect("cuda:0")


def bound(backend: AttentionBackend, problem: AttentionProblem, hardware: Hardware) -> Attend:
    """The kernel, or a skip with the reason why this machine has it not. A kernel that is there must work."""
    if (reason := backend.rejects(problem, hardware)) is not None:
        pytest.skip(reason)
    if backend.quality != "exact":
        pytest.skip(f"{backend.quality}: has a bound of its own")
    attend, decision = bind(survivors("attention", backend.name, problem, hardware, (backend, sdpa.ANY)), hardware)
    assert not decision.degraded, str(decision)
    return attend


@each_backend
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
def test_it_loses_at_most_twice_what_pytorch_loses(backend, q_len, kv_len, dtype, gpu):
    problem = replace(WAN, q_len=q_len, kv_len=kv_len, num_heads=4, dtype=dtype)
    attend = bound(backend, problem, gpu)
    with torch.inference_mode():
        probe = Probe(problem, gpu.device)
        assert probe.error(attend) <= max(2 * probe.own_error, 1e-5)


@each_backend
@pytest.mark.parametrize("head_dim", [64, 96])
def test_other_head_dimensions(backend, head_dim, gpu):
    problem = replace(WAN, q_len=1000, kv_len=1000, num_heads=4, head_dim=head_dim)
    attend = bound(backend, problem, gpu)
    with torch.inference_mode():
        probe = Probe(problem, gpu.device)
        assert probe.error(attend) <= 2 * probe.own_error


@each_backend
@pytest.mark.parametrize("kv_len", [32_760, 512])
def test_a_whole_video_at_480p(backend, kv_len, gpu):
    problem = replace(WAN, kv_len=kv_len)
    attend = bound(backend, problem, gpu)
    with torch.inference_mode():
        probe = Probe(problem, gpu.device)
        assert probe.error(attend) <= 2 * probe.own_error


@each_backend
def test_a_batch_is_computed_as_its_parts(backend, gpu):
    problem = replace(WAN, q_len=1000, kv_len=1000, num_heads=4, batch=2)
    attend = bound(backend, problem, gpu)
    generator = torch.Generator(gpu.device).manual_seed(0)
    q, k, v = torch.randn(3, 2, 1000, 4, 128, device=gpu.device, generator=generator).bfloat16()
    with torch.inference_mode():
        both = attend(q, k, v)
        apart = torch.cat([attend(q[i : i + 1], k[i : i + 1], v[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(both, apart, rtol=0, atol=2e-3)


@each_backend
def test_compiled_it_is_one_graph_and_the_same_bits(backend, gpu):
    problem = replace(WAN, q_len=1000, kv_len=1000, num_heads=4)
    attend = bound(backend, problem, gpu)
    if backend is sdpa.ANY:
        pytest.skip("what PyTorch chooses, it may choose differently in a graph")
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k, v: attend(q + q, k, v) * 2, fullgraph=True, dynamic=False)
    with torch.inference_mode():
        # Heads split from a product, as the model hands them over.
        q, k, v = (x.flatten(2).unflatten(2, (4, 128)) for x in problem.tensors(gpu.device, max_len=1000))
        torch.testing.assert_close(compiled(q, k, v), attend(q + q, k, v) * 2, rtol=0, atol=0)
    torch._dynamo.reset()


@each_backend
def test_the_same_input_gives_the_same_bits(backend, gpu):
    problem = replace(WAN, q_len=4097, kv_len=4097, num_heads=4)
    attend = bound(backend, problem, gpu)
    with torch.inference_mode():
        q, k, v = problem.tensors(gpu.device, max_len=4097)
        first = attend(q, k, v)
        assert all(torch.equal(attend(q, k, v), first) for _ in range(3))


def test_a_measured_order_holds_every_kernel_that_runs(gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("WAN_VELOCITY_CACHE", str(tmp_path))
    choice = survivors("self attention", "auto", WAN, gpu, BACKENDS)
    if not is_measurable(choice, gpu):
        pytest.skip("nothing to choose from")
    found = calibrate([choice], gpu, NOTHING_MEASURED)
    ordered = found.order(choice)
    assert found.notes == ()
    assert {*ordered.names, *(item.name for item in ordered.rejected)} >= set(choice.names)
    assert found.verdicts == read(gpu).verdicts
    bind(ordered, gpu, strict=True)
