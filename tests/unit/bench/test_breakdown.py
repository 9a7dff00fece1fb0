"""The parts of a profiled run: they add up, on a real model on the CPU and on invented events of a GPU."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType

from wan_core.bench import operations
from wan_core.bench.breakdown import Breakdown, Work, add_up, break_down, place, places, works
from wan_core.bench.operations import PREFIX
from wan_core.bench.ours import ProfileCandidate
from wan_core.bench.task import TINY_TRANSFORMER, Facts, Prepared, Task
from wan_core.profiles import preset
from wan_core.recipes import VideoSize


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    task = Task(size=VideoSize(width=64, height=64, num_frames=5), device="cpu", transformer=TINY_TRANSFORMER)
    return ProfileCandidate("cpu", preset("cpu")).prepare("step", task)


def test_the_parts_of_a_real_step_add_up_to_the_whole(prepared):
    # The stillest of three: what else runs on the machine makes gaps.
    breakdown = min((break_down(prepared, "cpu")[0] for _ in range(3)), key=lambda each: each.idle / each.whole)
    assert sum(breakdown.seconds.values()) + breakdown.idle == pytest.approx(breakdown.whole)
    # Python between the operators is inside the ranges, so next to nothing is idle or unknown.
    assert 0 <= breakdown.idle < 0.2 * breakdown.whole
    assert breakdown.grouped_by == "place"
    assert list(breakdown.seconds) == [
        operations.SELF_ATTENTION, operations.CROSS_ATTENTION, operations.LINEAR, operations.CASTS, operations.NORM,
        operations.ROPE, operations.ACTIVATION, operations.OUTSIDE, operations.GUIDANCE, operations.SOLVER,
    ]  # fmt: skip


def test_profiling_leaves_no_hooks(prepared):
    module = prepared.module
    break_down(prepared, "cpu")
    assert [name for name, child in module.named_modules() if child._forward_pre_hooks or child._forward_hooks] == []


def test_a_compiled_module_is_not_hooked_and_goes_by_its_kernels(prepared):
    compiled = Prepared(
        run=prepared.run, module=prepared.module, facts=Facts(summary="", dtype="float32"), is_compiled=True
    )
    breakdown, _ = break_down(compiled, "cpu")
    assert breakdown.grouped_by == "kernel"
    assert {operations.ANY_ATTENTION, operations.LINEAR, operations.SOLVER} <= breakdown.seconds.keys()
    assert operations.ROPE not in breakdown.seconds


def test_a_module_that_fails_closes_its_ranges():
    class Failing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no kernel")

    blocks = nn.ModuleDict({"blocks": nn.ModuleList([Failing()])})
    with torch.profiler.profile() as profiler, place("outermost"), places(blocks):
        with pytest.raises(RuntimeError, match="no kernel"):
            blocks["blocks"][0](torch.ones(2))
        torch.ones(2).mul(3)
    (after,) = (event for event in profiler.events() if event.name == "aten::mul")
    assert after.cpu_parent.name == PREFIX + "outermost"


@dataclass
class Event:
    """What is read of the profiler's events."""

    name: str
    cpu_parent: "Event | None" = None
    kernels: list[SimpleNamespace] = field(default_factory=list)
    device_type: DeviceType = DeviceType.CPU
    is_user_annotation: bool = False
    microseconds: float = 0.0
    self_cpu_time_total: float = 0.0

    @property
    def time_range(self) -> SimpleNamespace:
        return SimpleNamespace(start=1000.0, end=1000.0 + self.microseconds)


def kernel(name: str, microseconds: float) -> SimpleNamespace:
    return SimpleNamespace(name=name, duration=microseconds)


def on_gpu(name: str, microseconds: float, *, is_range: bool = False) -> Event:
    return Event(name, device_type=DeviceType.CUDA, microseconds=microseconds, is_user_annotation=is_range)


def test_kernels_on_a_gpu_are_counted_once_with_what_is_around_them():
    attention = Event(PREFIX + "self", is_user_annotation=True)
    # The profiler gives a range an event on the device too; it spans kernels and is none.
    attention.kernels = [kernel(PREFIX + "self", 500.0), kernel("launched from Python", 20.0)]
    linear = Event("aten::linear", cpu_parent=attention)
    product = Event("aten::addmm", cpu_parent=linear, kernels=[kernel("nvjet", 300.0), kernel("nvjet", 100.0)])
    events = [
        attention, linear, product,
        on_gpu("nvjet", 300.0), on_gpu("nvjet", 100.0), on_gpu("launched from Python", 20.0),
        on_gpu(PREFIX + "self", 500.0, is_range=True),
        # Launched past PyTorch: no operator knows of it.
        on_gpu("flash_fwd_sm90", 70.0),
    ]  # fmt: skip
    assert list(works(events, is_cuda=True)) == [
        Work(20e-6, "launched from Python", (PREFIX + "self",)),
        Work(300e-6, "nvjet", ("aten::addmm", "aten::linear", PREFIX + "self")),
        Work(100e-6, "nvjet", ("aten::addmm", "aten::linear", PREFIX + "self")),
        Work(pytest.approx(70e-6), "flash_fwd_sm90", ()),
    ]


def test_a_kernel_that_is_linked_twice_is_counted_once():
    product = Event("aten::addmm", kernels=[kernel("nvjet", 300.0)])
    launch = Event("cudaLaunchKernelExC", cpu_parent=product, kernels=[kernel("nvjet", 300.0)])
    other = Event("aten::mul", kernels=[kernel("nvjet", 300.0)])
    found = list(works([product, launch, other, on_gpu("nvjet", 300.0)], is_cuda=True))
    assert [work.around for work in found] == [("aten::addmm",), ("aten::mul",)]
    assert sum(work.seconds for work in found) == pytest.approx(300e-6)


def test_what_no_kernel_fills_is_idle():
    found = [Work(0.5, "nvjet", ()), Work(0.3, "triton_poi_fused_gelu", ())]
    breakdown = add_up(found, 1.0, is_compiled=True)
    assert breakdown.seconds == {operations.LINEAR: 0.5, operations.FUSED: 0.3}
    assert breakdown.to_dict() == {
        "grouped_by": "kernel",
        "seconds": {operations.LINEAR: 0.5, operations.FUSED: 0.3, "idle": pytest.approx(0.2)},
        "whole": 1.0,
        "busy": pytest.approx(0.8),
    }


def test_streams_beside_each_other_are_less_than_idle():
    assert Breakdown(seconds={operations.LINEAR: 1.5}, whole=1.0, grouped_by="place").idle == -0.5
