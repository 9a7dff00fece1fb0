"""Where weights are: read once, moved as copies, dropped, and nothing half loaded after a failure."""

from functools import partial

import pytest
import torch

from tests.unit.offload.modules import tower
from wan_core.offload.layout import units_of
from wan_core.offload.weights import Place, Weights


def values(weights: Weights) -> list[torch.Tensor]:
    return [parameter.clone() for parameter in weights.module.parameters()]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_a_file_is_read_once_until_it_is_dropped():
    weights, source = tower(2, seed=0)
    seen: list[tuple[int, int]] = []
    weights.to_device(lambda done, total: seen.append((done, total)))
    loaded, reads = values(weights), len(source.reads)
    weights.to_device()
    weights.to_host()
    assert weights.place is Place.HOST and weights.bytes_on_device == 0 and same(values(weights), loaded)
    weights.to_device()
    assert len(source.reads) == reads == len(loaded) and seen[-1] == (reads, reads)
    assert same(values(weights), loaded) and weights.bytes_on_device == weights.nbytes
    weights.drop()
    assert weights.place is Place.FILE and weights.bytes_on_host == 0
    assert all(parameter.is_meta for parameter in weights.module.parameters())
    weights.to_device()
    assert len(source.reads) == 2 * reads and same(values(weights), loaded)


def test_leaving_the_device_copies_nothing():
    weights, source = tower(2, seed=0)
    weights.to_device()
    loaded, reads = values(weights), len(source.reads)
    weights.leave_device()
    assert weights.place is Place.FILE and weights.bytes_on_device == weights.bytes_on_host == 0
    assert all(parameter.is_meta for parameter in weights.module.parameters())
    weights.to_device()
    assert same(values(weights), loaded) and len(source.reads) == 2 * reads


def test_copies_that_are_there_stay_when_the_device_is_left():
    weights, source = tower(3, seed=0)
    block = weights.units[1]
    weights.copy_to_host([block])
    weights.to_device()
    loaded = values(weights)
    weights.leave_device()
    assert weights.place is Place.HOST and weights.bytes_on_host == block.nbytes
    source.reads.clear()
    weights.to_device()
    assert same(values(weights), loaded)
    assert set(source.reads) == {name for unit in weights.units if unit is not block for name in unit.names}


def test_a_copy_on_the_host_is_not_written_back():
    weights, source = tower(2, seed=0)
    weights.copy_to_host(weights.units)
    weights.to_device()
    copies = [memory.data.data_ptr() for memory in weights._on_host.values()]
    weights.to_host()
    assert [memory.data.data_ptr() for memory in weights._on_host.values()] == copies
    assert len(source.reads) == len(list(weights.module.parameters()))


@pytest.mark.parametrize("to_device", [True, False])
def test_a_read_that_fails_leaves_the_weights_in_the_file(to_device):
    weights, source = tower(2, seed=0)
    load = weights.to_device if to_device else partial(weights.copy_to_host, weights.units)

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(stop)
    assert weights.place is Place.FILE and all(parameter.is_meta for parameter in weights.module.parameters())
    source.broken = True
    with pytest.raises(OSError, match="gone"):
        load()
    assert weights.place is Place.FILE
    source.broken = False
    weights.to_device()
    assert weights.place is Place.DEVICE


def test_what_the_host_has_no_room_for_is_read_again():
    weights, source = tower(3, seed=0, streamed=2, room=0)
    block = weights.streamed[0]
    weights.host_room = lambda: block.nbytes
    weights.copy_to_host((*weights.streamed, *weights.resident))
    assert weights.bytes_on_host == block.nbytes and weights.is_in_memory(block.names[0])
    weights.to_device()
    source.reads.clear()
    weights.to_host()
    assert source.reads == [] and weights.bytes_on_device == 0
    weights.to_device()
    assert 0 < len(source.reads) < len(list(weights.module.parameters()))


def test_streamed_blocks_never_stay_on_the_device():
    weights, _ = tower(4, seed=0, streamed=3)
    weights.to_device()
    assert weights.bytes_on_device == weights.resident_bytes == weights.nbytes - 3 * weights.streamed[0].nbytes
    assert [unit.block for unit in weights.streamed] == [1, 2, 3]


@pytest.mark.parametrize("is_on_device", [True, False])
def test_weights_are_taken_over_where_they_are(is_on_device):
    old, source = tower(2, seed=0)
    new, unread = tower(2, seed=0, streamed=1)
    old.copy_to_host(old.units)
    if is_on_device:
        old.to_device()
    loaded = values(old)
    new.take_over(old)
    assert old.place is Place.FILE and new.place is (Place.DEVICE if is_on_device else Place.HOST)
    assert same(values(new), loaded) and not unread.reads
    assert new.bytes_on_device == (new.resident_bytes if is_on_device else 0)
    new.to_host()
    assert same(values(new), loaded) and not unread.reads


def test_changes_in_place_reach_the_copy_on_the_host():
    weights, _ = tower(2, seed=0)
    weights.copy_to_host(weights.units)
    weights.to_device()
    weights.module.blocks[1].inner.weight.fill_(7.0)
    weights.mirror(["blocks.1.inner.weight"])
    weights.to_host()
    assert weights.module.blocks[1].inner.weight.unique().tolist() == [7.0]


def test_units_are_aligned_and_blocks_are_alike():
    weights, _ = tower(3, seed=0)
    rest, *blocks = units_of(weights.module, lambda name: False)
    assert rest.block is None and [unit.block for unit in blocks] == [0, 1, 2]
    assert len({unit.nbytes for unit in blocks}) == 1 and all(slot.offset % 256 == 0 for slot in rest.slots)
    names = [name for unit in (rest, *blocks) for name in unit.names]
    assert sorted(names) == sorted(name for name, _ in weights.module.named_parameters())


def test_parameters_stay_parameters_outside_of_inference_mode():
    weights, _ = tower(1, seed=0)
    with torch.inference_mode():
        weights.copy_to_host(weights.units)
        weights.to_device()
    parameter = weights.module.blocks[0].inner.weight
    assert isinstance(parameter, torch.nn.Parameter) and not parameter.is_inference()
