"""Steps on a GPU: the host never waits for the device between them, and guidance gives the same on two streams."""

from pathlib import Path

import pytest
import torch

from wan_core.checkpoint.find import find_model
from wan_core.hooks import Silent, StepEvent
from wan_core.pipeline import WanPipeline
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.sample import Conditioning, SampleResult

pytestmark = pytest.mark.gpu

SIZE = VideoSize(width=128, height=128, num_frames=17)
# The high-noise expert alone: a switch moves weights, and waits.
REQUEST = SampleRequest(recipe=recipe("official").with_changes(num_steps=6, boundary=0.001), seed=7)


def run(model: Path, hooks: Silent | None = None, **settings: str) -> SampleResult:
    changed = {key.replace("__", "."): value for key, value in settings.items()}
    pipeline = WanPipeline(find_model(model), preset("auto").with_settings(changed), device="cuda:0")
    positive, negative = torch.randn(2, 1, 9, pipeline.pair.spec.text_dim, generator=torch.Generator().manual_seed(0))
    conditioning = Conditioning(positive=positive, negative=negative)
    return pipeline.sample(pipeline.plan(REQUEST, SIZE), conditioning, hooks=hooks)


class NoWaiting(Silent):
    """Between the first step, which makes tables and compiles, and the last, whatever waits for the device fails."""

    def on_step(self, event: StepEvent) -> None:
        is_last = event.index == event.num_steps - 1
        torch.cuda.set_sync_debug_mode("default" if is_last else "error")


@pytest.mark.parametrize("execution", ["sequential", "batched", "two-stream"])
def test_nothing_waits_for_the_device(miniature, execution):
    try:
        run(miniature, NoWaiting(), guidance__execution=execution)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_two_streams_give_the_same_every_time(miniature):
    sequential = run(miniature, guidance__execution="sequential").latent
    for _ in range(5):
        assert torch.equal(run(miniature, guidance__execution="two-stream").latent, sequential)


def test_fused_kernels_differ_by_rounding(miniature):
    fused, plain = (run(miniature, fusion__kernels=kernels) for kernels in ("triton", "off"))
    assert any("fused kernels: triton" in str(decision) for decision in fused.report.decisions)
    assert (fused.latent - plain.latent).norm() < 0.05 * plain.latent.norm()
