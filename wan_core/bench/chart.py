"""The result as a picture: seconds by operation of every contestant's step, and its memory.

matplotlib is no part of what the pack needs: it is imported when a chart is drawn, and its absence is a reason.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import replacing
from .operations import ORDER
from .result import Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_IDLE, _UNDIVIDED = "idle", "not divided"
_GRAY = "#c8c8c8"
# One for each operation, in the order of `ORDER`; neighbours in a bar differ in lightness.
_COLOURS = (
    "#1f4e8c", "#7fb2e5", "#1f4e8c", "#c8501e", "#f0b490", "#4f8a3c", "#b6d98a", "#8c5aa0", "#4f8a3c", "#b6d98a",
    "#d9b13b", "#7a5c3a", "#e58fb0", "#555555",
)  # fmt: skip


def why_no_chart() -> str | None:
    """The reason in words, or `None` where one can be drawn."""
    return None if find_spec("matplotlib") else "matplotlib is not installed"


def draw_chart(result: Result, path: Path) -> None:
    """A PNG with a row for each part that was measured: times, and memory where it is counted."""
    from matplotlib.figure import Figure  # without pyplot: no window system is asked for, nothing global is touched

    parts = {part: [row for row in found.rows if row.seconds] for part, found in result.parts.items()}
    parts = {part: rows for part, rows in parts.items() if rows}
    heights = [0.45 * len(rows) + 1.2 for rows in parts.values()] or [1.0]
    has_memory = any(row.peak_bytes for rows in parts.values() for row in rows)
    figure = Figure(figsize=(12, 0.8 + sum(heights)), layout="constrained")
    versions = result.machine["environment"]
    figure.suptitle(f"{result.task.size}, {versions['device']}, torch {versions['torch']}")
    columns = (3, 1) if has_memory else (1,)
    axes = figure.subplots(len(heights), len(columns), squeeze=False, width_ratios=columns, height_ratios=heights)
    for each, (part, rows) in zip(axes, parts.items(), strict=False):
        _times(each[0], part, rows, result)
        if has_memory:
            _memory(each[1], rows)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _times(axes: "Axes", part: str, rows: list[Row], result: Result) -> None:
    names = [row.name.replace(":", ":\n") for row in rows]
    left = [0.0] * len(rows)
    for operation in (*ORDER, _IDLE, _UNDIVIDED):
        widths = [_seconds(row, operation) for row in rows]
        if any(widths):
            axes.barh(names, widths, left=left, label=operation, color=_colour(operation))
            left = [start + width for start, width in zip(left, widths, strict=True)]
    for name, row in zip(names, rows, strict=True):
        axes.annotate(f" {row.median:.4g} s", (row.median, name), va="center")
    _mark_ceilings(axes, result.parts[part].flops, rows, result.ceilings.products)
    axes.set_title(part, loc="left")
    axes.set_xlabel("seconds")
    axes.set_xlim(0, 1.2 * max(row.median for row in rows))
    axes.invert_yaxis()
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=7)


def _mark_ceilings(axes: "Axes", flops: int | None, rows: list[Row], products: dict[str, float]) -> None:
    """A line for the time that products alone would take, in each dtype that somebody computes in."""
    for dtype in {row.facts.dtype for row in rows if row.facts} & products.keys() if flops else ():
        seconds = flops / products[dtype]
        axes.axvline(seconds, color="black", linestyle="--", linewidth=0.8)
        axes.annotate(f"{dtype} ceiling", (seconds, 1.01), xycoords=axes.get_xaxis_transform(), fontsize=7, ha="center")


def _memory(axes: "Axes", rows: list[Row]) -> None:
    names = [row.name for row in rows]
    axes.barh(names, [(row.peak_bytes or 0) / 2**30 for row in rows], color=_GRAY, label="peak")
    axes.barh(names, [(row.weight_bytes or 0) / 2**30 for row in rows], color="#808080", label="weights")
    axes.set_title("memory", loc="left")
    axes.set_xlabel("GiB")
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.legend(fontsize=7)


def _seconds(row: Row, operation: str) -> float:
    """Of the median time, in the proportions of the profiled run."""
    if row.breakdown is None:
        return row.median if operation == _UNDIVIDED else 0.0
    part = row.breakdown.idle if operation == _IDLE else row.breakdown.seconds.get(operation, 0.0)
    return max(part, 0.0) / row.breakdown.whole * row.median


def _colour(operation: str) -> str:
    """The same for an operation in every chart."""
    return _GRAY if operation in (_IDLE, _UNDIVIDED) else _COLOURS[ORDER.index(operation)]
