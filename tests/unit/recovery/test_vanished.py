"""A model's file that vanishes in the middle of a run that still reads from it: one sentence, and nothing lost."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.recovery.conftest import NUM_STEPS, REQUEST, SIZE, StepRecorder
from wan_core.checkpoint.find import find_model
from wan_core.errors import CheckpointError
from wan_core.pipeline import RunPlan, WanPipeline
from wan_core.placement import Placement
from wan_core.recovery.journal import Journal
from wan_core.sample import Conditioning
from wan_core.specs import Expert

PLACEMENTS = {
    "loading at the switch": Placement(policy="experts"),
    "streaming": Placement(policy="stream", streamed_blocks=3),
}


class TakeAway(StepRecorder):
    """Moves files out of the way once a step is done."""

    def __init__(self, step: int, files: dict[Path, Path]) -> None:
        super().__init__()
        self._step, self._files = step, files

    def on_step(self, event: object) -> None:
        super().on_step(event)
        if event.index == self._step:
            for here, there in self._files.items():
                here.rename(there)


def placed(pipeline: WanPipeline, placement: Placement) -> RunPlan:
    plan = pipeline.plan(REQUEST, SIZE)
    binding = replace(plan.experts.binding, placement=placement)
    return replace(plan, experts=replace(plan.experts, binding=binding))


@pytest.mark.parametrize("shared", ["cpu"], indirect=True)
@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_vanished_file(
    shared: WanPipeline, prompts: Conditioning, whole: torch.Tensor, model: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(model, tmp_path / "model")
    files = {path: path.with_suffix(".away") for path in (tmp_path / "model" / "diffusion_models").iterdir()}
    pipeline = WanPipeline(find_model(tmp_path / "model"), device="cpu")
    plan = placed(pipeline, PLACEMENTS[name])
    pipeline._build_experts(plan.experts)
    for weights in pipeline._experts.weights.values():
        weights.host_room = lambda: 0  # nothing waits on the host: all comes from the file
    hooks, journal = TakeAway(1, files), Journal()
    with pytest.raises(CheckpointError) as error:
        pipeline.sample(plan, prompts, hooks=hooks, journal=journal)
    assert len(str(error.value).splitlines()) == 1
    done = len(hooks.steps)
    assert journal.position.next_step == done
    # The other expert may be read at the switch, or already while the last step before it is computed.
    num_high = plan.experts.split.count(Expert.HIGH)
    assert done in ((2,) if name == "streaming" else (num_high - 1, num_high))
    for here, there in files.items():
        there.rename(here)
    again = StepRecorder()
    latent = pipeline.sample(plan, prompts, hooks=again, journal=Journal(position=journal.position)).latent
    assert torch.equal(latent, whole) and again.steps == list(range(done, NUM_STEPS))
