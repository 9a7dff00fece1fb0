"""Faults put into runs of the miniature: no finished step is lost, and what comes after is as if nothing had been."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.recovery.conftest import NUM_STEPS, REQUEST, SIZE, Fault, StepRecorder, held_bytes, out_of_memory
from wan_core.component_plan import resolve_decode
from wan_core.errors import Interrupted, NonFiniteError, OutOfMemoryError
from wan_core.hardware import Hardware
from wan_core.hooks import Silent
from wan_core.models.vae_memory import decode_bytes
from wan_core.models.vae_tiling import Tile
from wan_core.pipeline import RunPlan, WanPipeline
from wan_core.profiles import preset
from wan_core.recovery.journal import Journal
from wan_core.recovery.ladder import smaller_tiles
from wan_core.recovery.state import read_state
from wan_core.report import Report
from wan_core.sample import Conditioning
from wan_core.specs import WAN21_VAE, Expert

MakeJournal = Callable[..., Journal]
SIZE_720P = (21, 90, 160)


@pytest.fixture(autouse=True)
def leaves_memory_as_it_was(shared: WanPipeline, prompts: Conditioning, whole: Tensor) -> Iterator[None]:
    """After every fault, and the run that follows it, not a hundredth more is held than before."""
    before = held_bytes(shared, prompts)
    yield
    assert held_bytes(shared, prompts) <= 1.01 * before


def resumed(pipeline: WanPipeline, plan: RunPlan, prompts: Conditioning, path: object) -> Tensor:
    """The latent of the run that goes on from a file, and only from its first unfinished step."""
    state, hooks = read_state(path), StepRecorder()
    latent = pipeline.sample(plan, prompts, hooks=hooks, journal=Journal(position=state.position)).latent
    assert hooks.steps == list(range(state.position.next_step, len(plan.experts.split)))
    return latent


class StopAt(StepRecorder):
    """Stops at the n-th question."""

    def __init__(self, question: int) -> None:
        super().__init__()
        self._left = question

    def should_stop(self) -> bool:
        self._left -= 1
        return self._left < 0


def test_interrupts_at_random_moments(shared: WanPipeline, prompts: Conditioning, journal: MakeJournal) -> None:
    # Steps enough for fifty moments, each of its own.
    plan = shared.plan(replace(REQUEST, recipe=REQUEST.recipe.with_changes(num_steps=14)), SIZE)
    counter = StopAt(10**9)
    whole = shared.sample(plan, prompts, hooks=counter).latent
    questions = 10**9 - counter._left
    for number, question in enumerate(random.Random(0).sample(range(questions), 50)):
        hooks, kept = StopAt(question), journal(plan=plan)
        kept.file.path.unlink(missing_ok=True)
        with pytest.raises(Interrupted):
            shared.sample(plan, prompts, hooks=hooks, journal=kept)
        done = kept.position.next_step if kept.position else 0
        assert done == len(hooks.steps)  # every step that was finished is kept
        if done:
            assert read_state(kept.file.path).position.next_step == done
        if done and number % 5 == 0:  # the others only cost time
            assert torch.equal(resumed(shared, plan, prompts, kept.file.path), whole)
    assert torch.equal(shared.sample(plan, prompts).latent, whole)


@pytest.mark.parametrize(("expert", "call"), [(Expert.HIGH, 1), (Expert.HIGH, 3), (Expert.LOW, 2)])
def test_out_of_memory_steps_down_and_goes_on(
    shared: WanPipeline,
    plan: RunPlan,
    prompts: Conditioning,
    whole: Tensor,
    inject: Callable,
    rounding: float,
    expert: Expert,
    call: int,
) -> None:
    assert plan.experts.guidance == "batched"
    inject(out_of_memory, expert=expert, block=3, call=call)
    report, hooks = Report(), StepRecorder()
    latent = shared.sample(plan, prompts, hooks=hooks, report=report).latent
    (rung,) = (decision for decision in report.decisions if decision.topic == "out of memory")
    assert rung.degraded and "sequential guidance" in rung.chosen and "finished steps kept" in rung.reason
    assert hooks.steps == list(range(NUM_STEPS))  # none twice
    assert [step.index for step in report.steps] == list(range(NUM_STEPS))
    # The same numbers but for the order of additions inside the kernels.
    assert (latent - whole).norm() <= rounding
    assert len({decision.topic for decision in report.decisions}) == len(report.decisions)
    assert torch.equal(shared.sample(plan, prompts).latent, whole)


def test_the_ladder_ends_in_one_sentence_and_loses_nothing(
    shared: WanPipeline, plan: RunPlan, prompts: Conditioning, whole: Tensor, inject: Callable, journal: MakeJournal
) -> None:
    stop, kept = inject(out_of_memory, expert=Expert.LOW, block=0, call=None), journal()
    with pytest.raises(OutOfMemoryError, match="nothing left to step down to .* finished steps are in"):
        shared.sample(plan, prompts, journal=kept)
    stop()
    state = read_state(kept.file.path)
    assert state.position.next_step == kept.position.next_step == plan.experts.split.count(Expert.HIGH)
    assert torch.equal(resumed(shared, plan, prompts, kept.file.path), whole)


def test_a_strict_profile_takes_no_step_down(
    shared: WanPipeline, prompts: Conditioning, whole: Tensor, inject: Callable, plan: RunPlan
) -> None:
    inject(out_of_memory, expert=Expert.HIGH, block=0, call=1)
    shared.profile = preset("auto").with_settings({"on_unsupported": "error"})
    try:
        with pytest.raises(OutOfMemoryError, match="step 1 of 8"):
            shared.sample(plan, prompts)
    finally:
        shared.profile = preset("auto")


@pytest.mark.parametrize(("expert", "block", "step"), [(Expert.HIGH, 0, 1), (Expert.LOW, 3, 2)])
def test_numbers_that_are_not_finite_are_caught_and_their_step_done_again(
    shared: WanPipeline, plan: RunPlan, prompts: Conditioning, whole: Tensor, rounding: float, monkeypatch,
    expert: Expert, block: int, step: int,
) -> None:  # fmt: skip
    attention = shared._experts.transformers[expert].blocks[block].self_attn
    kernel, calls = attention.attend, 0

    def sometimes_broken(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        result = kernel(q, k, v)
        return result * float("nan") if calls >= step else result

    monkeypatch.setattr(attention, "attend", sometimes_broken)
    report = Report()
    latent = shared.sample(plan, prompts, report=report).latent
    redone = [decision for decision in report.decisions if decision.asked == "the kernels above"]
    assert len(redone) == 2 and redone[1].topic.endswith("and all that follow") and redone[0].degraded
    assert f"{expert.value}-noise expert in block {block}, self attention kernel" in redone[0].reason
    assert (latent - whole).norm() <= rounding
    assert attention.attend is sometimes_broken
    monkeypatch.undo()
    assert torch.equal(shared.sample(plan, prompts).latent, whole)


def test_broken_weights_are_named_and_nothing_is_lost(
    shared: WanPipeline, plan: RunPlan, prompts: Conditioning, whole: Tensor, journal: MakeJournal
) -> None:
    shared.sample(plan, prompts)  # brings the weights to the device
    kept = journal()
    with torch.inference_mode():
        shared._experts.transformers[Expert.LOW].blocks[2].ffn[0].weight[0, 0] = float("inf")
    try:
        with pytest.raises(NonFiniteError, match=r"low-noise expert in block 2, whose weight 'blocks.2.ffn.0.weight'"):
            shared.sample(plan, prompts, journal=kept)
    finally:
        shared._experts.weights[Expert.LOW].drop()
    assert kept.position.next_step == plan.experts.split.count(Expert.HIGH)
    assert torch.equal(resumed(shared, plan, prompts, kept.file.path), whole)


def test_an_unforeseen_error_keeps_every_finished_step(
    shared: WanPipeline, plan: RunPlan, prompts: Conditioning, whole: Tensor, inject: Callable, journal: MakeJournal
) -> None:
    def fail(output: Tensor) -> None:
        raise Fault

    inject(fail, expert=Expert.HIGH, block=2, call=3)
    kept = journal()
    with pytest.raises(Fault):
        shared.sample(plan, prompts, journal=kept)
    assert kept.position.next_step == 2
    assert torch.equal(resumed(shared, plan, prompts, kept.file.path), whole)


def test_a_disk_that_refuses_costs_a_warning_and_no_more(
    shared: WanPipeline, plan: RunPlan, prompts: Conditioning, whole: Tensor, journal: MakeJournal, tmp_path
) -> None:
    report = Report()
    kept = journal(tmp_path / "no folder" / "run.safetensors")
    assert torch.equal(shared.sample(plan, prompts, report=report, journal=kept).latent, whole)
    assert any("is not saved" in warning for warning in report.warnings) and kept.saved is None


def test_a_sampled_run_is_on_disk_before_the_decode_and_removed_after_it(
    shared: WanPipeline, plan: RunPlan, prompts: Conditioning, whole: Tensor, journal: MakeJournal
) -> None:
    kept = journal(save_seconds=1e9)
    shared.sample(plan, prompts, journal=kept)
    assert read_state(kept.file.path).is_sampled
    assert torch.equal(resumed(shared, plan, prompts, kept.file.path), whole)
    kept.discard()
    assert not kept.file.path.exists()


@pytest.mark.parametrize("chunk", [0, 1])
def test_out_of_memory_while_decoding_takes_smaller_tiles(
    shared: WanPipeline, plan: RunPlan, monkeypatch, chunk: int
) -> None:
    latent = torch.randn(1, 16, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.cat(list(shared.decode_chunks(plan, latent)), dim=2)
    decode, tiles = shared._vae.decode_chunks, []

    def once(latent: Tensor, tile: Tile | None, hooks: Silent) -> Iterator[Tensor]:
        tiles.append(tile)
        for done, each in enumerate(decode(latent, tile, hooks)):
            if done == chunk and tile is None:
                out_of_memory()
            yield each

    monkeypatch.setattr(shared._vae, "decode_chunks", once)
    # So small a frame has no smaller tile by itself; one tile that covers it decodes the same numbers.
    smaller = Tile(height=32, width=32)
    monkeypatch.setattr("wan_core.pipeline.smaller_tiles", lambda *_: lambda tile: None if tile else smaller)
    report = Report()
    chunks = list(shared.decode_chunks(plan, latent, report=report))
    assert [each.shape[2] for each in chunks] == [1, 4] and tiles == [None, smaller]  # no frame twice
    assert torch.allclose(torch.cat(chunks, dim=2), expected, atol=1e-5)  # the same numbers: one tile covers all
    (rung,) = report.decisions
    assert rung.degraded and (rung.asked, rung.chosen) == ("whole frames", "tiles of 256x256 pixels")
    assert rung.reason == f"{chunk} frames were decoded"


def test_tiles_shrink_until_none_is_smaller(machine: Callable[..., Hardware]) -> None:
    plan = resolve_decode(preset("auto"), machine("h200"), WAN21_VAE, SIZE_720P)
    smaller, tile, found = smaller_tiles(plan, WAN21_VAE, SIZE_720P), None, []
    while tile := smaller(tile):
        found.append(decode_bytes(WAN21_VAE, SIZE_720P, 2, tile))
    assert len(found) >= 3 and found == sorted(found, reverse=True) and found[-1] < 1.5 * 2**30


@pytest.mark.parametrize("setting", [{"on_unsupported": "error"}, {"vae.tiling": "off"}])
def test_a_profile_that_forbids_it_gets_no_smaller_tiles(machine: Callable[..., Hardware], setting: dict) -> None:
    plan = resolve_decode(preset("auto").with_settings(setting), machine("h200"), WAN21_VAE, SIZE_720P)
    assert smaller_tiles(plan, WAN21_VAE, SIZE_720P)(None) is None


def test_a_decode_that_never_fits_ends_in_one_sentence(shared: WanPipeline, plan: RunPlan, monkeypatch) -> None:
    latent = torch.zeros(1, 16, 2, 6, 4)
    list(shared.decode_chunks(plan, latent))
    monkeypatch.setattr(shared._vae, "decode_chunks", lambda latent, tile, hooks: out_of_memory())
    with pytest.raises(OutOfMemoryError, match=r"VAE's decode \(whole frames\), and there is nothing left to step"):
        list(shared.decode_chunks(plan, latent))
