"""Placements against each other: bit for bit the same, whatever is where, and nothing left behind.

Every scene runs with copies that are done at once and with copies that are done at the last moment.
"""

import threading

import pytest
import torch
from torch import Tensor

from tests.unit.offload.modules import DIM, LateLane, Source, Tower, tower
from wan_core.offload.lane import CopyLane
from wan_core.offload.residency import KeepResident, TakeTurns
from wan_core.offload.weights import Place, Weights

NUM_BLOCKS = 5
ROOM = 1 << 30


def silent(what: str, done: int, total: int) -> None: ...


class Run:
    """What sampling does with two towers: `steps` of each, so many forwards in a step, told of the switch before."""

    def __init__(self, residency: KeepResident | TakeTurns, weights: dict[str, Weights], *, forwards: int = 2) -> None:
        self.residency = residency
        self.towers: dict[str, Tower] = {name: each.module for name, each in weights.items()}
        self.forwards = forwards

    def all(self, steps: str = "aaabb", x: Tensor | None = None) -> Tensor:
        x, active = torch.linspace(-1, 1, DIM) if x is None else x, None
        with torch.inference_mode():
            try:
                for index, name in enumerate(steps):
                    if name != active:
                        text, active = self.begin(name, steps), name
                    if steps[index + 1 :] and steps[index + 1] != name:
                        self.residency.prepare(steps[index + 1], self.forwards)
                    x = self.step(name, x, text)
            finally:
                self.residency.release()
                assert not self.is_copying()
        return x

    def is_copying(self) -> bool:
        """Whether anything is still being copied to memory that somebody else may get."""
        return bool(getattr(getattr(self.residency, "_lane", None), "waiting", ()))

    def begin(self, name: str, later: str) -> list[Tensor]:
        self.residency.activate(name, silent, later=later)
        with self.residency.single_layers(name):
            return self.towers[name].prepare(torch.linspace(0, 1, DIM))

    def step(self, name: str, x: Tensor, text: list[Tensor]) -> Tensor:
        for _ in range(self.forwards):
            x = self.towers[name](x, text)
        return x


def two(*, streamed: int = 0, room: int = ROOM) -> tuple[dict[str, Weights], list[Source]]:
    towers = {name: tower(NUM_BLOCKS, seed, streamed=streamed, room=room) for seed, name in enumerate("ab")}
    return {name: weights for name, (weights, _) in towers.items()}, [source for _, source in towers.values()]


def resident(forwards: int = 2, steps: str = "aaabb") -> Tensor:
    weights, _ = two()
    return Run(KeepResident(weights), weights, forwards=forwards).all(steps)


@pytest.fixture(params=[CopyLane, LateLane], ids=["at once", "at the last moment"])
def make_lane(request: pytest.FixtureRequest) -> type:
    return request.param


