"""Weights that move while a GPU computes: bit for bit what resident weights give, at whatever moment a run ends.

Blocks are large enough that copies take as long as the work on them: what is not waited for would not be there.
"""

import gc

import pytest
import torch
from torch import Tensor

from tests.unit.offload.modules import Tower, tower
from wan_core.compilation import Region
from wan_core.offload.residency import KeepResident, TakeTurns
from wan_core.offload.weights import Weights

pytestmark = pytest.mark.gpu

NUM_BLOCKS, DIM, NUM_ROWS, FORWARDS = 6, 2048, 4096, 2
STEPS = "aabb"
DEVICE = "cuda:0"


class StopHereError(Exception):
    """An interrupt."""


def silent(what: str, done: int, total: int) -> None: ...


def two(*, streamed: int = 0, room: int = 8 << 30) -> dict[str, Weights]:
    return {
        name: tower(NUM_BLOCKS, seed, streamed=streamed, room=room, device=DEVICE, dim=DIM)[0]
        for seed, name in enumerate("ab")
    }


@torch.inference_mode()
def run(residency: KeepResident | TakeTurns, weights: dict[str, Weights], stop_at: int | None = None) -> Tensor:
    x = torch.linspace(-1, 1, NUM_ROWS * DIM, device=DEVICE).view(NUM_ROWS, DIM)
    active, calls, handles = None, 0, []

    def count(block: object, inputs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise StopHereError

    for each in weights.values():
        handles += [block.register_forward_pre_hook(count) for block in each.module.blocks]
    try:
        for index, name in enumerate(STEPS):
            module: Tower = weights[name].module
            if name != active:
                residency.activate(name, silent, later=STEPS)
                with residency.single_layers(name):
                    text = module.prepare(torch.linspace(0, 1, DIM, device=DEVICE))
                active = name
            if STEPS[index + 1 : index + 2] not in ("", name):
                residency.prepare(STEPS[index + 1], FORWARDS)
            for _ in range(FORWARDS):
                x = module(x, text)
    finally:
        residency.release()
        for handle in handles:
            handle.remove()
    return x


def allocated() -> int:
    """Bytes in use on the card; what an earlier test left in reference cycles does not count."""
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


@pytest.fixture(scope="module")
def expected() -> Tensor:
    weights = two()
    return run(KeepResident(weights), weights)


@pytest.mark.parametrize("streamed", [0, 1, 2, 3, NUM_BLOCKS])
@pytest.mark.parametrize("room", [8 << 30, 0], ids=["copies", "files"])
def test_all_placements_compute_the_same(expected, streamed, room):
    weights = two(streamed=streamed, room=room)
    residency = TakeTurns(weights)
    for _ in range(3):
        assert torch.equal(run(residency, weights), expected)
    copies = sum(each.bytes_on_host for each in weights.values())
    assert copies == (0 if room == 0 else sum(each.nbytes for each in weights.values()))
    assert sum(each.bytes_pinned for each in weights.values()) == copies, "the system refuses to page-lock memory"
    assert residency.notes() == () or room == 0


@pytest.mark.parametrize("streamed", [0, 3, NUM_BLOCKS])
def test_stopping_anywhere_leaves_the_memory_as_it_was(expected, streamed):
    weights = two(streamed=streamed)
    residency = TakeTurns(weights)
    run(residency, weights)
    before = allocated()
    for stop_at in range(1, len(STEPS) * FORWARDS * NUM_BLOCKS, 3):
        with pytest.raises(StopHereError):
            run(residency, weights, stop_at)
    assert torch.equal(run(residency, weights), expected)
    assert allocated() == before


@pytest.mark.parametrize("streamed", [0, 3])
def test_one_module_and_two_buffers_are_all_that_a_run_takes(streamed):
    weights = two(streamed=streamed)
    residency = TakeTurns(weights)
    run(residency, weights)
    torch.cuda.synchronize()
    beside = torch.cuda.memory_allocated() - weights["b"].resident_bytes
    torch.cuda.reset_peak_memory_stats()
    run(residency, weights)
    activations = 8 * NUM_ROWS * DIM * 4
    limit = beside + weights["b"].resident_bytes + residency.buffer_bytes + activations
    assert torch.cuda.max_memory_allocated() <= limit


@pytest.mark.parametrize("streamed", [0, 3])
def test_compiled_blocks_do_not_compile_again_for_another_address(expected, streamed):
    torch._dynamo.reset()
    weights, region = two(streamed=streamed), Region("default")
    for each in weights.values():
        region.add(each.module.blocks)
    residency = TakeTurns(weights)
    first = run(residency, weights)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(run(residency, weights), first)
    torch.testing.assert_close(first, expected, rtol=1e-3, atol=1e-3)
    torch._dynamo.reset()


def test_page_locked_memory_is_given_back():
    weights = two()["a"]
    weights.copy_to_host(weights.units)
    pieces = [memory.data for memory in weights._on_host.values()]
    assert all(piece.is_pinned() for piece in pieces)
    weights.drop()
    assert not any(piece.is_pinned() for piece in pieces)
    torch.zeros(1, device=DEVICE).add_(1)  # no error is left for the next kernel
