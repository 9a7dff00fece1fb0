"""How much of the time of a profiler's trace the GPU had something to do.

    python -m benchmarks.busy TRACE.json [--at-least 0.97]
    python -m benchmarks.busy TRACE.json --run exact [--size 832x480x81 --steps 10]

The second form runs so many steps of a profile first, one after the other as a run does, on random weights at real
size, and writes their trace; only the device is traced, so that the host is not slowed down.

Kernels, copies and fills of all streams are merged, so what runs side by side counts once. The time is that from the
first kernel's start to the last one's end; the longest gaps are listed with what ran before and after them. The exit
status is 1 where the share is below the limit.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

_ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A time in which nothing ran, in microseconds, between two kernels."""

    length: float
    after: str
    before: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """Microseconds from the first to the last piece of work, and those in which there was any."""

    whole: float
    working: float
    gaps: tuple[Gap, ...]

    @property
    def share(self) -> float:
        return self.working / self.whole


def busy(events: list[dict]) -> Busy:
    """Of the events of a trace in the Chrome format; raises `ValueError` where none is a GPU's."""
    pieces = sorted(
        (event["ts"], event["ts"] + event["dur"], event["name"])
        for event in events
        if event.get("cat") in _ON_DEVICE and event.get("dur")
    )
    if not pieces:
        raise ValueError("the trace has no work of a GPU")
    start, end, last = pieces[0]
    working, gaps = end - start, []
    for begin, finish, name in pieces[1:]:
        if begin > end:
            gaps.append(Gap(length=begin - end, after=last, before=name))
        working += max(finish - max(begin, end), 0.0)
        if finish > end:
            end, last = finish, name
    return Busy(whole=end - start, working=working, gaps=tuple(sorted(gaps, key=lambda gap: -gap.length)))


def trace(path: Path, profile: str, size: str, steps: int) -> None:
    """Write the trace of some steps, without waiting between them."""
    import torch

    from wan_core.bench.choose import contestant
    from wan_core.bench.task import Task
    from wan_core.recipes import VideoSize

    width, height, num_frames = map(int, size.split("x"))
    task = Task(size=VideoSize(width=width, height=height, num_frames=num_frames), device="cuda:0")
    prepared = contestant(profile).prepare("step", task)
    for _ in range(2):
        prepared.run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            prepared.run()
        torch.cuda.synchronize()
    profiler.export_chrome_trace(str(path))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--at-least", type=float, default=0.97)
    parser.add_argument("--run", metavar="PROFILE", help="write the trace first")
    parser.add_argument("--size", default="832x480x81")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    if arguments.run:
        trace(arguments.trace, arguments.run, arguments.size, arguments.steps)
    found = busy(json.loads(arguments.trace.read_text(encoding="utf-8"))["traceEvents"])
    print(f"busy {found.share:.2%} of {found.whole / 1e6:.3f} s; {len(found.gaps):,} gaps, the longest:")
    for gap in found.gaps[:8]:
        print(f"  {gap.length / 1e3:8.3f} ms after {gap.after[:70]}, before {gap.before[:70]}")
    return 0 if found.share >= arguments.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
