"""What a profiled run leaves behind where asked: a trace of the profiler, a snapshot of the device's memory.

Both are JSON. The trace opens in Perfetto or chrome://tracing. The snapshot holds what `torch.cuda.memory` tells of
segments, blocks and every allocation of the run, with the lines of Python that made them.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import profile

from ..files import replacing

# Allocations and frees that are remembered: some times those of a step.
_MAX_EVENTS = 200_000


def trace_path(path: Path, name: str | None) -> Path:
    """`path` for the first contestant, and one with its name in it for any other."""
    return path if name is None else path.with_stem(f"{path.stem}-{re.sub(r'[^0-9A-Za-z]+', '-', name)}")


def keep_trace(profiler: profile, path: Path) -> None:
    with replacing(path) as temporary:
        profiler.export_chrome_trace(str(temporary))


@contextmanager
def memory_history(path: Path | None) -> Iterator[None]:
    """Remember every allocation inside the block, and write what is known at its end."""
    if path is None:
        yield
        return
    torch.cuda.memory._record_memory_history(max_entries=_MAX_EVENTS, stacks="python")
    try:
        yield
        snapshot = torch.cuda.memory._snapshot()
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(snapshot, default=str), encoding="utf-8")
