"""Verdicts on disk: `attention.json` in the cache folder, by machine and versions, then by class of problems."""

from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite

from ..hardware import Hardware
from ..machine_file import MachineFile
from ..report import Rejection
from .verdicts import Calibration, Timing, Verdict

FILE = MachineFile(name="attention.json", method=1)


def read(hardware: Hardware) -> Calibration:
    """What was measured on this machine so far; nothing, and a note, where the file is damaged."""
    verdicts, note = FILE.read(hardware, lambda kept: {name: _verdict(data) for name, data in kept.items()})
    return Calibration(verdicts=verdicts, notes=(note,) if note else ())


def keep(verdicts: Mapping[str, Verdict], hardware: Hardware) -> str | None:
    """Add verdicts of this machine to the file; returns a note where that is not possible."""
    # What another process kept in the meantime stays.
    known = {**read(hardware).verdicts, **verdicts}
    entry = {name: asdict(verdict) for name, verdict in known.items()}
    return FILE.keep(entry, hardware, "the times of attention kernels")


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
