"""A small model, one short run of it, and faults to put into it."""

import gc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from wan_core.checkpoint.find import find_model
from wan_core.hooks import Silent
from wan_core.pipeline import RunPlan, WanPipeline
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.recovery.journal import Journal, StateFile
from wan_core.report import Report
from wan_core.sample import Conditioning
from wan_core.specs import Expert

SIZE = VideoSize(width=32, height=48, num_frames=5)
REQUEST = SampleRequest(recipe=recipe("official").with_changes(num_steps=8, shift=5.0), seed=7)
NUM_STEPS = 8
# Both experts run, which is all that matters to what is held afterwards.
SHORT_REQUEST = SampleRequest(recipe=recipe("official").with_changes(num_steps=2, shift=5.0), seed=7)


class Fault(Exception):  # noqa: N818 (what a test throws in, not an error of ours)
    """Something that nobody foresaw."""


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def shared(request: pytest.FixtureRequest) -> WanPipeline:
    """One pipeline for all: what a fault leaves behind in it, the next test finds. "miniature": it, on the CPU."""
    folder: Path = request.getfixturevalue("model" if request.param == "cpu" else "miniature")
    return WanPipeline(find_model(folder), device="cuda" if request.param == "cuda" else "cpu")


@pytest.fixture(scope="session")
def rounding(whole: Tensor, shared: WanPipeline) -> float:
    """How far two runs on different kernels may be apart, as a norm: float32 on the CPU, bfloat16 on a card."""
    return whole.norm().item() * (1e-5 if shared.plan(REQUEST, SIZE).experts.binding.dtype == "float32" else 5e-2)


@pytest.fixture(scope="session")
def prompts(shared: WanPipeline) -> Conditioning:
    return shared.encode(shared.plan(REQUEST, SIZE), "a red circle", "", report=Report())


@pytest.fixture(scope="session")
def whole(shared: WanPipeline, prompts: Conditioning) -> Tensor:
    """The latent of the run that nothing happened to, after which everything is loaded."""
    plan = shared.plan(REQUEST, SIZE)
    latent = shared.sample(plan, prompts).latent
    list(shared.decode_chunks(plan, latent))
    return latent


@pytest.fixture
def plan(shared: WanPipeline) -> RunPlan:
    return shared.plan(REQUEST, SIZE)


@pytest.fixture
def journal(shared: WanPipeline, prompts: Conditioning, plan: RunPlan, tmp_path: Path) -> Callable[..., Journal]:
    """Makes a journal that writes after every step, of the usual run or of another one."""

    def make(path: Path = tmp_path / "run.safetensors", save_seconds: float = 0.0, plan: RunPlan = plan) -> Journal:
        facts = shared.facts(plan, prompts, driver={})
        embeddings = {"positive": prompts.positive, "negative": prompts.negative}
        num_steps = len(plan.experts.split)
        return Journal(
            StateFile(path=path, facts=facts, num_steps=num_steps, prompts=embeddings, save_seconds=save_seconds)
        )

    return make


class StepRecorder(Silent):
    """Hooks that count steps."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step(self, event: object) -> None:
        self.steps.append(event.index)


@pytest.fixture
def inject(shared: WanPipeline, whole: Tensor) -> Iterator[Callable[..., Callable[[], None]]]:
    """Puts a fault behind a block, at one of its calls counted from now on, or at all (`None`); returns its end.

    fault: raises, or returns what takes the place of the block's output. It outlives a new build of the experts.
    """
    handles = []

    def put(
        fault: Callable[[Tensor], Tensor | None], *, expert: Expert, block: int, call: int | None
    ) -> Callable[[], None]:
        calls = 0

        def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
            nonlocal calls
            if module is not shared._experts.transformers[expert].blocks[block]:
                return None
            calls += 1
            return fault(output) if call in (calls, None) else None

        handles.append(nn.modules.module.register_module_forward_hook(hook))
        return handles[-1].remove

    yield put
    for handle in handles:
        handle.remove()


def held_bytes(pipeline: WanPipeline, prompts: Conditioning) -> int:
    """Bytes that are held after a run, all parts loaded: on a card what is allocated there, else all tensors."""
    plan = pipeline.plan(SHORT_REQUEST, SIZE)
    pipeline.sample(plan, prompts)
    # The ladder sends every part to the host, and each comes back when it is next needed, which is no leak.
    for part in (pipeline._text, pipeline._vae):
        part.weights.to_device()
    gc.collect()
    if plan.experts.binding.device.startswith("cuda"):
        return torch.cuda.memory_allocated()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # some of torch's own objects complain when they are looked at
        # By type and not by isinstance: the compiler's fake tensors, left by other tests, have no memory to ask for.
        tensors = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter) and not each.is_meta]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())


def out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB. And much more text.")
