"""The result for people: what was measured on what, side by side, and where the time goes."""

from collections.abc import Iterator, Sequence

from .breakdown import Breakdown
from .ceilings import Ceilings
from .operations import ORDER
from .result import RUN_STEPS, PartResult, Result, Row

_TITLES = {
    "step": "step with guidance: two passes of one expert",
    "vae": "VAE decode of the whole video",
    "text": "text encoding of two prompts",
}
_IDLE, _WHOLE = "idle", "whole"


def to_text(result: Result) -> str:
    """Everything that was measured so far."""
    lines = [*_machine(result), f"ceilings, measured in this run: {result.ceilings}"]
    for part in result.parts.values():
        lines += ["", *_part(part, result)]
    if runs := dict(result.whole_runs()):
        lines += ["", f"a run of {RUN_STEPS} steps, from the figures above"]
        lines += [f"  {name}: {_sum(seconds)}" for name, seconds in runs.items()]
    return "\n".join(lines)


def _machine(result: Result) -> Iterator[str]:
    yield ", ".join(f"{name} {value}" for name, value in result.machine["environment"].items())
    task, spec = result.task, result.task.transformer
    yield f"{task.size} ({task.num_tokens:,} tokens), random weights, {spec.num_layers} layers of width {spec.dim}"


def _part(part: PartResult, result: Result) -> Iterator[str]:
    yield _TITLES[part.part]
    if part.flops:
        rates = result.ceilings.products.items()
        floors = ", ".join(f"{part.flops / rate:.4g} s at the rate of {dtype}" for dtype, rate in rates)
        yield f"{part.flops / 1e15:.4g} PFLOP: at least {floors}"
    header = ["", "s", "x first", "TFLOP/s", "ceiling", "peak GiB", "weights", "cold s", "differs"]
    measured = [row for row in part.rows if row.seconds]
    yield from _aligned([header, *(_cells(row, part, result.ceilings) for row in measured)])
    for row in part.rows:
        if row.problem:
            yield f"  {row.name}: {row.problem}"
        if row.facts:
            yield f"  {row.name}: {row.facts.summary}; {_turns(row, len(measured))}"
    yield from _breakdowns([row for row in part.rows if row.breakdown])


def _cells(row: Row, part: PartResult, ceilings: Ceilings) -> list[str]:
    rate, share = part.rate(row), part.share(row, ceilings)
    return [
        row.name,
        _shown(row.median, "{:.4g}"),
        _shown(row.slowdown, "{:.2f}"),
        _shown(rate and rate / 1e12, "{:.4g}"),
        _shown(share, "{:.0%}"),
        _shown(row.peak_bytes and row.peak_bytes / 2**30, "{:.1f}"),
        _shown(row.weight_bytes and row.weight_bytes / 2**30, "{:.1f}"),
        _shown(row.cold_seconds, "{:.3g}"),
        _shown(row.difference, "{:.1e}"),
    ]


def _turns(row: Row, num_measured: int) -> str:
    if not row.beside:
        company = "alone on the device"
    elif len(row.beside) == num_measured - 1:
        company = "in turns with all others"
    else:
        company = f"in turns with {', '.join(row.beside)}"
    return f"{len(row.seconds)} {'run' if len(row.seconds) == 1 else 'runs'} {company}"


def _breakdowns(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield "where the time of one profiled run goes"
    found = [row.breakdown for row in rows]
    used = [name for name in ORDER if any(name in breakdown.seconds for breakdown in found)]
    table = [["", *(row.name for row in rows)]]
    table += [[name, *(_part_of(breakdown, breakdown.seconds.get(name)) for breakdown in found)] for name in used]
    table += [[_IDLE, *(_part_of(breakdown, breakdown.idle) for breakdown in found)]]
    table += [[_WHOLE, *(f"{breakdown.whole:.4g} s     " for breakdown in found)]]
    yield from _aligned(table)
    if by_kernel := [row.name for row in rows if row.breakdown.grouped_by == "kernel"]:
        yield f"  {', '.join(by_kernel)}: compiled, so told apart by the names of kernels and not by place"


def _part_of(breakdown: Breakdown, seconds: float | None) -> str:
    return "-     " if seconds is None else f"{seconds:.3g} s {seconds / breakdown.whole:4.0%}"


def _aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *cells in table:
        right = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        yield f"  {name:<{widths[0]}}{right}".rstrip()


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _sum(seconds: dict[str, float]) -> str:
    return " + ".join(f"{name} {value:.4g} s" for name, value in seconds.items() if name != "total") + (
        f" = {seconds['total']:.5g} s"
    )
