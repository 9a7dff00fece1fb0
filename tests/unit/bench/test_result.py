"""A result in its three forms: JSON, tables, a picture."""

import json
from importlib.machinery import ModuleSpec

import pytest

from tests.unit.bench.fakes import TASK
from wan_core.bench import chart, operations
from wan_core.bench.breakdown import Breakdown
from wan_core.bench.ceilings import Ceilings
from wan_core.bench.chart import draw_chart, why_no_chart
from wan_core.bench.result import PartResult, Result, Row
from wan_core.bench.table import to_text
from wan_core.bench.task import Facts

GIB = 2**30


def row(name: str, *seconds: float, **more: object) -> Row:
    return Row(name=name, seconds=list(seconds), facts=Facts(summary="a summary", dtype="bfloat16"), **more)


@pytest.fixture
def result(machine) -> Result:
    """Two contestants at 1.2 PFLOP a step on a machine of 800 TFLOP/s; a third did not fit."""
    breakdown = Breakdown(
        seconds={operations.SELF_ATTENTION: 1.2, operations.LINEAR: 0.5}, whole=2.0, grouped_by="place"
    )
    rows = [
        row("exact", 2.2, 2.0, 1.9, slowdown=1.0, weight_bytes=29 * GIB, peak_bytes=35 * GIB, cold_seconds=41.25,
            beside=("peer",), breakdown=breakdown),
        row("peer", 4.0, slowdown=2.0, difference=3.5e-3, cold_seconds=4.5, beside=("exact",),
            breakdown=Breakdown(seconds={operations.ANY_ATTENTION: 3.0}, whole=4.0, grouped_by="kernel")),
        Row(name="large", problem="does not fit: 57 GiB"),
    ]  # fmt: skip
    return Result(
        task=TASK,
        command="python -m wan_core bench",
        machine={"hardware": {}, "environment": machine("h200").environment()},
        ceilings=Ceilings(copy=4.2e12, products={"bfloat16": 800e12}, missing={}),
        parts={"step": PartResult(part="step", flops=int(1.2e15), rows=rows)},
    )


def with_all_parts(result: Result) -> Result:
    result.parts["vae"] = PartResult(part="vae", flops=None, rows=[row("exact", 2.0), row("peer", 3.0)])
    result.parts["text"] = PartResult(part="text", flops=None, rows=[row("exact", 0.2)])
    return result


def test_json_holds_everything(result):
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    exact, peer, large = data["parts"]["step"]["contestants"]
    assert (exact["median_seconds"], exact["tflops"], exact["share_of_ceiling"]) == (2.0, 600.0, 0.75)
    assert exact["breakdown"]["seconds"] == {"self attention": 1.2, "linear": 0.5, "idle": pytest.approx(0.3)}
    assert exact["breakdown"]["busy"] == pytest.approx(0.85)
    assert (peer["slowdown"], peer["difference"]) == (2.0, 3.5e-3)
    assert (large["problem"], large["median_seconds"]) == ("does not fit: 57 GiB", None)
    assert data["command"] == "python -m wan_core bench"
    assert data["task"]["size"] == "64x64x5"
    assert data["whole_run"]["seconds"] == {}


def test_a_whole_run_is_the_sum_of_its_parts(result):
    assert dict(with_all_parts(result).whole_runs()) == {
        "exact": {"text": 0.2, "steps": 80.0, "vae": 2.0, "total": pytest.approx(82.2)}
    }
    assert "exact: text 0.2 s + steps 80 s + vae 2 s = 82.2 s" in to_text(result)


def test_the_table_has_a_line_for_each_and_the_reason_of_who_failed(result):
    lines = to_text(result).splitlines()
    assert "1.2 PFLOP: at least 1.5 s at the rate of bfloat16" in lines
    (exact,) = (line.split() for line in lines if line.startswith("  exact  "))
    assert exact == ["exact", "2", "1.00", "600", "75%", "35.0", "29.0", "41.2", "-"]
    assert "  large: does not fit: 57 GiB" in lines
    assert "  exact: a summary; 3 runs in turns with all others" in lines
    assert "  peer: a summary; 1 run in turns with all others" in lines


def test_the_breakdown_has_every_operation_that_somebody_has(result):
    lines = to_text(result).splitlines()
    start = lines.index("where the time of one profiled run goes")
    table = {line[2:30].strip(): line[30:].split() for line in lines[start + 2 : start + 7]}
    assert table == {
        "self attention": ["1.2", "s", "60%", "-"],
        "attention (self and cross)": ["-", "3", "s", "75%"],
        "linear": ["0.5", "s", "25%", "-"],
        "idle": ["0.3", "s", "15%", "1", "s", "25%"],
        "whole": ["2", "s", "4", "s"],
    }
    assert lines[start + 7] == "  peer: compiled, so told apart by the names of kernels and not by place"


def test_who_ran_with_some_of_the_others_says_with_whom(result):
    result.parts["step"].rows.append(row("late", 5.0, beside=("exact",)))
    result.parts["step"].rows.append(row("alone", 5.0))
    lines = to_text(result).splitlines()
    assert "  late: a summary; 1 run in turns with exact" in lines
    assert "  alone: a summary; 1 run alone on the device" in lines


def test_the_chart_is_a_picture(result, tmp_path):
    pytest.importorskip("matplotlib")
    draw_chart(with_all_parts(result), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_a_chart_of_nothing_is_drawn_too(result, tmp_path):
    pytest.importorskip("matplotlib")
    result.parts["step"].rows = result.parts["step"].rows[2:]
    draw_chart(result, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 0


def test_bars_are_the_median_in_the_proportions_of_the_profile(result):
    exact, peer, _ = result.parts["step"].rows
    assert chart._seconds(exact, operations.SELF_ATTENTION) == pytest.approx(1.2)
    assert sum(chart._seconds(peer, name) for name in (*operations.ORDER, "idle")) == pytest.approx(peer.median)


def test_without_matplotlib_there_is_a_reason(monkeypatch):
    monkeypatch.setattr(chart, "find_spec", lambda name: None)
    assert why_no_chart() == "matplotlib is not installed"
    monkeypatch.setattr(chart, "find_spec", lambda name: ModuleSpec(name, None))
    assert why_no_chart() is None


def test_every_operation_has_a_colour():
    assert len(chart._COLOURS) == len(operations.ORDER)
