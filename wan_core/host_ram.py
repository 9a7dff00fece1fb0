"""The host's memory, in a container too: there the limit is the container's, and passing it ends the process.

Read from the control groups of Linux, version 2 or 1. Pages of files count as used there and are given back on demand,
so they are free to us; those of a file system in memory are not, and are no pages of files.
"""

from dataclasses import dataclass
from pathlib import Path

import psutil

_ROOT = Path("/sys/fs/cgroup")
# Version 1 writes no limit as a number near 2^63.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class HostRam:
    """Bytes of the host's memory that this process may have in all, and that are free."""

    total: int
    free: int


def host_ram(groups: Path = _ROOT) -> HostRam:
    """What the machine has, or what its container leaves of it."""
    machine = psutil.virtual_memory()
    container = _version_2(groups) or _version_1(groups / "memory")
    if container is None:
        return HostRam(machine.total, machine.available)
    return HostRam(min(machine.total, container.total), max(min(machine.available, container.free), 0))


def _version_2(folder: Path) -> HostRam | None:
    return _read(folder, limit="memory.max", used="memory.current", prefix="")


def _version_1(folder: Path) -> HostRam | None:
    return _read(folder, limit="memory.limit_in_bytes", used="memory.usage_in_bytes", prefix="total_")


def _read(folder: Path, *, limit: str, used: str, prefix: str) -> HostRam | None:
    try:
        limit_text, used_text = ((folder / name).read_text().strip() for name in (limit, used))
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        counts = {name: int(count) for name, count in pairs}
    except (OSError, ValueError):
        return None
    if not limit_text.isdecimal() or int(limit_text) >= _NO_LIMIT:
        return None
    of_files = counts.get(f"{prefix}inactive_file", 0) + counts.get(f"{prefix}active_file", 0)
    return HostRam(int(limit_text), int(limit_text) - int(used_text) + of_files)
