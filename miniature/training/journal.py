"""The log of a training as lines of JSON, and its curves as a picture."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .pace import Pace


class Journal:
    """Appends records to `training.jsonl`; a resumed training goes on in the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, stage: str, **values: float | str | Tensor) -> None:
        record = {"time": round(time.time(), 1), "stage": stage}
        record |= {name: _rounded(value) for name, value in values.items()}
        line = json.dumps(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def write_losses(self, stage: str, pace: Pace, values: Mapping[str, Tensor]) -> None:
        """A record of one step; a loss that is no number ends the training, since nothing good follows from it."""
        numbers = {name: float(value.detach()) for name, value in values.items()}
        self.write(stage, step=pace.step, seconds=pace.spent, **numbers)
        if not all(map(math.isfinite, numbers.values())):
            raise FloatingPointError(f"{stage} diverged at step {pace.step}: {numbers}")

    def records(self, stage: str) -> list[dict]:
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [record for record in map(json.loads, lines) if record["stage"] == stage]


def draw_curves(journal: Journal, path: Path) -> None:
    """Losses over steps, the VAE beside the experts. Needs matplotlib, which nothing else here does."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, journal.records("vae"), ("mse", "l1"), "VAE: error of pixels")
    _draw(right, journal.records("experts"), ("loss_high", "loss_low"), "experts: error of velocity")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw(axes: object, records: list[dict], names: tuple[str, ...], title: str) -> None:
    for name in names:
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1)
            axes.legend()
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_yscale("log")
    axes.grid(visible=True, alpha=0.3)


def _rounded(value: float | str | Tensor) -> float | str:
    return value if isinstance(value, str | int) else float(f"{float(value):.5g}")
