"""Where the weights go: the ladder from everything resident to as many streamed blocks as needed, and what each costs.

A rung that costs no time is taken before one that may: first the passes of guidance one after the other, then the
videos of a batch, and only then weights that leave the device. Pure, like the rest of the plan.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import get_args

from .errors import InputError, OutOfMemoryError
from .footprint import SLACK_BYTES
from .hardware import Hardware
from .memory_plan import Sampling
from .placement import Placement, PlacementPolicy, WeightStorage
from .predict import READ_RATE
from .profiles import OffloadSpec
from .report import Decision, Rejection, gib

# Bytes per second from page-locked memory over PCIe 4.0 x16, where this machine was not measured.
ASSUMED_BANDWIDTH = 25e9
# Left to the rest of the system when weights wait in the host's memory.
HOST_HEADROOM_BYTES = 4 << 30
# Free memory is never twice the same: the driver loads kernels, others come and go. What is built stays as it is while
# no more than this is short, or so many blocks more are streamed than need be; another placement reads the files again.
_STAY_BYTES = SLACK_BYTES // 2
_FEW_BLOCKS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How a step is cut into forwards: the passes of guidance, and the videos of the batch that run at once."""

    guidance: str
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is to be placed. sampling: what a split takes; splits: those allowed, the preferred one first.

    passes: forwards of a step, for one video. seconds: of computing in one of them, `None` where it is not known.
    aside: bytes that must stay free beside it. current: the placement of experts that are built already. storage: what
    the weights are kept in.
    """

    sampling: Callable[[Split], Sampling]
    splits: tuple[Split, ...]
    passes: int
    seconds: float | None
    aside: int = 0
    current: Placement | None = None
    storage: WeightStorage = "compute"

    def needed(self, placement: Placement, split: Split) -> int:
        return self.sampling(split).needed(placement) + self.aside


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What was decided, and why."""

    placement: Placement
    split: Split
    sampling: Sampling
    decision: Decision
    warnings: tuple[str, ...]


def within_budget(asked: OffloadSpec, hardware: Hardware) -> Hardware:
    """The machine with no more free memory than the profile's budget allows; a budget is for a GPU's memory."""
    if asked.budget_bytes is None or not hardware.is_cuda:
        return hardware
    return replace(hardware, free_memory=min(hardware.free_memory, asked.budget_bytes))


def place(asked: OffloadSpec, demand: Demand, hardware: Hardware) -> Placed:
    """The best placement that fits into the free memory, or the current one where that is about as good.

    Raises `OutOfMemoryError` where nothing fits.
    """
    if staying := _stay(asked, demand, hardware):
        return staying
    short: dict[str, int] = {}
    for placement, split in _rungs(asked, demand, hardware):
        missing = demand.needed(placement, split) - hardware.free_memory
        if missing <= 0:
            return _placed(placement, split, asked, demand, hardware, short)
        short[placement.policy] = min(short.get(placement.policy, missing), missing)
    policy, missing = min(short.items(), key=lambda item: item[1])
    raise OutOfMemoryError(
        f"this run needs {gib(hardware.free_memory + missing)} on {hardware.device} with placement {policy!r}, "
        f"{gib(missing)} more than {_free(asked, hardware)}"
    )


def _stay(asked: OffloadSpec, demand: Demand, hardware: Hardware) -> Placed | None:
    """The current placement, where it is allowed, fits but for a little, and no better one would."""
    current = demand.current
    if (
        current is None
        or current.storage != demand.storage
        or asked.num_streamed not in (None, current.streamed_blocks)
    ):
        return None
    for placement, split in _rungs(asked, demand, hardware):
        if placement.policy == current.policy and current.streamed_blocks <= placement.streamed_blocks + _FEW_BLOCKS:
            if demand.needed(current, split) <= hardware.free_memory + _STAY_BYTES:
                return _placed(current, split, asked, demand, hardware, {})
        elif demand.needed(placement, split) <= hardware.free_memory:
            return None
    return None


def _placed(
    placement: Placement,
    split: Split,
    asked: OffloadSpec,
    demand: Demand,
    hardware: Hardware,
    short: Mapping[str, int],
) -> Placed:
    needed = demand.needed(placement, split)
    reasons = (f"{gib(needed)} of {_free(asked, hardware)}", *_costs(placement, split, demand, hardware))
    decision = Decision(
        topic="placement",
        asked=asked.policy,
        chosen=placement.policy,
        reason="; ".join(reasons),
        rejected=tuple(Rejection(name=name, reason=f"{gib(missing)} short") for name, missing in short.items()),
    )
    sampling = demand.sampling(split)
    shortage = _shortage(sampling, placement, hardware) if hardware.is_cuda else None
    warnings = () if shortage is None else (shortage,)
    return Placed(placement=placement, split=split, sampling=sampling, decision=decision, warnings=warnings)


