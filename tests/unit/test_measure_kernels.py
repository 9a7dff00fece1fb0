"""From the plan that is shown to the plan that is run: kernels are timed once, and the next plan knows it."""

from dataclasses import replace

import pytest

from wan_core import build
from wan_core.attention import calibrate, verdict_store
from wan_core.build import measure_kernels
from wan_core.plan import Workload, resolve
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.report import Report
from wan_core.specs import T2V_A14B_TRANSFORMER

MINIATURE = replace(T2V_A14B_TRANSFORMER, dim=64, ffn_dim=128, num_heads=2, num_layers=2, text_dim=32)
SIZE = VideoSize(width=128, height=128, num_frames=17)
WORKLOAD = Workload(request=SampleRequest(recipe=recipe("official")), latent_size=SIZE.latent_size)


@pytest.fixture
def cpu_as_gpu(monkeypatch, tmp_path):
    """Time kernels on this CPU as if it were a card, and keep the verdicts in a folder of the test's own."""
    for module in (build, calibrate):
        monkeypatch.setattr(module, "is_measurable", lambda choice, hardware: choice.asked == "auto")
    monkeypatch.setenv("WAN_VELOCITY_CACHE", str(tmp_path))


@pytest.mark.usefixtures("cpu_as_gpu")
def test_the_first_run_measures_and_the_next_plan_knows(machine, monkeypatch):
    hardware = machine("cpu")
    shown = resolve(preset("auto"), hardware, MINIATURE, WORKLOAD)
    report = Report()
    run = measure_kernels(shown, hardware, report)
    assert report.seconds["timing attention kernels"] > 0
    for choice in (run.binding.attention, run.binding.cross_attention):
        assert sorted(choice.names) == ["flash", "math", "sdpa"]
        assert "TFLOP/s, measured 20" in choice.decision.reason
        assert choice.decision in run.decisions
    assert run.warnings == shown.warnings

    monkeypatch.setattr(build, "calibrate", None)  # nothing is measured twice
    report = Report()
    assert measure_kernels(shown, hardware, report) == measure_kernels(run, hardware, report) == run
    assert report.seconds == {}
    assert resolve(preset("auto"), hardware, MINIATURE, WORKLOAD, verdict_store.read(hardware)) == run


@pytest.mark.usefixtures("cpu_as_gpu")
def test_only_what_is_missing_is_measured(machine):
    hardware = machine("cpu")
    self_only = preset("auto").with_settings({"attention.cross": "math"})
    first = measure_kernels(resolve(self_only, hardware, MINIATURE, WORKLOAD), hardware, Report())
    assert first.binding.cross_attention.decision.reason == ""
    report = Report()
    both = measure_kernels(resolve(preset("auto"), hardware, MINIATURE, WORKLOAD), hardware, report)
    assert report.seconds["timing attention kernels"] > 0
    assert both.binding.attention == first.binding.attention
    assert "TFLOP/s, measured 20" in both.binding.cross_attention.decision.reason


@pytest.mark.usefixtures("cpu_as_gpu")
def test_what_was_named_is_not_measured(machine, monkeypatch):
    monkeypatch.setattr(build, "calibrate", None)
    named = preset("auto").with_settings({"attention.backend": "math", "attention.cross": "sdpa"})
    plan = resolve(named, machine("cpu"), MINIATURE, WORKLOAD)
    assert measure_kernels(plan, machine("cpu"), Report()) is plan


def test_a_cpu_measures_nothing_and_says_nothing_of_it(machine, monkeypatch):
    monkeypatch.setattr(build, "calibrate", None)
    plan = resolve(preset("auto"), machine("cpu"), MINIATURE, WORKLOAD)
    assert measure_kernels(plan, machine("cpu"), Report()) is plan
    assert plan.binding.attention.decision.reason == ""


@pytest.mark.usefixtures("cpu_as_gpu")
def test_what_hinders_the_measurement_is_a_warning_of_the_run(machine):
    hardware = machine("cpu")
    shown = resolve(preset("auto"), hardware, MINIATURE, WORKLOAD)
    run = measure_kernels(shown, replace(hardware, free_memory=0), Report())
    assert run.binding == shown.binding
    assert [warning.partition(":")[0] for warning in run.warnings] == [
        "kernels for self attention were not timed",
        "kernels for cross attention were not timed",
    ]
