"""The pipeline on the miniature: what it refuses, how it stops, what it reports, and that nothing is left behind."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wan_core.checkpoint.find import find_model
from wan_core.errors import InputError, Interrupted
from wan_core.hooks import Silent, StepEvent
from wan_core.offload.weights import Place
from wan_core.pipeline import WanPipeline
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.report import Report
from wan_core.sample import Conditioning, SampleResult

SIZE = VideoSize(width=32, height=48, num_frames=5)
REQUEST = SampleRequest(recipe=recipe("official").with_changes(num_steps=4, shift=5.0), seed=7)


class Recorder(Silent):
    """Hooks that remember, and stop after a number of questions."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps: list[StepEvent] = []
        self.chunks: list[tuple[int, int]] = []
        self.loaded: list[str] = []
        self.questions = 0
        self._stop_after = stop_after

    def on_step(self, event: StepEvent) -> None:
        self.steps.append(event)

    def on_chunk(self, done: int, total: int) -> None:
        self.chunks.append((done, total))

    def on_load(self, what: str, done: int, total: int) -> None:
        self.loaded.append(what)

    def should_stop(self) -> bool:
        self.questions += 1
        return self._stop_after is not None and self.questions > self._stop_after


@pytest.fixture(scope="module")
def pipeline(model: Path) -> WanPipeline:
    return WanPipeline(find_model(model), device="cpu")


@pytest.fixture(scope="module")
def conditioning(pipeline: WanPipeline) -> Conditioning:
    return pipeline.encode(pipeline.plan(REQUEST, SIZE), "a red circle", "", report=Report())


def run(
    pipeline: WanPipeline, conditioning: Conditioning, latent: torch.Tensor | None = None, **kwargs
) -> SampleResult:
    return pipeline.sample(pipeline.plan(REQUEST, SIZE), conditioning, latent, **kwargs)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 48, 2, 6, 4), "48 channels are a Wan 2.2 VAE latent"),
        ((1, 16, 6, 4), "expected .batch, 16, frames"),
        ((1, 16, 2, 7, 4), "expected even sides"),
    ],
)
def test_latents_that_do_not_fit_are_refused_before_anything_is_loaded(model, conditioning, shape, sentence):
    pipeline, hooks = WanPipeline(find_model(model), device="cpu"), Recorder()
    with pytest.raises(InputError, match=sentence):
        run(pipeline, conditioning, torch.zeros(shape), hooks=hooks)
    assert not hooks.loaded


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [((1, 512, 4096), "must come from the text encoder that belongs to these experts"), ((3, 512, 256), "3 prompts")],
)
def test_conditioning_that_does_not_fit_is_refused(pipeline, shape, sentence):
    with pytest.raises(InputError, match=sentence):
        run(pipeline, Conditioning(positive=torch.zeros(shape), negative=torch.zeros(1, 512, 256)))


def test_stops_within_a_block_and_runs_again_as_if_nothing_had_been(pipeline, conditioning):
    before = run(pipeline, conditioning).latent
    hooks = Recorder(stop_after=6)  # in the second step: the model has four blocks
    with pytest.raises(Interrupted):
        run(pipeline, conditioning, hooks=hooks)
    assert len(hooks.steps) == 1 and hooks.questions == 7
    assert torch.equal(run(pipeline, conditioning).latent, before)


def test_reports_what_ran(pipeline, conditioning):
    hooks = Recorder()
    result = run(pipeline, conditioning, hooks=hooks)
    data = json.loads(result.report.to_json())
    assert [step["expert"] for step in data["steps"]] == ["high", "high", "low", "low"]
    assert [event.timestep for event in hooks.steps] == [999.0, 937.0, 833.0, 624.0]
    topics = {decision["topic"] for decision in data["decisions"]}
    assert {"precision", "self attention", "cross attention", "guidance passes", "placement"} <= topics
    assert data["speed"]["high"]["tflops"] > 0 and data["peak_bytes"]["sample"] > 0
    assert data["seconds"]["sample"] >= sum(step["seconds"] for step in data["steps"]) * 0.9
    assert "2 steps" in result.report.to_text()


