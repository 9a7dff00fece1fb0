"""Regional compilation: what recompiles and what does not, and what happens where a compiler fails."""

import gc
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from wan_core.compilation import FALLBACKS, MAX_GRAPHS, Region
from wan_core.profiles import setting_choices


class Block(nn.Module):
    """Small, with what makes a block: parameters, and inputs that change from run to run."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return x + time * torch.tanh(self.linear(x))


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def blocks() -> list[Block]:
    torch.manual_seed(0)
    return [Block().requires_grad_(False) for _ in range(3)]


def run(blocks: list[Block], length: int = 4, seed: int = 0) -> Tensor:
    x, time = torch.randn(2, length, 8, generator=torch.Generator().manual_seed(seed))
    for block in blocks:
        x = block(x, time)
    return x


def test_all_blocks_share_one_graph_whatever_they_are_given(blocks):
    plain = run(blocks)
    counter = CompileCounter()
    Region("default", backend=counter).add(blocks)
    torch.testing.assert_close(run(blocks), plain)
    for seed in range(3):
        run(blocks, seed=seed)
    assert counter.frame_count == 1


def test_more_sizes_than_pytorch_would_take_have_a_graph_each(blocks):
    counter, region = CompileCounter(), None
    region = Region("default", backend=counter)
    region.add(blocks)
    for length in range(2, 14):
        run(blocks, length)
    assert (counter.frame_count, region.mode, region.rejected) == (12, "default", [])
    assert MAX_GRAPHS > 12 > torch._dynamo.config.cache_size_limit


def test_a_size_that_was_met_is_compiled_no_more(blocks):
    counter = CompileCounter()
    Region("default", backend=counter).add(blocks)
    for length in (4, 6, 4, 6):
        run(blocks, length)
    assert counter.frame_count == 2


def failing(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
    raise RuntimeError("no such instruction\nand a page of details")


def test_a_compiler_that_fails_costs_the_mode_and_not_the_run(blocks):
    plain = run(blocks)
    region = Region("max-autotune", backend=failing)
    region.add(blocks)
    assert torch.equal(run(blocks), plain)
    assert region.mode == "off"
    assert [item.name for item in region.rejected] == ["max-autotune", "max-autotune-no-cudagraphs", "default"]
    assert all("no such instruction" in item.reason and "\n" not in item.reason for item in region.rejected)
    run(blocks, length=6)
    assert len(region.rejected) == 3


def test_the_next_mode_that_works_is_kept(blocks):
    counter = CompileCounter()

    def fails_once(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        if not region.rejected:
            raise RuntimeError("not this time")
        return counter(graph, inputs)

    region = Region("reduce-overhead", backend=fails_once)
    region.add(blocks)
    run(blocks), run(blocks)
    assert (region.mode, [item.name for item in region.rejected]) == ("default", ["reduce-overhead"])
    assert counter.frame_count == 1


def test_what_fails_in_the_run_is_an_error(blocks):
    def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        def call(*arguments: Tensor) -> None:
            raise torch.OutOfMemoryError("no memory")

        return call

    Region("default", backend=broken).add(blocks)
    with pytest.raises(torch.OutOfMemoryError):
        run(blocks)


def test_what_is_compiled_is_kept_where_a_restart_leaves_it(blocks, monkeypatch, tmp_path):
    monkeypatch.setenv("WAN_VELOCITY_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "of the user's choice")
    Region("default", backend="eager").add(blocks)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "of the user's choice"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    Region("default", backend="eager").add(blocks)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")


def collector_of_the_compiler(mode: str, runs: int = 1) -> list[bool]:
    """Whether the collector was on, each time the compiler was called."""
    found = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        found.append(gc.isenabled())
        return graph.forward

    blocks = [Block().requires_grad_(False)]
    Region(mode, backend=backend).add(blocks)
    for length in range(2, 2 + runs):
        run(blocks, length)
    assert gc.isenabled()
    return found


def test_the_first_graph_is_made_without_collecting():
    assert collector_of_the_compiler("default", runs=2) == [False, True]


def test_what_times_large_products_may_be_collected():
    assert collector_of_the_compiler("max-autotune-no-cudagraphs") == [True]


def test_a_compiler_that_fails_leaves_the_collector_on(blocks):
    Region("default", backend=failing).add(blocks)
    run(blocks)
    assert gc.isenabled()


def test_off_leaves_the_blocks_alone(blocks):
    before = [block.forward.__func__ for block in blocks]
    Region("off").add(blocks)
    assert [block.forward.__func__ for block in blocks] == before


def test_every_mode_falls_back_to_off():
    for mode in setting_choices("compile.mode"):
        while mode != "off":
            mode = FALLBACKS[mode]
