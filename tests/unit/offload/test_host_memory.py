"""Page-locked memory: given back with what it holds, and what happens where the system refuses it."""

import gc

import pytest
import torch
from torch import Tensor

from tests.unit.offload.modules import tower
from wan_core.offload import host_memory
from wan_core.offload.host_memory import HEADROOM_BYTES, HostMemory, free_bytes
from wan_core.offload.residency import TakeTurns
from wan_core.offload.weights import Weights


class Driver:
    """Counts what is locked; `limit` bytes at most."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.locked: dict[int, int] = {}
        self._limit = limit

    def pin(self, piece: Tensor) -> bool:
        if sum(self.locked.values()) + piece.nbytes > self._limit:
            return False
        self.locked[piece.data_ptr()] = piece.nbytes
        return True

    def unpin(self, piece: Tensor) -> None:
        del self.locked[piece.data_ptr()]


def waiting(driver: Driver, room: int = 1 << 30) -> Weights:
    weights, _ = tower(3, seed=0, room=room)
    weights.pinning = driver
    weights.copy_to_host(weights.units)
    return weights


def test_memory_is_unlocked_before_it_is_freed():
    driver = Driver()
    memory = HostMemory(64, driver)
    assert memory.is_pinned and list(driver.locked.values()) == [64]
    del memory
    gc.collect()
    assert not driver.locked


def test_dropped_weights_leave_nothing_locked():
    driver = Driver()
    weights = waiting(driver)
    assert sum(driver.locked.values()) == weights.bytes_pinned == weights.nbytes
    weights.drop()
    assert not driver.locked


def test_what_is_not_locked_is_told(monkeypatch: pytest.MonkeyPatch):
    weights = waiting(Driver(limit=1024))
    assert 0 < weights.bytes_pinned <= 1024 < weights.bytes_on_host == weights.nbytes
    weights.to_device()
    assert torch.isfinite(weights.module.blocks[2].inner.weight).all()
    monkeypatch.setattr(weights, "device", torch.device("cuda:0"))
    (note,) = TakeTurns({"high-noise expert": weights}).notes()
    assert "refused to page-lock" in note and "of the high-noise expert" in note


def test_what_has_no_room_is_told(monkeypatch: pytest.MonkeyPatch):
    weights = waiting(Driver(), room=1024)
    assert weights.bytes_on_host <= 1024
    monkeypatch.setattr(weights, "device", torch.device("cuda:0"))
    (note,) = TakeTurns({"high-noise expert": weights}).notes()
    assert "of the high-noise expert found no room" in note and "read from the file whenever" in note


def test_something_is_left_to_the_system(monkeypatch: pytest.MonkeyPatch):
    class Ram:
        free = HEADROOM_BYTES + 5

    monkeypatch.setattr(host_memory, "host_ram", Ram)
    assert free_bytes() == 5
    Ram.free = 1
    assert free_bytes() == 0