def is_clean(weights: dict[str, Weights]) -> bool:
    """No hook is left, and tensors are where the weights say that they are."""
    hooks = [
        hook
        for each in weights.values()
        for module in each.module.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    held = {
        piece.data_ptr()
        for each in weights.values()
        for piece in (*each._on_device.values(), *(memory.data for memory in each._on_host.values()))
    }
    stray = [
        name
        for each in weights.values()
        for name, parameter in each.module.named_parameters()
        if not parameter.is_meta and parameter.untyped_storage().data_ptr() not in held
    ]
    return not hooks and not stray


@pytest.mark.parametrize("forwards", [1, 2])
@pytest.mark.parametrize("streamed", [0, 1, 2, 3, NUM_BLOCKS])
@pytest.mark.parametrize("room", [ROOM, 0, 3000], ids=["copies", "files", "some copies"])
def test_all_placements_compute_the_same(make_lane, room, streamed, forwards):
    weights, _ = two(streamed=streamed, room=room)
    run = Run(TakeTurns(weights, make_lane), weights, forwards=forwards)
    expected = resident(forwards)
    assert torch.equal(run.all(), expected)
    assert is_clean(weights)
    assert torch.equal(run.all(), expected), "a second run starts with the other one's weights on the device"
    assert weights["a"].bytes_on_device == 0 and weights["b"].bytes_on_device == weights["b"].resident_bytes


@pytest.mark.parametrize("steps", ["a", "b", "ab", "aab", "abab"])
def test_any_order_of_steps(make_lane, steps):
    for streamed in (0, 2, NUM_BLOCKS):
        weights, _ = two(streamed=streamed)
        assert torch.equal(Run(TakeTurns(weights, make_lane), weights).all(steps), resident(steps=steps))


def test_the_switch_takes_no_memory(poison):
    weights, _ = two()
    run = Run(TakeTurns(weights), weights)
    run.all("a")
    poison.clear()
    run.all("ab")
    rest_of_b = weights["b"].resident[0].nbytes  # it comes when that of a is gone
    assert [piece.nbytes for piece in poison] == [rest_of_b]


def test_blocks_arrive_while_the_last_forward_runs():
    weights, _ = two()
    run, there = Run(TakeTurns(weights), weights), []
    text = run.begin("a", "ab")
    run.residency.prepare("b", 2)
    run.step("a", torch.zeros(DIM), text)
    there = [unit.block for unit in weights["b"].resident if weights["b"].is_on_device(unit)]
    assert there == list(range(NUM_BLOCKS))
    assert weights["a"].bytes_on_device == weights["a"].resident[0].nbytes
    run.residency.release()


def test_without_being_told_the_switch_is_right_too(make_lane):
    weights, _ = two(streamed=2)
    run = Run(TakeTurns(weights, make_lane), weights)
    run.residency.prepare = lambda name, num_forwards: None
    assert torch.equal(run.all(), resident())


def test_a_step_can_be_done_again_after_its_weights_made_room(make_lane):
    for streamed in (0, 1, 2, NUM_BLOCKS):
        weights, _ = two(streamed=streamed)
        run = Run(TakeTurns(weights, make_lane), weights)
        x = torch.linspace(-1, 1, DIM)
        with torch.inference_mode():
            text = run.begin("a", "ab")
            run.residency.prepare("b", 2)
            first = run.step("a", x, text)
            again = run.step("a", x, run.begin("a", "ab"))
            run.residency.prepare("b", 2)
            third = run.step("a", x, text)
            low = run.step("b", third, run.begin("b", "ab"))
        run.residency.release()
        assert torch.equal(first, again) and torch.equal(first, third)
        assert torch.equal(low, resident(steps="ab")) and is_clean(weights)


class StopHereError(Exception):
    """An interrupt, or anything else that ends a run."""


@pytest.mark.parametrize("streamed", [0, 1, 2, 3, NUM_BLOCKS])
def test_stopping_anywhere_leaves_nothing_and_the_next_run_is_right(make_lane, streamed):
    weights, _ = two(streamed=streamed)
    run, expected, calls = Run(TakeTurns(weights, make_lane), weights), resident(), 0
    total = 2 * 5 * NUM_BLOCKS
    for stop_at in range(0, total, 3):
        calls = 0

        def count(block: object, inputs: object, stop_at: int = stop_at) -> None:
            nonlocal calls
            calls += 1
            if calls > stop_at:
                raise StopHereError

        blocks = [block for each in weights.values() for block in each.module.blocks]
        handles = [block.register_forward_pre_hook(count) for block in blocks]
        with pytest.raises(StopHereError):
            run.all()
        for handle in handles:
            handle.remove()
        assert is_clean(weights), stop_at
    assert torch.equal(run.all(), expected)


@pytest.mark.parametrize("streamed", [0, 3])
def test_a_file_that_vanishes_while_streaming_ends_the_run_cleanly(streamed):
    weights, sources = two(streamed=streamed, room=0)
    run = Run(TakeTurns(weights), weights)
    text = run.begin("a", "ab")
    run.residency.prepare("b", 1)
    for source in sources:
        source.broken = True
    # A switch that cannot be prepared is met again when it comes.
    with pytest.raises(OSError, match="gone"):
        run.towers["a"](torch.zeros(DIM), text)
        run.begin("b", "ab")
    run.residency.release()
    assert is_clean(weights)
    for source in sources:
        source.broken = False
    assert torch.equal(run.all(), resident())


@pytest.mark.parametrize("steps", ["aaabbb", "ab"])
def test_streaming_takes_the_room_of_the_one_that_does_not_run(make_lane, steps):
    """Room for the copies of one: it is read once when its turn comes, and not in every forward."""
    weights, sources = two(streamed=4)
    room = 4 * weights["a"].streamed[0].nbytes
    for each in weights.values():
        each.host_room = lambda: room - sum(other.bytes_on_host for other in weights.values())
    run = Run(TakeTurns(weights, make_lane), weights)
    assert torch.equal(run.all(steps), resident(steps=steps))
    assert (weights["a"].bytes_on_host, weights["b"].bytes_on_host) == (0, room)
    reads = [len(source.reads) for source in sources]
    assert torch.equal(run.all(steps), resident(steps=steps))
    # Once for all of it; and of b two blocks more, under way to the buffers when the switch came.
    all_of_it, ahead = len(list(weights["a"].module.parameters())), 2 * len(weights["a"].streamed[0].slots)
    assert len(sources[0].reads) - reads[0] == all_of_it
    assert all_of_it <= len(sources[1].reads) - reads[1] <= all_of_it + 2 * ahead


def test_a_thread_reads_while_the_host_goes_on():
    weights, _ = two(streamed=3, room=0)
    threads = set()
    for each in weights.values():
        fill = each._fill

        def noted(names: object, on_bytes: object, fill: object = fill) -> None:
            threads.add(threading.current_thread().name.partition("_")[0])
            fill(names, on_bytes)

        each._fill = noted
    run = Run(TakeTurns(weights), weights)
    assert torch.equal(run.all(), resident())
    assert threads == {"MainThread", "weights"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("weights")], "it ends with the run"


def test_only_what_a_run_needs_is_read():
    weights, sources = two()
    Run(TakeTurns(weights), weights).all("bb")
    assert not sources[0].reads and weights["a"].place is Place.FILE


def test_resident_modules_are_all_there_before_the_first_step():
    weights, _ = two()
    weights["a"].copy_to_host(weights["a"].units)
    KeepResident(weights).activate("a", silent, later="ab")
    assert [each.place for each in weights.values()] == [Place.DEVICE, Place.DEVICE]
    assert all(each.bytes_on_host == 0 for each in weights.values())


def test_evicted_between_two_runs(make_lane):
    weights, sources = two(streamed=2)
    run = Run(TakeTurns(weights, make_lane), weights)
    run.all()
    reads = [len(source.reads) for source in sources]
    for each in weights.values():
        each.leave_device()
    assert torch.equal(run.all(), resident()) and [len(source.reads) for source in sources] == reads
    for each in weights.values():
        each.drop()
    assert torch.equal(run.all(), resident())


def test_buffers_are_given_back(poison):
    weights, _ = two(streamed=3)
    residency = TakeTurns(weights)
    assert residency.buffer_bytes == 2 * weights["a"].streamed[0].nbytes
    Run(residency, weights).all()
    assert residency._stream is None
