"""Where a training keeps its state between two processes: one file per stage, replaced at once or not at all."""

from pathlib import Path
from typing import Any

import torch

from .machine import Machine


class Store:
    """A folder of state files, read as plain tensors and numbers only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.pt"

    def has(self, name: str) -> bool:
        return self.path(name).exists()

    def save(self, name: str, state: Any) -> None:
        unfinished = self.folder / f"{name}.unfinished"
        torch.save(state, unfinished)
        unfinished.replace(self.path(name))

    def load(self, name: str, machine: Machine) -> Any:
        """The state on the machine's device, or `None` where there is none yet."""
        if not self.has(name):
            return None
        return torch.load(self.path(name), map_location=machine.device, weights_only=True)
