"""ComfyUI's real memory management in its own Python, on a GPU, a host and a queue of jobs that are only pretended.

For programs that are started as `PROGRAM COMFYUI_ROOT PACK_ROOT`: importing this sets it up. `load_models_gpu` and
`free_memory` decide as they always do; the free memory they read and the weights they move are fake.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

ROOT, PACK = sys.argv[1:3]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, ROOT)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as mm  # noqa: E402
import torch  # noqa: E402

# The queue of jobs, as the host's server has it: what runs now, by number. Most scenes play in a job.
RUNNING: dict[int, str] = {0: "a graph"}
INSTANCE = SimpleNamespace(prompt_queue=SimpleNamespace(currently_running=RUNNING))
sys.modules["server"] = SimpleNamespace(PromptServer=SimpleNamespace(instance=INSTANCE))

GB = 10**9
GPU = torch.device("cuda:0")
STATES = ("NORMAL_VRAM", "LOW_VRAM", "NO_VRAM", "HIGH_VRAM")


def load_pack() -> ModuleType:
    """The pack's patcher, imported as the host imports packs: by path, under a made-up name, lazily."""
    name = PACK.replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, Path(PACK, "__init__.py"))
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return importlib.import_module(f"{name}.nodes.patcher")


class FakeWeights:
    """What `Weights` looks like to a patcher and to a residency: a size and a place, and no blocks."""

    resident = streamed = ()
    lacks_room_for_streaming = False
    pinning = None

    def __init__(self, name: str, gigabytes: float, machine: "Machine", device: torch.device = GPU) -> None:
        self.name = name
        self.module = torch.nn.Linear(1, 1)
        self.device = device
        self.nbytes = self.resident_bytes = int(gigabytes * GB)
        self.place = "file"
        self.has_copy = False
        self.fail: BaseException | None = None
        self._machine = machine
        machine.weights.append(self)

    @property
    def bytes_on_device(self) -> int:
        return self.nbytes if self.place == "device" else 0

    def to_device(self, on_bytes: object = None) -> None:
        if self.place != "device":
            if self.fail is not None:
                raise self.fail
            if on_bytes is not None:
                on_bytes(self.nbytes, self.nbytes)
            self._go("device")

    def copy_to_host(self, units: object, on_bytes: object = None) -> None:
        self.has_copy = True

    def forget_copies(self) -> None:
        self.has_copy = False

    def to_host(self) -> None:
        self.has_copy = True
        self.leave_device()

    def leave_device(self) -> None:
        if self.place == "device":
            self._go("host" if self.has_copy else "file")

    def drop(self) -> None:
        self.has_copy = False
        if self.place != "file":
            self._go("file")

    def _go(self, place: str) -> None:
        self.place = place
        self._machine.moves.append(f"{self.name} {place}")
        assert self._machine.free(GPU) >= 0, "the pretended GPU is over its memory"


class Machine:
    """A GPU of 80 GB and a host with some memory, as the host reads them."""

    def __init__(self, *, gpu: float = 80, ram: float = 128) -> None:
        self.gpu, self.ram = gpu, ram
        self.weights: list[FakeWeights] = []
        self.moves: list[str] = []
        mm.get_free_memory = self.free
        mm.get_torch_device = lambda: GPU
        mm.current_loaded_models.clear()

    def free(self, device: torch.device | None = None, torch_free_too: bool = False) -> object:
        on_gpu = device is None or device.type == "cuda"
        place = "device" if on_gpu else "host"
        used = sum(each.nbytes for each in self.weights if each.place == place)
        free = int((self.gpu if on_gpu else self.ram) * GB) - used
        return (free, free) if torch_free_too else free

    def take_moves(self) -> list[str]:
        moves, self.moves = self.moves, []
        return moves


def counted() -> list[list[object]]:
    return [[patcher.weights.name, patcher.loaded_size(), patcher.model_size()] for patcher in mm.loaded_models()]


class OneQueue:
    """The copies of a GPU that is only pretended."""

    def __init__(self, device: torch.device) -> None: ...

    def send(self, copy: object, *, in_thread: bool = False) -> None:
        copy()

    def wait_for(self, arrival: None) -> None: ...

    def wait(self) -> None: ...

    def close(self) -> None: ...


def core(patcher: ModuleType, module: str) -> ModuleType:
    return importlib.import_module(patcher.__name__.replace("nodes.patcher", f"wan_core.{module}"))


def silent(what: str, done: int, total: int) -> None:
    pass


def evict(device: torch.device = GPU) -> None:
    """A node of the running graph needs all of a device."""
    mm.free_memory(1e30, device)


def unload(device: torch.device = GPU) -> None:
    """What `POST /free` does, once the running graph is through."""
    job = RUNNING.pop(0)
    mm.free_memory(1e30, device)
    RUNNING[0] = job
