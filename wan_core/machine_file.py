"""What was learned of a machine, kept from run to run: a JSON file in the cache folder with one entry a machine.

Another version of torch, CUDA or a kernel library is another machine, whose entry is found again when it comes back.
What is kept saves time and no more: a file that cannot be read is passed over, one that cannot be written is told.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .errors import InputError
from .files import replacing
from .hardware import Hardware, cache_folder

Kept = TypeVar("Kept")

# The oldest go first.
MAX_MACHINES = 8
# What reading a file that anybody may have written, and taking its content apart, raises where it is damaged.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFile:
    """One such file. method: to be raised when what is kept, or how, changes: older entries then do not count."""

    name: str
    method: int

    @property
    def path(self) -> Path:
        return cache_folder() / self.name

    def key(self, hardware: Hardware) -> str:
        """The device and every version that a time depends on."""
        versions = {name: version for name, version in hardware.environment().items() if name != "Python"}
        return "; ".join((f"method {self.method}", *(f"{name} {version}" for name, version in versions.items())))

    def read(self, hardware: Hardware, parse: Callable[[Mapping], Kept]) -> tuple[Kept, str | None]:
        """What `parse` makes of this machine's entry, of an empty one where there is none, or a note with that."""
        try:
            return parse(self._machines().get(self.key(hardware), {})), None
        except FileNotFoundError:
            return parse({}), None
        except _DAMAGED:
            return parse({}), f"{self.name} in the cache folder cannot be read and is ignored"

    def keep(self, entry: Mapping, hardware: Hardware, what: str) -> str | None:
        """Put an entry in the place of this machine's; returns a sentence where that is not possible.

        What was damaged is not taken over.
        """
        try:
            machines = self._machines()
        except _DAMAGED:
            machines = {}
        machines.pop(self.key(hardware), None)
        machines[self.key(hardware)] = entry
        newest = dict(list(machines.items())[-MAX_MACHINES:])
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps({"machines": newest}), encoding="utf-8")
        except (OSError, InputError) as error:
            return f"{what} are not kept: {error}; WAN_VELOCITY_CACHE may name another folder"
        return None

    def _machines(self) -> dict[str, Mapping]:
        return dict(json.loads(self.path.read_text(encoding="utf-8"))["machines"])
