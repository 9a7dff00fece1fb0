"""What a bench found: one row for each contestant and part, the machine, the ceilings; as JSON.

The JSON is written after every group of contestants, so that a run that is cut short leaves what it measured.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from statistics import median

from ..recipes import recipe
from .breakdown import Breakdown
from .ceilings import Ceilings
from .task import PARTS, Facts, Part, Task

# A whole run has as many steps as the official recipe.
RUN_STEPS = recipe("official").num_steps


@dataclass(slots=True, kw_only=True)
class Row:
    """One contestant in one part.

    problem: why there are no figures, or not all. cold_seconds: the first run, with all compiling and searching for
    algorithms; it is the warm-up and not among `seconds`. beside: who took turns with it. slowdown: its time in terms
    of the first contestant's, both from the same turns where `beside` names that one. difference: relative Frobenius
    norm of its output against the first contestant's. Bytes are its own, without those of others that wait beside it.
    """

    name: str
    problem: str | None = None
    facts: Facts | None = None
    build_seconds: float | None = None
    cold_seconds: float | None = None
    seconds: list[float] = field(default_factory=list)
    beside: tuple[str, ...] = ()
    slowdown: float | None = None
    difference: float | None = None
    weight_bytes: int | None = None
    peak_bytes: int | None = None
    breakdown: Breakdown | None = None

    @property
    def median(self) -> float | None:
        return median(self.seconds) if self.seconds else None


@dataclass(slots=True, kw_only=True)
class PartResult:
    """All contestants in one part. flops: operations of one run, where they are counted."""

    part: Part
    flops: int | None
    rows: list[Row] = field(default_factory=list)

    def rate(self, row: Row) -> float | None:
        """Operations per second."""
        return self.flops / row.median if self.flops and row.median else None

    def share(self, row: Row, ceilings: Ceilings) -> float | None:
        """Of what the device's products reach in the contestant's dtype."""
        rate, ceiling = self.rate(row), ceilings.products.get(row.facts.dtype) if row.facts else None
        return rate / ceiling if rate and ceiling else None


@dataclass(slots=True, kw_only=True)
class Result:
    """Everything that one bench found."""

    task: Task
    command: str
    machine: Mapping[str, Mapping[str, object]]
    ceilings: Ceilings
    parts: dict[Part, PartResult] = field(default_factory=dict)
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def whole_runs(self) -> Iterator[tuple[str, dict[str, float]]]:
        """Seconds of a run of `RUN_STEPS` steps by part, for contestants that were measured in every part."""
        if set(self.parts) != set(PARTS):
            return
        measured = {part: {row.name: row.median for row in result.rows} for part, result in self.parts.items()}
        for name, step in measured["step"].items():
            text, vae = measured["text"].get(name), measured["vae"].get(name)
            if step and text and vae:
                seconds = {"text": text, "steps": RUN_STEPS * step, "vae": vae}
                yield name, {**seconds, "total": sum(seconds.values())}

    def to_dict(self) -> dict[str, object]:
        return {
            "command": self.command,
            "date": self.date,
            "machine": dict(self.machine),
            "ceilings": asdict(self.ceilings),
            "task": {
                "size": str(self.task.size),
                "num_tokens": self.task.num_tokens,
                "transformer": asdict(self.task.transformer),
                "vae": asdict(self.task.vae),
                "text_encoder": asdict(self.task.text),
            },
            "parts": {part: self._part(result) for part, result in self.parts.items()},
            "whole_run": {"num_steps": RUN_STEPS, "seconds": dict(self.whole_runs())},
        }

    def _part(self, result: PartResult) -> dict[str, object]:
        return {"flops": result.flops, "contestants": [self._row(result, row) for row in result.rows]}

    def _row(self, result: PartResult, row: Row) -> dict[str, object]:
        rate = result.rate(row)
        return {
            **asdict(row),
            "breakdown": row.breakdown.to_dict() if row.breakdown else None,
            "median_seconds": row.median,
            "tflops": None if rate is None else rate / 1e12,
            "share_of_ceiling": result.share(row, self.ceilings),
        }