def _rungs(asked: OffloadSpec, demand: Demand, hardware: Hardware) -> Iterator[tuple[Placement, Split]]:
    """What is tried, in order."""
    if not hardware.is_cuda:
        policies = ("resident",)  # on a CPU the host is the device: there is nowhere else for an idle expert
    elif asked.num_streamed is not None:
        policies = ("stream",)
    else:
        policies = get_args(PlacementPolicy) if asked.policy == "auto" else (asked.policy,)
    for policy in policies:
        # Weights that move follow the calls of one stream.
        splits = tuple(cut for cut in demand.splits if policy == "resident" or cut.guidance != "two-stream")
        if policy == "stream":
            yield from _streamed(asked.num_streamed, replace(demand, splits=splits), hardware.free_memory)
        else:
            yield from ((Placement(policy=policy, storage=demand.storage), cut) for cut in splits)


def _streamed(num_blocks: int | None, demand: Demand, free: int) -> Iterator[tuple[Placement, Split]]:
    """Streaming of `num_blocks` blocks, else of the fewest that fit; of all of them where not even that fits."""
    if num_blocks is not None:
        limit = demand.sampling(demand.splits[0]).weights.num_blocks
        if num_blocks > limit:
            raise InputError(f"offload.streamed_blocks is {num_blocks}, expected auto or at most {limit}, all blocks")
        asked = Placement(policy="stream", streamed_blocks=num_blocks, storage=demand.storage)
        yield from ((asked, split) for split in demand.splits)
        return
    ways = [(*_fewest(demand.sampling(split), free - demand.aside), index) for index, split in enumerate(demand.splits)]
    _, blocks, index = min(ways)
    yield Placement(policy="stream", streamed_blocks=blocks, storage=demand.storage), demand.splits[index]


def _fewest(sampling: Sampling, free: int) -> tuple[int, int]:
    """The bytes that are missing, none where it fits, and the fewest streamed blocks with which so few are missing."""
    total = sampling.weights.num_blocks
    for blocks in range(1, total):
        if sampling.needed(Placement(policy="stream", streamed_blocks=blocks)) <= free:
            return 0, blocks
    return max(sampling.needed(Placement(policy="stream", streamed_blocks=total)) - free, 0), total


def _costs(placement: Placement, split: Split, demand: Demand, hardware: Hardware) -> Iterator[str]:
    """What a placement costs in time, for people."""
    if placement.policy == "resident":
        return
    sampling = demand.sampling(split)
    weights, rate = sampling.weights, hardware.host_bandwidth or ASSUMED_BANDWIDTH
    at = f"at {rate / 1e9:.0f} GB/s ({'measured' if hardware.host_bandwidth else 'assumed'})"
    if placement.streamed_blocks:
        streamed = weights.streamed(placement.streamed_blocks)
        yield (
            f"{placement.streamed_blocks} of {weights.num_blocks} blocks pass through two buffers: {gib(streamed)} a "
            f"forward, {streamed / rate:.2g} s {at}{_hidden(streamed / rate, placement, split, demand)}"
        )
    else:
        yield f"the switch brings {gib(weights.total)}, {weights.total / rate:.2g} s {at}, hidden behind a step"
    if _shortage(sampling, placement, hardware) is None:
        yield f"{gib(sampling.host_bytes(placement))} wait in the host's memory, page-locked"


def _shortage(sampling: Sampling, placement: Placement, hardware: Hardware) -> str | None:
    """What a host with too little memory costs, for people."""
    waiting, room = sampling.host_bytes(placement), max(hardware.host_free_memory - HOST_HEADROOM_BYTES, 0)
    if (missing := waiting - room) <= 0:
        return None
    return (
        f"the host's memory has room for {gib(room)} of the {gib(waiting)} of weights that wait there; the rest is "
        f"read from the file when it is needed, {missing / READ_RATE:.2g} s at {READ_RATE / 1e9:.0f} GB/s (assumed)"
    )


def _hidden(transfer: float, placement: Placement, split: Split, demand: Demand) -> str:
    """How a transfer compares with the computing that it runs beside."""
    if demand.seconds is None:
        return ""
    computing = demand.seconds * split.batch * (demand.passes if split.guidance == "batched" else 1)
    beside = f" beside {computing:.2g} s of computing"
    return f"{beside}, hidden" if transfer <= computing else f"{beside}, {transfer - computing:.2g} s longer"


def _free(asked: OffloadSpec, hardware: Hardware) -> str:
    is_bound = asked.budget_bytes == hardware.free_memory
    return f"the {gib(hardware.free_memory)} {'that the profile allows' if is_bound else 'free'}"