def test_result_is_raw_float32_on_the_host_and_an_ordinary_tensor(pipeline, conditioning):
    latent = run(pipeline, conditioning).latent
    assert (latent.dtype, latent.device.type, tuple(latent.shape)) == (torch.float32, "cpu", (1, 16, 2, 6, 4))
    latent.add_(1.0)  # would fail for a tensor of inference mode
    assert not latent.is_inference()


def test_a_batch_of_videos_runs_on_one_prompt(pipeline, conditioning):
    plan = pipeline.plan(REQUEST, SIZE, batch=2)
    latent = pipeline.sample(plan, conditioning).latent
    assert latent.shape[0] == 2 and not torch.equal(latent[0], latent[1])


def test_a_batch_in_parts_is_the_same_batch(pipeline, conditioning):
    plan = pipeline.plan(REQUEST, SIZE, batch=3)
    whole = pipeline.sample(plan, conditioning).latent
    split = replace(plan, experts=replace(plan.experts, guidance="sequential", videos_at_once=1))
    parts = pipeline.sample(split, conditioning).latent
    # The noise is drawn for the whole batch; what differs is the order of additions.
    assert (parts - whole).norm() <= 1e-4 * whole.norm()


def test_equal_plans_build_once_and_weights_are_read_once_for_all_kernels(model, conditioning):
    pipeline = WanPipeline(find_model(model), device="cpu")
    hooks = Recorder()
    run(pipeline, conditioning, hooks=hooks)
    loads = len(hooks.loaded)
    run(pipeline, conditioning, hooks=hooks)
    assert loads > 0 and len(hooks.loaded) == loads
    built = pipeline._experts
    pipeline.profile = preset("reference")
    run(pipeline, conditioning, hooks=hooks)
    assert pipeline._experts is not built and len(hooks.loaded) == loads
    pipeline.profile = preset("auto").with_settings({"precision.weights": "bfloat16"})
    run(pipeline, conditioning, hooks=hooks)
    assert len(hooks.loaded) == 2 * loads


def test_other_kernels_on_the_same_weights_give_what_a_fresh_build_gives(model, conditioning):
    pipeline = WanPipeline(find_model(model), device="cpu")
    run(pipeline, conditioning)
    pipeline.profile = preset("reference")
    fresh = WanPipeline(find_model(model), preset("reference"), device="cpu")
    assert torch.equal(run(pipeline, conditioning).latent, run(fresh, conditioning).latent)


def test_prompts_are_remembered(pipeline, conditioning):
    pipeline._text.weights.drop()
    again = pipeline.encode(pipeline.plan(REQUEST, SIZE), "a red circle", "", report=Report())
    assert torch.equal(again.positive, conditioning.positive)
    assert pipeline._text.weights.place is Place.FILE


def test_prompts_that_a_user_should_hear_about(pipeline):
    report = Report()
    pipeline.encode(pipeline.plan(REQUEST, SIZE), "", "red " * 600, report=report)
    assert any("the prompt is empty" in warning for warning in report.warnings)
    assert any("the negative prompt is" in warning and "not used" in warning for warning in report.warnings)


@pytest.mark.parametrize("tiling", ["off", "on"])
def test_decode_streams_reports_and_stops(model, tiling):
    pipeline = WanPipeline(find_model(model), preset("auto").with_settings({"vae.tiling": tiling}), device="cpu")
    plan, hooks = pipeline.plan(REQUEST, SIZE), Recorder()
    latent = torch.randn(1, 16, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    frames = [chunk.shape[2] for chunk in pipeline.decode_chunks(plan, latent, hooks=hooks)]
    assert frames == [1, 4] and hooks.chunks[-1] == (2, 2)
    with pytest.raises(Interrupted):
        list(pipeline.decode_chunks(plan, latent, hooks=Recorder(stop_after=0)))
