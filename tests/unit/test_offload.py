"""Where weights are: read once, moved, dropped, and nothing half loaded after a failure."""

import pytest
import torch
from torch import nn

from wan_core.offload import KeepResident, Place, SwapModules, Weights


class Source:
    """Stands for a file: counts its reads, and can fail."""

    def __init__(self) -> None:
        self.reads = 0
        self.broken = False

    def load(self, module: nn.Module, device: torch.device, on_bytes) -> None:
        if self.broken:
            raise OSError("gone")
        self.reads += 1
        module.to_empty(device=device)
        nn.init.constant_(module.weight, 3.0)
        on_bytes(module.weight.nbytes, module.weight.nbytes)


@pytest.fixture
def source() -> Source:
    return Source()


def make(source: Source) -> Weights:
    with torch.device("meta"):
        module = nn.Linear(4, 4, bias=False)
    return Weights(module, source.load, device="cpu", dtype=torch.float32, nbytes=64)


def test_a_file_is_read_once_until_it_is_dropped(source):
    weights = make(source)
    seen = []
    weights.to_device(lambda done, total: seen.append((done, total)))
    weights.to_device()
    weights.to_host()
    weights.to_device()
    assert (source.reads, seen) == (1, [(64, 64)])
    assert torch.equal(weights.module.weight, torch.full((4, 4), 3.0))
    weights.drop()
    assert weights.module.weight.is_meta and weights.bytes_on_device == 0
    weights.to_device()
    assert source.reads == 2 and weights.bytes_on_device == 64


def test_a_read_that_fails_leaves_the_weights_in_the_file(source):
    weights, source.broken = make(source), True
    with pytest.raises(OSError):
        weights.to_device()
    assert weights.place is Place.FILE and weights.module.weight.is_meta
    source.broken = False
    weights.to_device()
    assert weights.place is Place.DEVICE


def test_weights_are_taken_over_where_they_are(source):
    old, new = make(source), make(source)
    old.to_device()
    data = old.module.weight.data_ptr()
    new.take_over(old)
    assert new.place is Place.DEVICE and new.module.weight.data_ptr() == data
    assert old.place is Place.FILE and old.module.weight.is_meta
    new.to_host()
    assert torch.equal(new.module.weight, torch.full((4, 4), 3.0))
    assert source.reads == 1


def test_resident_modules_are_all_there_before_the_first_step(source):
    weights = {"a": make(source), "b": make(source)}
    KeepResident(weights).activate("a", lambda what, done, total: None)
    assert [each.place for each in weights.values()] == [Place.DEVICE, Place.DEVICE]


def test_swapped_modules_take_turns(source):
    weights = {"a": make(source), "b": make(source)}
    residency = SwapModules(weights)
    residency.activate("a", lambda what, done, total: None)
    residency.activate("b", lambda what, done, total: None)
    assert [each.place for each in weights.values()] == [Place.HOST, Place.DEVICE]
    residency.activate("a", lambda what, done, total: None)
    assert [each.place for each in weights.values()] == [Place.DEVICE, Place.HOST]
    assert source.reads == 2
