"""A small model under every placement: the same latent, bit for bit, with LoRAs and after changes of strength."""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from miniature.architecture import TEXT_ENCODER
from tests.lora_files import write_lora
from tests.small_model import TRANSFORMER, write_small_model
from tests.unit.test_pipeline import Recorder
from wan_core import hardware
from wan_core.checkpoint.find import find_model
from wan_core.errors import CheckpointError, Interrupted
from wan_core.host_ram import HostRam
from wan_core.offload.weights import Weights
from wan_core.pipeline import RunPlan, WanPipeline
from wan_core.placement import Placement
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.report import Report
from wan_core.sample import Conditioning
from wan_core.specs import Expert

SIZE = VideoSize(width=16, height=16, num_frames=1)
# One step by each expert, of two passes through four blocks.
REQUEST = SampleRequest(recipe=recipe("official").with_changes(num_steps=2, shift=5.0), seed=7)
RESIDENT = Placement(policy="resident")
PLACEMENTS = [
    Placement(policy="experts"),
    Placement(policy="stream", streamed_blocks=2),
    Placement(policy="stream", streamed_blocks=TRANSFORMER.num_layers),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small_model")
    write_small_model(folder)
    return folder


@pytest.fixture(scope="module")
def conditioning(folder: Path) -> Conditioning:
    pipeline = WanPipeline(find_model(folder), device="cpu")
    return pipeline.encode(pipeline.plan(REQUEST, SIZE), "a red circle", "", report=Report())


@cache
def lora(folder: Path) -> Path:
    """The high-noise file of a pair, written beside a model."""
    path, _ = write_lora(folder / "loras", "kohya", TRANSFORMER, Expert.HIGH)
    write_lora(folder / "loras", "kohya", TRANSFORMER, Expert.LOW)
    return path


class Session:
    """One pipeline under one placement."""

    def __init__(self, folder: Path, conditioning: Conditioning, placement: Placement, application: str) -> None:
        profile = preset("cpu").with_settings({"lora.application": application})
        self.pipeline = WanPipeline(find_model(folder), profile, device="cpu")
        self._lora = lora(folder)
        self._conditioning = conditioning
        self._placement = placement

    def plan(self) -> RunPlan:
        plan = self.pipeline.plan(REQUEST, SIZE)
        return replace(plan, experts=replace(plan.experts, binding=self._placed(plan)))

    def _placed(self, plan: RunPlan) -> object:
        return replace(plan.experts.binding, placement=self._placement)

    def run(self, strength: float, hooks: Recorder | None = None) -> Tensor:
        self.pipeline.loras = ()
        if strength:
            self.pipeline.add_lora(self._lora, strength_high=strength, strength_low=-strength)
        return self.pipeline.sample(self.plan(), self._conditioning, hooks=hooks).latent


@pytest.fixture(scope="module", params=["beside", "merged"])
def application(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def resident(folder: Path, conditioning: Conditioning, application: str) -> dict[float, Tensor]:
    """What everything else is held to, by strength of the LoRA."""
    session = Session(folder, conditioning, Placement(policy="resident"), application)
    latents = {strength: session.run(strength) for strength in (0.0, 1.0, 0.5)}
    assert not torch.equal(latents[0.0], latents[1.0]) and not torch.equal(latents[1.0], latents[0.5])
    return latents


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda each: f"{each.policy} {each.streamed_blocks}")
def test_every_placement_gives_the_same_latent(folder, conditioning, placement, application, resident):
    placed = Session(folder, conditioning, placement, application)
    for strength in (0.0, 1.0, 0.5, 0.0):
        assert torch.equal(placed.run(strength), resident[strength]), strength


@pytest.mark.parametrize("placement", [RESIDENT, *PLACEMENTS], ids=lambda each: f"{each.policy} {each.streamed_blocks}")
def test_evicted_experts_come_back_the_same(folder, conditioning, placement, application, resident):
    session = Session(folder, conditioning, placement, application)
    session.run(1.0)
    for strength in (1.0, 0.5):
        held = session.pipeline._experts.weights.values()
        copies = [weights.bytes_on_host for weights in held]
        for weights in held:
            weights.leave_device()
        assert [weights.bytes_on_host for weights in held] == copies
        assert not any(weights.bytes_on_device for weights in held)
        assert torch.equal(session.run(strength), resident[strength]), strength
    assert any(copies) is (placement != RESIDENT)


def test_copies_that_are_held_need_no_room(folder, conditioning, monkeypatch):
    """Else the second run on a machine that they fill would be told that nothing fits."""
    monkeypatch.setattr(hardware, "host_ram", lambda: HostRam(total=64 << 30, free=8 << 30))
    session = Session(folder, conditioning, PLACEMENTS[0], "beside")
    assert session.pipeline._hardware().host_free_memory == 8 << 30
    session.run(0.0)
    copies = sum(weights.nbytes for weights in session.pipeline._experts.weights.values())
    assert session.pipeline._hardware().host_free_memory == (8 << 30) + copies


@pytest.mark.parametrize("placement", [RESIDENT, PLACEMENTS[0]], ids=lambda each: each.policy)
def test_room_for_the_decode_is_made_without_copies(folder, conditioning, placement):
    session = Session(folder, conditioning, placement, "beside")
    expected = session.run(1.0)
    held = session.pipeline._experts.weights.values()
    copies = [weights.bytes_on_host for weights in held]
    session.pipeline._move_experts_away()
    assert [weights.bytes_on_host for weights in held] == copies
    assert not any(weights.bytes_on_device for weights in held)
    assert torch.equal(session.run(1.0), expected)


@pytest.mark.parametrize("application", ["merged"], indirect=True)
@pytest.mark.parametrize("change", ["vanished", "changed"])
def test_a_file_that_is_not_the_same_after_an_eviction_is_a_sentence(tmp_path, conditioning, application, change):
    write_small_model(tmp_path)
    session = Session(tmp_path, conditioning, RESIDENT, application)
    expected = session.run(1.0)
    for weights in session.pipeline._experts.weights.values():
        weights.leave_device()
    file = find_model(tmp_path).low
    whole, stamp = file.read_bytes(), file.stat()
    if change == "vanished":
        file.unlink()
    else:
        file.write_bytes(whole + b" ")
    with pytest.raises(CheckpointError, match=file.name) as error:
        session.run(1.0)
    assert len(str(error.value).splitlines()) == 1
    file.write_bytes(whole)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert torch.equal(session.run(1.0), expected)


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda each: f"{each.policy} {each.streamed_blocks}")
def test_stopped_runs_leave_the_next_one_as_it_was(folder, conditioning, placement):
    session = Session(folder, conditioning, placement, "beside")
    expected = session.run(1.0)
    for stop_after in (3, 7, 8, 15):
        with pytest.raises(Interrupted):
            session.run(1.0, Recorder(stop_after=stop_after))
        assert torch.equal(session.run(1.0), expected), stop_after


