"""What stands beside a linear layer adds exactly what merging would, and follows its strengths without a new graph."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_core.linear.adapter import Adapter, Term, adapter_bytes, attach

IN, OUT = 24, 40


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


TERMS = (Term(rank=3), Term(rank=1), Term(kronecker=((4, 2), (10, 12))), Term(rank=5))
DOWN, UP = random(3, IN), random(OUT, 3)
BIAS = random(OUT)
LEFT, RIGHT = random(4, 2), random(10, 12)
DOWN2, UP2 = random(5, IN), random(OUT, 5)


def filled(dtype: torch.dtype = torch.float32) -> Adapter:
    with torch.device("meta"):
        adapter = Adapter(IN, OUT, TERMS, dtype)
    adapter.to_empty(device="cpu").clear()
    adapter.fill_low_rank(0, DOWN, UP)
    adapter.fill_bias(1, BIAS)
    adapter.fill_kronecker(2, LEFT, RIGHT)
    adapter.fill_low_rank(3, DOWN2, UP2)
    return adapter


def merged(base: nn.Linear, strengths: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    one, bias, kronecker, other = strengths
    weight = base.weight + one * UP @ DOWN + kronecker * torch.kron(LEFT, RIGHT) + other * UP2 @ DOWN2
    return weight, base.bias + bias * BIAS


def set_all(adapter: Adapter, strengths: tuple[float, ...]) -> None:
    for index, strength in enumerate(strengths):
        adapter.set_coefficient(index, strength)


@pytest.mark.parametrize("strengths", [(1.0, 1.0, 1.0, 1.0), (0.5, -0.25, 2.0, 0.0), (0.0, 0.0, 0.0, 3.0)])
@pytest.mark.parametrize("shape", [(2, 7, IN), (5, IN)])
@torch.no_grad()
def test_equals_merging(strengths, shape):
    base, adapter, x = nn.Linear(IN, OUT), filled(), random(*shape)
    expected = F.linear(x, *merged(base, strengths))
    attach(base, adapter)
    set_all(adapter, strengths)
    assert (base(x) - expected).norm() / expected.norm() < 1e-6


@torch.no_grad()
def test_a_new_adapter_adds_nothing():
    base, x = nn.Linear(IN, OUT), random(2, 7, IN)
    expected = base(x)
    attach(base, filled())
    assert torch.equal(base(x), expected)


def test_the_layer_keeps_its_parameters_and_their_names():
    base = nn.Linear(IN, OUT)
    names = [name for name, _ in base.named_parameters()]
    attach(base, filled())
    assert [name for name, _ in base.named_parameters()] == names


@torch.no_grad()
def test_everything_moves_with_the_layer():
    base, x = nn.Linear(IN, OUT), random(2, 7, IN)
    attach(base, filled())
    base.to("meta")
    assert all(buffer.is_meta for buffer in base.buffers()) and base(x.to("meta")).shape == (2, 7, OUT)


@torch.no_grad()
def test_in_bfloat16_nothing_is_lost_but_the_rounding():
    base, adapter, x = nn.Linear(IN, OUT), filled(torch.bfloat16), random(2, 7, IN)
    strengths = (0.3, 0.3, 0.3, 0.3)
    exact = F.linear(x, *merged(base, strengths))
    rounded = F.linear(x.bfloat16(), *(part.bfloat16() for part in merged(base, strengths)))
    base.to(torch.bfloat16)
    attach(base, adapter)
    set_all(adapter, strengths)
    answer = adapter(x, F.linear(x.bfloat16(), base.weight, base.bias))
    assert answer.dtype == torch.bfloat16
    assert (answer - exact).norm() <= 2 * (rounded - exact).norm()


def test_bytes_are_those_of_its_buffers():
    adapter = filled(torch.bfloat16)
    assert adapter_bytes(IN, OUT, TERMS, 2) == sum(buffer.nbytes for buffer in adapter.buffers())
    assert adapter.down.shape[0] % 8 == 0


def test_only_kronecker_terms_need_no_ranks():
    with torch.device("meta"):
        adapter = Adapter(IN, OUT, TERMS[2:3], torch.float32)
    adapter.to_empty(device="cpu").clear()
    adapter.fill_kronecker(0, LEFT, RIGHT)
    adapter.set_coefficient(0, 1.0)
    x, y = random(2, 7, IN), random(2, 7, OUT)
    assert adapter.down.numel() == 0
    assert torch.allclose(adapter(x, y), y + F.linear(x, torch.kron(LEFT, RIGHT)), atol=1e-4)


@torch.no_grad()
def test_blocks_share_one_graph_and_a_strength_changes_none():
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    blocks = [nn.Sequential(nn.Linear(IN, OUT), nn.GELU()) for _ in range(3)]
    for block in blocks:
        attach(block[0], filled())
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False, backend=backend)
    x = random(2, 7, IN)
    before = [block(x) for block in blocks]
    for block in blocks:
        set_all(block[0].adapter, (1.0, 1.0, 1.0, 1.0))
    after = [block(x) for block in blocks]
    assert len(graphs) == 1
    for block, without, with_adapter in zip(blocks, before, after, strict=True):
        base = block[0]
        assert torch.allclose(without, F.gelu(F.linear(x, base.weight, base.bias)), atol=1e-5)
        assert torch.allclose(with_adapter, F.gelu(F.linear(x, *merged(base, (1.0, 1.0, 1.0, 1.0)))), atol=1e-3)
