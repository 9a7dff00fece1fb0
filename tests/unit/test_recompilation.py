"""One graph for everything that changes from run to run: counted on whole runs of the miniature, both experts.

The compiler is a counter that runs what it is given; what makes a new graph does not depend on the compiler.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.lora_files import write_lora
from wan_core import build
from wan_core.checkpoint.find import find_model
from wan_core.compilation import Region
from wan_core.pipeline import WanPipeline
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.sample import Conditioning, SampleResult
from wan_core.specs import Expert

SIZE = VideoSize(width=32, height=48, num_frames=5)


@pytest.fixture
def counter(monkeypatch) -> CompileCounter:
    """Counts graphs; the plan compiles nothing on a CPU, so the region that the build makes is told to."""
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(build, "Region", lambda mode: Region("default", backend=counter))
    yield counter
    torch._dynamo.reset()


def run(
    pipeline: WanPipeline, *, prompt: int = 0, seed: int = 0, steps: int = 2, size: VideoSize = SIZE
) -> SampleResult:
    """A run whose steps belong to both experts, on the embeddings of some prompt."""
    changed = recipe("official").with_changes(num_steps=steps, shift=1.0)
    plan = pipeline.plan(SampleRequest(recipe=changed, seed=seed), size)
    assert {Expert.HIGH, Expert.LOW} == set(plan.experts.split)
    draw = partial(torch.randn, 1, 7 + prompt, pipeline.pair.spec.text_dim)
    generator = torch.Generator().manual_seed(prompt)
    conditioning = Conditioning(positive=draw(generator=generator), negative=draw(generator=generator))
    return pipeline.sample(plan, conditioning)


def test_prompts_seeds_steps_and_experts_share_one_graph(model, counter):
    pipeline = WanPipeline(find_model(model), preset("cpu"), device="cpu")
    first = run(pipeline).latent
    for changed in ({"prompt": 1}, {"seed": 1}, {"steps": 3}):
        assert not torch.equal(run(pipeline, **changed).latent, first)
    assert counter.frame_count == 1


def test_strengths_of_a_lora_share_one_graph(model, counter, tmp_path):
    pipeline = WanPipeline(find_model(model), preset("cpu"), device="cpu")
    for expert in Expert:
        path, _ = write_lora(tmp_path, "kohya", pipeline.pair.spec, expert)
    pipeline.add_lora(path, strength_high=1.0, strength_low=1.0)
    results = []
    for strength in (1.0, 0.5, 0.0):
        (choice,) = pipeline.loras
        pipeline.loras = [replace(choice, strength_high=strength, strength_low=strength)]
        results.append(run(pipeline).latent)
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])
    assert counter.frame_count == 1


def test_a_size_that_comes_back_is_not_compiled_again(model, counter):
    pipeline = WanPipeline(find_model(model), preset("cpu"), device="cpu")
    other = VideoSize(width=48, height=48, num_frames=5)
    for size in (SIZE, other, SIZE, other):
        run(pipeline, size=size)
    assert counter.frame_count == 2


def test_a_compiler_that_fails_in_the_first_step_is_a_line_of_the_report(model, monkeypatch):
    def fail(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
        raise RuntimeError("no such instruction")

    torch._dynamo.reset()
    plain = run(WanPipeline(find_model(model), preset("cpu"), device="cpu"))
    monkeypatch.setattr(build, "Region", lambda mode: Region("reduce-overhead", backend=fail))
    result = run(WanPipeline(find_model(model), preset("cpu"), device="cpu"))
    torch._dynamo.reset()
    assert torch.equal(result.latent, plain.latent)
    (decision,) = (decision for decision in result.report.decisions if decision.topic == "compile")
    assert decision.chosen == "off"
    assert "not reduce-overhead, default: RuntimeError: no such instruction" in str(decision)