def test_a_run_of_one_expert_reads_the_other_not_at_all(folder, conditioning):
    session = Session(folder, conditioning, Placement(policy="experts"), "beside")
    plan = session.plan()
    high_only = replace(plan.experts, split=(Expert.HIGH,) * len(plan.experts.split))
    hooks = Recorder()
    session.pipeline.sample(replace(plan, experts=high_only), conditioning, hooks=hooks)
    assert set(hooks.loaded) == {str(Expert.HIGH)}


def without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host has no room for a single copy."""
    original = Weights.__init__

    def init(weights: Weights, *args: object, **settings: object) -> None:
        original(weights, *args, **settings)
        weights.host_room = lambda: 0

    monkeypatch.setattr(Weights, "__init__", init)


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda each: f"{each.policy} {each.streamed_blocks}")
def test_without_room_on_the_host_the_files_will_do(
    folder, conditioning, placement, application, resident, monkeypatch
):
    without_room(monkeypatch)
    placed = Session(folder, conditioning, placement, application)
    assert all(torch.equal(placed.run(strength), resident[strength]) for strength in (1.0, 0.5))
    held = placed.pipeline._experts.weights.values()
    assert sum(weights.bytes_on_host for weights in held) == 0


class Vanishing(Recorder):
    """Takes a file away after some blocks."""

    def __init__(self, file: Path, after: int) -> None:
        super().__init__()
        self._file, self._after = file, after

    def should_stop(self) -> bool:
        if super().should_stop() or self.questions == self._after:
            self._file.rename(self._file.with_suffix(".away"))
        return False


@pytest.mark.parametrize("after", [3, 10], ids=["of this expert", "of the next"])
def test_a_file_that_vanishes_while_streaming_is_a_sentence(tmp_path, conditioning, after, monkeypatch):
    without_room(monkeypatch)
    write_small_model(tmp_path)
    files = find_model(tmp_path)
    file = files.high if after < 8 else files.low
    session = Session(tmp_path, conditioning, PLACEMENTS[-1], "beside")
    expected = session.run(0.0)
    with pytest.raises(CheckpointError, match=file.name):
        session.run(0.0, Vanishing(file, after))
    file.with_suffix(".away").rename(file)
    assert torch.equal(session.run(0.0), expected)


@pytest.mark.parametrize("streamed", [1, 2, 3, TEXT_ENCODER.num_layers])
def test_the_text_encoder_streams_its_blocks(folder, conditioning, streamed):
    pipeline = WanPipeline(find_model(folder), device="cpu")
    plan = pipeline.plan(REQUEST, SIZE)
    plan = replace(plan, text=replace(plan.text, streamed_blocks=streamed))
    encoded = pipeline.encode(plan, "a red circle", "", report=Report())
    assert torch.equal(encoded.positive, conditioning.positive)
    assert torch.equal(encoded.negative, conditioning.negative)
    weights = pipeline._text.weights
    assert len(weights.streamed) == streamed and weights.bytes_on_device == weights.resident_bytes
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in weights.module.blocks)


class NothingOnTheHost(TorchDispatchMode):
    """Stands for a GPU: what waits on the host is copied from, and computed with by nobody."""

    MOVES = ("copy_", "slice", "view", "_to_copy", "detach", "alias", "as_strided")

    def __init__(self, held: Callable[[], Iterable[Weights]]) -> None:
        super().__init__()
        self._held = held
        self.seen = 0

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func.overloadpacket.__name__ not in self.MOVES:
            host = {piece.data.data_ptr() for weights in self._held() for piece in weights._on_host.values()}
            for argument in args:
                if isinstance(argument, Tensor) and not argument.is_meta:
                    self.seen += 1
                    assert argument.untyped_storage().data_ptr() not in host, f"{func} of a tensor on the host"
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda each: f"{each.policy} {each.streamed_blocks}")
def test_what_waits_on_the_host_is_never_computed_with(folder, conditioning, placement):
    session = Session(folder, conditioning, placement, "beside")
    expected = session.run(1.0)
    with NothingOnTheHost(lambda: session.pipeline._experts.weights.values()) as device:
        assert torch.equal(session.run(1.0), expected)
    assert device.seen > 1000
