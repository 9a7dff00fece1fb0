"""The whole-run estimate: the roofline before the first run, what was learned after it, and how near that comes."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from miniature.write import write_miniature
from wan_core import history
from wan_core.attention.interface import AttentionProblem
from wan_core.attention.verdicts import NOTHING_MEASURED, Calibration, Timing, Verdict, problem_class
from wan_core.checkpoint.find import find_model
from wan_core.component_plan import resolve_decode, resolve_text
from wan_core.estimate import (
    Knowledge,
    RunEstimate,
    decode_parts,
    duration,
    learn,
    likely_decode,
    observed,
    sampling_parts,
    save_parts,
    text_parts,
)
from wan_core.history import History, Task
from wan_core.offload.weights import Place
from wan_core.pipeline import WanPipeline
from wan_core.plan import ExecutionPlan, Workload, resolve
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.report import Report, StepTiming
from wan_core.specs import T2V_A14B_TRANSFORMER, UMT5_XXL, WAN21_VAE, Expert

HD = (21, 90, 160)


def known_of(hardware, past: History | None = None, calibration: Calibration = NOTHING_MEASURED) -> Knowledge:
    return Knowledge(hardware=hardware, history=past or History(), calibration=calibration)


def plan_of(hardware, profile: str = "auto", size=HD, compile: str = "off", **changes) -> ExecutionPlan:
    chosen = recipe("official").with_changes(**changes)
    return resolve(
        preset(profile).with_settings({"compile.mode": compile}),
        hardware,
        T2V_A14B_TRANSFORMER,
        Workload(request=SampleRequest(recipe=chosen), latent_size=size),
    )


def report_of(high: list[float], low: list[float], **seconds: float) -> Report:
    rows = [("high", each) for each in high] + [("low", each) for each in low]
    steps = [StepTiming(index=i, expert=e, timestep=1000.0 - i, seconds=s) for i, (e, s) in enumerate(rows)]
    return Report(steps=steps, seconds={"sample": sum(high + low), **seconds})


def by_name(parts) -> dict:
    return {part.name: part for part in parts}


def test_the_first_estimate_of_the_real_model_is_near_what_was_measured(machine):
    # One H200: 24.5 s a step with cuDNN attention, 7.4 s for decode and MP4
    # (benchmarks/results/first_run_h200_202611.md); 21.7 s with FlashAttention 4 at 665 TFLOP/s.
    hardware = machine("h200")
    plan = plan_of(hardware)
    step = by_name(sampling_parts(plan, T2V_A14B_TRANSFORMER, known_of(hardware)))["high noise step"]
    assert step.source == "roofline" and step.count == 26
    assert 24.5 * 0.85 < step.seconds < 24.5 * 1.15
    problem = AttentionProblem(batch=1, q_len=75600, kv_len=75600, num_heads=40, head_dim=128, dtype="bfloat16")
    timing = Timing(name=plan.binding.attention.names[0], tflops=665.0, error=2e-3)
    verdict = Verdict(date="2026-11-21", timings=(timing,))
    timed = known_of(hardware, calibration=Calibration(verdicts={problem_class(problem): verdict}))
    faster = by_name(sampling_parts(plan, T2V_A14B_TRANSFORMER, timed))["high noise step"].seconds
    assert faster < step.seconds and 21.7 * 0.85 < faster < 21.7 * 1.15


def test_an_estimate_that_nothing_was_learned_for_says_so(machine):
    hardware = machine("h200")
    plan = plan_of(hardware)
    latent = (1, *HD)
    estimate = RunEstimate(
        parts=(
            *text_parts(resolve_text(preset("auto"), hardware, UMT5_XXL), UMT5_XXL, known_of(hardware)),
            *sampling_parts(plan, T2V_A14B_TRANSFORMER, known_of(hardware)),
            *decode_parts(
                resolve_decode(preset("auto"), hardware, WAN21_VAE, HD), WAN21_VAE, latent, known_of(hardware)
            ),
            *save_parts(latent, known_of(hardware)),
        )
    )
    assert estimate.runs == 0
    text = estimate.to_text()
    assert "estimate from this machine's rates" in text and "26 x high noise step" in text and " min " in text
    assert [part.stage for part in estimate.parts] == ["text", "build", "load", *["sample"] * 4, "decode", "decode"]


def test_compiling_loading_and_the_switch_are_part_of_it(machine):
    hardware = machine("h200", libraries=(("triton", "3.6.0"),))
    compiled = by_name(
        sampling_parts(plan_of(hardware, "auto", compile="default"), T2V_A14B_TRANSFORMER, known_of(hardware))
    )
    plain = by_name(sampling_parts(plan_of(hardware), T2V_A14B_TRANSFORMER, known_of(hardware)))
    assert compiled["first step"].seconds > 5.0 + plain["first step"].seconds
    assert plain["load"].seconds > 10.0 and plain["switch"].seconds == 0.0
    swapped = by_name(sampling_parts(plan_of(hardware, "40gb"), T2V_A14B_TRANSFORMER, known_of(hardware)))
    assert swapped["load"].seconds == pytest.approx(plain["load"].seconds / 2)
    assert swapped["switch"].seconds > 10.0
    there = dict.fromkeys(Expert, Place.DEVICE)
    warm = by_name(
        sampling_parts(
            plan_of(hardware, "auto", compile="default"), T2V_A14B_TRANSFORMER, known_of(hardware), places=there
        )
    )
    assert warm["load"].seconds == warm["first step"].seconds == 0.0


def test_another_build_around_loaded_weights_imports_and_reads_nothing(machine):
    """One H200: a second size took 8.1 s where 29.7 s were predicted, 13.7 s of them for reading the experts again."""
    hardware, there = machine("h200"), dict.fromkeys(Expert, Place.DEVICE)
    first, second, again = (
        by_name(sampling_parts(plan_of(hardware), T2V_A14B_TRANSFORMER, known_of(hardware), places=places, built=built))
        for places, built in ((None, "nothing"), (there, "another"), (there, "this"))
    )
    assert first["build"].seconds > second["build"].seconds > again["build"].seconds
    assert second["build"].seconds < 1.5  # 0.87 s were measured, with the timing of its kernels
    assert len({each["build"].task.kind for each in (first, second, again)}) == 3
    assert second["load"].seconds == second["first step"].seconds == 0.0


def test_a_pipeline_that_holds_weights_expects_them_at_another_size(tmp_path, monkeypatch):
    monkeypatch.setenv("WAN_VELOCITY_CACHE", str(tmp_path / "cache"))
    write_miniature(tmp_path / "model")
    pipeline = WanPipeline(find_model(tmp_path / "model"), device="cpu")
    request = SampleRequest(recipe=recipe("official").with_changes(num_steps=2, shift=5.0))

    def kinds(width: int) -> str:
        plan = pipeline.plan(request, VideoSize(width=width, height=32, num_frames=5))
        return "; ".join(part.task.kind for part in pipeline.estimate(plan).parts)

    assert "build anew; load experts from file; first step, cold" in kinds(32)
    plan = pipeline.plan(request, VideoSize(width=32, height=32, num_frames=5))
    pipeline.sample(plan, pipeline.encode(plan, "a red circle", report=Report()))
    assert "build again; load experts from device; first step, warm" in kinds(32)
    pipeline.profile = pipeline.profile.with_settings({"attention.backend": "math"})
    assert "build after another; load experts from device; first step, warm" in kinds(32)
    pipeline.profile = pipeline.profile.with_settings({"precision.weights": "bfloat16"})
    assert "build after another; load experts from file; first step, cold" in kinds(32)


def test_one_expert_has_no_switch(machine):
    plan = plan_of(machine("h200"), boundary=0.0)
    assert set(by_name(sampling_parts(plan, T2V_A14B_TRANSFORMER, known_of(machine("h200"))))) == {
        "build", "load", "first step", "high noise step",
    }  # fmt: skip


def test_what_was_seen_is_what_is_expected_and_adds_up_to_the_run(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("WAN_VELOCITY_CACHE", str(tmp_path))
    hardware = machine("h200")
    plan = plan_of(hardware, num_steps=8, shift=5.0)
    report = report_of([9.0, 2.0, 2.2, 1.8], [5.0, 2.0, 2.0, 2.0], build=1.0, load=11.0)
    parts = sampling_parts(plan, T2V_A14B_TRANSFORMER, known_of(hardware))
    assert plan.split.count(Expert.HIGH) == 4
    found = {part.name: seconds for part, seconds in observed(parts, report)}
    assert found == pytest.approx(
        {"build": 1.0, "load": 11.0, "first step": 7.0, "high noise step": 2.0, "switch": 3.0, "low noise step": 2.0}
    )
    learn(parts, report, hardware)
    again = RunEstimate(parts=sampling_parts(plan, T2V_A14B_TRANSFORMER, Knowledge.of(hardware)))
    assert again.seconds == pytest.approx(1.0 + 11.0 + report.seconds["sample"])
    assert again.runs == 1 and "learned from 1 run here" in again.to_text()
    # Another size of the same plan, in proportion to its work.
    small = sampling_parts(plan_of(hardware, size=(21, 60, 104), num_steps=8, shift=5.0), T2V_A14B_TRANSFORMER,
                           Knowledge.of(hardware))  # fmt: skip
    step = by_name(small)["high noise step"]
    assert step.source == "scaled" and step.runs == 0 and 0.1 < step.seconds / 2.0 < 0.4


def test_two_steps_of_each_expert_leave_one_that_counts():
    """The 4-step recipe: the second low-noise step alone, not the one that holds the switch."""
    report = report_of([9.0, 2.0], [5.0, 2.5])
    assert (report.seconds_per_step("high"), report.seconds_per_step("low")) == (2.0, 2.5)


def test_a_single_low_noise_step_gives_up_its_switch(machine):
    hardware = machine("h200")
    plan = plan_of(hardware, num_steps=2, shift=5.0)
    report = report_of([2.0], [5.0], **{"expert switch (within sample)": 3.0})
    found = {
        part.name: seconds
        for part, seconds in observed(sampling_parts(plan, T2V_A14B_TRANSFORMER, known_of(hardware)), report)
    }
    assert found == {"high noise step": 2.0, "switch": 3.0, "low noise step": 2.0}


def test_a_sampler_that_sees_no_vae_expects_the_decode_that_followed_last(machine):
    hardware = machine("h200")
    assert likely_decode((1, *HD), known_of(hardware)) == ()
    task = Task(kind="decode from file, width 96, bfloat16, whole frames", size="1x21x90x160", work=1.0)
    (part,) = likely_decode((1, *HD), known_of(hardware, History().with_runs([(task, 7.0)])))
    assert (part.seconds, part.runs, part.stage) == (7.0, 1, "decode")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (512.0, "8 min 32 s"),
     (7500.0, "2 h 05 min")],
)  # fmt: skip
def test_durations_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def replayed() -> list[tuple[str, int, float]]:
    """Size, number of the run and relative error of each recorded run, predicted from those before it."""
    known, errors, counted = History(), [], {}
    for run in json.loads(Path(__file__).with_name("recorded_runs.json").read_text(encoding="utf-8")):
        parts = [
            (Task(kind=part["kind"], size=part["size"], work=part["work"]), part["count"], part["seconds"])
            for part in run["parts"]
        ]
        counted[run["size"]] = counted.get(run["size"], 0) + 1
        expected = [(known.expect(task), count) for task, count, _ in parts]
        if all(each for each, _ in expected):
            predicted = sum(each.seconds * count for each, count in expected)
            errors.append((run["size"], counted[run["size"]], predicted / run["took"] - 1.0))
        known = known.with_runs((task, seconds) for task, _, seconds in parts)
    return errors


def test_recorded_runs_are_predicted_within_a_tenth_from_the_third_on():
    """25 runs of the miniature on a busy two-core machine, five sizes (`benchmarks/bench_estimate.py --cpu-time`).

    Its neighbours left during the last round, which made equal runs up to a third faster: so the bound of a tenth is on
    the third runs and on the median of all; docs/LOG.md has the figures.
    """
    errors = {(size, run): abs(error) for size, run, error in replayed()}
    later = [error for (_, run), error in errors.items() if run >= 3]
    assert len(later) == 15
    assert max(error for (_, run), error in errors.items() if run == 3) <= 0.10
    assert median(later) <= 0.10
    assert max(later) <= 0.35


def test_recorded_parts_make_up_the_whole_run():
    for run in json.loads(Path(__file__).with_name("recorded_runs.json").read_text(encoding="utf-8")):
        accounted = sum(part["seconds"] * part["count"] for part in run["parts"])
        assert accounted == pytest.approx(run["took"], rel=0.1, abs=0.05)


def test_a_run_of_the_miniature_is_remembered_whole(monkeypatch, tmp_path):
    """What a fresh pipeline expects after one run is what that run took, by its own report; no clock can spoil it."""
    monkeypatch.setenv("WAN_VELOCITY_CACHE", str(tmp_path / "cache"))
    write_miniature(tmp_path / "model")
    request = SampleRequest(recipe=recipe("official").with_changes(num_steps=6, shift=5.0))
    size = VideoSize(width=32, height=48, num_frames=5)

    def fresh() -> tuple[WanPipeline, object]:
        pipeline = WanPipeline(find_model(tmp_path / "model"), device="cpu")
        return pipeline, pipeline.plan(request, size)

    pipeline, plan = fresh()
    before, report = pipeline.estimate(plan), Report()
    assert before.runs == 0
    conditioning = pipeline.encode(plan, "a red circle", report=report)
    latent = pipeline.sample(plan, conditioning, report=report).latent
    with report.phase("decode"):
        list(pipeline.decode_chunks(plan, latent))
    pipeline.learn(before, report)
    pipeline, plan = fresh()
    after = [part for part in pipeline.estimate(plan).parts if part.name != "save"]
    took = sum(report.seconds[name] for name in ("text", "build", "load", "sample", "decode"))
    assert sum(part.total for part in after) == pytest.approx(took, rel=0.05, abs=0.05)
    assert all(part.runs == 1 for part in after)
    # A warm pipeline has other times, which nothing was learned of yet.
    assert next(part for part in pipeline.estimate(plan).parts if part.name == "load").runs == 1
    assert history.read(pipeline._hardware()).kinds


def test_a_history_that_cannot_be_kept_is_one_warning(monkeypatch, tmp_path, machine):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WAN_VELOCITY_CACHE", str(tmp_path / "file" / "cache"))
    report = report_of([2.0, 2.0], [2.0, 2.0], load=1.0)
    parts = sampling_parts(plan_of(machine("h200")), T2V_A14B_TRANSFORMER, known_of(machine("h200")))
    learn(parts, report, machine("h200"))
    learn([replace(part) for part in parts], report, machine("h200"))
    (warning,) = report.warnings
    assert warning.startswith("the times of this run are not kept")
