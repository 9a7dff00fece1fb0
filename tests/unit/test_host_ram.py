"""The host's memory as a container sees it."""

from pathlib import Path

import psutil
import pytest

from wan_core.host_ram import host_ram

GB = 10**9


def version_2(folder: Path, limit: str, used: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used}\ninactive_file {10**6}\nactive_file {2 * 10**6}\nshmem 5\n")
    return folder


def version_1(folder: Path, limit: str, used: int) -> Path:
    (folder / "memory").mkdir()
    (folder / "memory/memory.limit_in_bytes").write_text(limit)
    (folder / "memory/memory.usage_in_bytes").write_text(str(used))
    (folder / "memory/memory.stat").write_text(f"total_inactive_file {3 * 10**6}\ninactive_file 7\n")
    return folder


@pytest.mark.parametrize("write", [version_2, version_1])
def test_the_limit_of_a_container_counts(tmp_path, write):
    ram = host_ram(write(tmp_path, str(GB), GB // 2))
    assert (ram.total, ram.free) == (GB, GB // 2 + 3 * 10**6)


@pytest.mark.parametrize(
    ("write", "limit"), [(version_2, "max"), (version_1, "9223372036854771712"), (version_2, "nonsense")]
)
def test_without_a_limit_the_machine_counts(tmp_path, write, limit):
    assert host_ram(write(tmp_path, limit, GB)).total == psutil.virtual_memory().total


def test_a_machine_without_control_groups(tmp_path):
    assert host_ram(tmp_path / "none").total == psutil.virtual_memory().total


def test_more_than_the_limit_is_nothing(tmp_path):
    assert host_ram(version_2(tmp_path, str(GB), 2 * GB)).free == 0
