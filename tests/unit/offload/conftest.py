"""New memory on the device is full of NaN: what is used before it has arrived shows."""

import pytest
import torch
from torch import Tensor

from wan_core.offload import stream, weights


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every piece of device memory that was handed out."""
    pieces: list[Tensor] = []

    def memory(nbytes: int, device: torch.device) -> Tensor:
        with torch.inference_mode(mode=False):
            pieces.append(torch.full((nbytes,), 255, dtype=torch.uint8, device=device))
        return pieces[-1]

    monkeypatch.setattr(weights, "device_memory", memory)
    monkeypatch.setattr(stream, "device_memory", memory)
    return pieces
