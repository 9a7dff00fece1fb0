"""Verdicts on disk: one JSON file in the cache folder, by machine and versions, then by class of problems.

A file that cannot be read or written is never an error: what was kept saves a few seconds, no more. Another version of
torch, CUDA, cuDNN or a kernel library is another machine, whose verdicts are found again when it comes back.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from pathlib import Path

from ..errors import InputError
from ..files import replacing
from ..hardware import Hardware, cache_folder
from ..report import Rejection
from .verdicts import Calibration, Timing, Verdict

# To be raised when what is measured, or how, changes: older verdicts are then not looked at.
METHOD = 1


def path() -> Path:
    """Where the verdicts are kept."""
    return cache_folder() / "attention.json"


def machine_key(hardware: Hardware) -> str:
    """The card and every version that a rate depends on."""
    versions = {name: version for name, version in hardware.environment().items() if name != "Python"}
    return "; ".join((f"method {METHOD}", *(f"{name} {version}" for name, version in versions.items())))


def read(hardware: Hardware) -> Calibration:
    """What was measured on this machine so far; nothing, and a note, where the file is damaged."""
    try:
        kept = _machines().get(machine_key(hardware), {})
        return Calibration(verdicts={name: _verdict(data) for name, data in kept.items()})
    except FileNotFoundError:
        return Calibration()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Calibration(notes=(f"{path()} cannot be read and is ignored",))


def keep(verdicts: Mapping[str, Verdict], hardware: Hardware) -> str | None:
    """Add verdicts of this machine to the file; returns a note where that is not possible."""
    try:
        machines = _machines()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        machines = {}
    key = machine_key(hardware)
    # What another process kept in the meantime stays; what was damaged does not.
    machines[key] = {name: asdict(verdict) for name, verdict in {**read(hardware).verdicts, **verdicts}.items()}
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        with replacing(path()) as temporary:
            temporary.write_text(json.dumps({"machines": machines}, indent=2), encoding="utf-8")
    except (OSError, InputError) as error:
        return f"the times of attention kernels are not kept: {error}; WAN_VELOCITY_CACHE may name another folder"
    return None


def _machines() -> dict[str, dict[str, dict]]:
    return dict(json.loads(path().read_text(encoding="utf-8"))["machines"])


def _verdict(data: Mapping[str, object]) -> Verdict:
    """A verdict from JSON; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
    verdict = Verdict(
        date=str(data["date"]),
        timings=tuple(Timing(**timing) for timing in data["timings"]),
        failed=tuple(Rejection(**item) for item in data["failed"]),
        untimed=tuple(data["untimed"]),
    )
    for timing in verdict.timings:
        if not (isinstance(timing.name, str) and isfinite(timing.tflops) and isfinite(timing.error)):
            raise ValueError(timing)
    return verdict
