"""The machine as a result describes it: hardware, versions, and the driver, which no library tells."""

import re
from dataclasses import asdict
from pathlib import Path

from ..hardware import Hardware

# What the kernel module of NVIDIA's driver says of itself on Linux.
_DRIVER = Path("/proc/driver/nvidia/version")


def describe(hardware: Hardware) -> dict[str, dict[str, object]]:
    """Everything about it as plain data."""
    environment = hardware.environment()
    if hardware.is_cuda:
        environment["driver"] = driver_version(_DRIVER)
    return {"hardware": asdict(hardware), "environment": environment}


def driver_version(path: Path) -> str:
    """For example "580.159.04"; "unknown" where the system does not tell."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    match = re.search(r"\b(\d+(?:\.\d+)+)\b", text)
    return match[1] if match else "unknown"
