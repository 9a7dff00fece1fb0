"""Opaque operators: one node of a graph, defined once, and what vendors raise made into words."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import wan_core
from tests.unit.attention.fakes import attend, failing
from wan_core.attention.backends import opaque as module
from wan_core.attention.backends import sdpa
from wan_core.attention.backends.opaque import opaque, vendor_errors

Q, K, V = (torch.randn(2, length, 3, 16, generator=torch.Generator().manual_seed(0)) for length in (40, 24, 24))


def test_it_computes_what_the_kernel_computes():
    assert torch.equal(opaque("plain", attend)(Q, K, V), attend(Q, K, V))


class Block(nn.Module):
    def __init__(self, attend) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 48)
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        q = self.linear(x).unflatten(2, (3, 16))
        return self.linear(self.attend(q, q, q).flatten(2))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_block_with_a_kernel_that_cannot_be_traced_is_one_graph(backend):
    def untraceable(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        assert not isinstance(q, torch._subclasses.FakeTensor)
        return attend(q, k, v).transpose(1, 2).contiguous().transpose(1, 2)  # as a kernel with another layout gives it

    torch._dynamo.reset()
    block = Block(opaque("untraceable", untraceable)).eval()
    x = torch.randn(2, 40, 48)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            compiled = torch.compile(block, backend=backend, fullgraph=True)
            torch.testing.assert_close(compiled(x), block(x), rtol=0, atol=0)
    torch._dynamo.reset()


def test_its_result_is_contiguous_compiled_or_not():
    run = opaque("transposed", lambda q, k, v: attend(q, k, v).transpose(1, 2).contiguous().transpose(1, 2))
    torch.library.opcheck(run, (Q, K, V), test_utils=("test_schema", "test_faketensor"))
    assert run(Q, K, V).is_contiguous()
    q, k, v = (tensor.to("meta") for tensor in (Q, K, V))
    assert (run(q, k, v).shape, run(q, k, v).is_contiguous()) == (Q.shape, True)


def test_the_kernel_that_was_named_is_in_the_graph_and_no_other():
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    torch.compile(sdpa.MATH.load(), backend=keep, fullgraph=True)(Q, K, V)
    called = [node.target for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert [target.name() for target in called] == [f"{module.NAMESPACE}::sdpa_math"]
    torch._dynamo.reset()


def test_a_second_definition_returns_the_first():
    first = opaque("kernel", attend)
    assert opaque("kernel", failing(AssertionError("defined twice"))) is first
    assert torch.equal(first(Q, K, V), attend(Q, K, V))


def test_the_pack_may_be_imported_twice_under_two_names(monkeypatch):
    # ComfyUI names a pack by its path; a second copy, or a test beside it, brings the same code under another name.
    root = Path(wan_core.__file__).parent
    spec = importlib.util.spec_from_file_location(
        "custom_nodes_x_wan", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    monkeypatch.setitem(sys.modules, spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(sys.modules[spec.name])
    try:
        other = importlib.import_module(f"{spec.name}.attention.backends.opaque")
        monkeypatch.setattr(other, "NAMESPACE", module.NAMESPACE)
        assert other is not module
        first = opaque("kernel", attend)
        second = other.opaque("kernel", attend)
        assert torch.equal(first(Q, K, V), second(Q, K, V))
    finally:
        for name in [name for name in sys.modules if name.startswith(f"{spec.name}.")]:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (AssertionError("head_dim must be 128"), (RuntimeError, "AssertionError: head_dim must be 128")),
        (AttributeError("no attribute 'x'"), (RuntimeError, "AttributeError: no attribute 'x'")),
        (ImportError("no module"), (ImportError, "no module")),
        (OSError("undefined symbol"), (OSError, "undefined symbol")),
        (torch.OutOfMemoryError("out of memory"), (torch.OutOfMemoryError, "out of memory")),
    ],
)
def test_what_a_vendor_raises_becomes_one_of_the_errors_that_are_passed_over(raised, expected):
    with pytest.raises(expected[0]) as caught, vendor_errors():
        raise raised
    assert type(caught.value) is expected[0]
    assert str(caught.value) == expected[1]


def test_a_kernel_that_asserts_raises_a_runtime_error():
    with pytest.raises(RuntimeError, match="AssertionError: not for you"):
        opaque("asserting", failing(AssertionError("not for you")))(Q, K, V)


def test_an_interrupt_stays_one():
    with pytest.raises(KeyboardInterrupt), vendor_errors():
        raise KeyboardInterrupt
