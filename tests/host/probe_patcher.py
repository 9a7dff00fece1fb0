"""Runs in ComfyUI's own Python: our patchers under the host's real memory management, on a GPU that is only pretended.

`probe_patcher.py COMFYUI_ROOT PACK_ROOT` prints what was seen as JSON, by VRAM state and scene, for `test_patcher.py`.
The real `load_models_gpu` and `free_memory` decide; only the free memory they read and the weights they move are fake.
"""

import gc
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

ROOT, PACK = sys.argv[1:3]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, ROOT)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as mm  # noqa: E402
import comfy.model_patcher  # noqa: E402
import torch  # noqa: E402

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

    def copy_to_host(self, units: object, on_bytes: object = None) -> None: ...

    def forget_copies(self) -> None: ...

    def to_host(self) -> None:
        if self.place == "device":
            self._go("host" if self.host_room() >= self.nbytes else "file")

    def drop(self) -> None:
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


def experts(machine: Machine, patcher: ModuleType, policy: str) -> object:
    expert_type, policies = core(patcher, "specs").Expert, core(patcher, "offload.residency")
    weights = {expert: FakeWeights(expert.value, 28, machine) for expert in expert_type}
    inner = policies.KeepResident(weights) if policy == "resident" else policies.TakeTurns(weights, OneQueue)
    residency = patcher.HostResidency(weights, inner, one_at_a_time=policy != "resident")
    residency.reserve(10 * GB)
    residency.experts = expert_type
    return residency


def silent(what: str, done: int, total: int) -> None:
    pass


def see_resident(patcher: ModuleType) -> dict[str, object]:
    machine = Machine()
    held = experts(machine, patcher, "resident")
    high, low = held.experts.HIGH, held.experts.LOW
    seen = {}
    said = []
    held.activate(high, lambda *event: said.append(event), later=(high, low))
    seen["first"], seen["counted"], seen["said"] = machine.take_moves(), counted(), said
    held.activate(low, silent, later=(high, low))
    held.activate(high, silent, later=(high, low))
    seen["again"] = machine.take_moves()
    seen["available"] = patcher.available_bytes(GPU)
    mm.free_memory(1e30, GPU)
    seen["evicted"], seen["left"] = machine.take_moves(), counted()
    held.activate(high, silent, later=(high, low))
    seen["back"] = machine.take_moves()
    # What the host's cache drops is gone at once, without a collection of cycles.
    gc.disable()
    machine.weights.clear()
    del held
    seen["after the handle died"] = len(mm.current_loaded_models)
    gc.enable()
    return seen


def see_one_at_a_time(patcher: ModuleType) -> dict[str, object]:
    machine = Machine(gpu=50)
    held = experts(machine, patcher, "experts")
    for expert in (held.experts.HIGH, held.experts.LOW, held.experts.HIGH):
        held.activate(expert, silent)
    return {"moves": machine.take_moves(), "counted": counted()}


def see_others_evicted(patcher: ModuleType) -> dict[str, object]:
    machine = Machine(gpu=80, ram=20)
    encoder = patcher.WeightsPatcher(FakeWeights("text", 11, machine))
    patcher.bring_to_device({"text": encoder}, GB, silent)
    held = experts(machine, patcher, "resident")
    held.activate(held.experts.HIGH, silent, later=tuple(held.experts))
    moves = machine.take_moves()
    # Another model of the host wants the card: 40 GB, as `load_models_gpu` would ask.
    mm.free_memory(40 * GB, GPU)
    return {"moves": moves, "for another": machine.take_moves(), "free": machine.free(GPU)}


def see_failed_load(patcher: ModuleType) -> dict[str, object]:
    machine = Machine()
    weights = FakeWeights("vae", 1, machine)
    weights.fail = mm.InterruptProcessingException()
    vae = patcher.WeightsPatcher(weights)
    raised = None
    try:
        patcher.bring_to_device({"VAE": vae}, GB, silent)
    except mm.InterruptProcessingException as error:
        raised = type(error).__name__
    seen = {"raised": raised, "place": weights.place, "counted": counted(), "callback": vae.on_bytes is not None}
    weights.fail = None
    patcher.bring_to_device({"VAE": vae}, GB, silent)
    return seen | {"then": weights.place}


def see_on_the_cpu(patcher: ModuleType) -> dict[str, object]:
    machine = Machine()
    cpu = torch.device("cpu")
    vae = patcher.WeightsPatcher(FakeWeights("vae", 1, machine, cpu))
    patcher.bring_to_device({"VAE": vae}, GB, silent)
    seen = {"loaded": machine.take_moves()}
    mm.free_memory(1e30, cpu)
    return seen | {"unloaded": machine.take_moves()}


def see_ram_cache(patcher: ModuleType) -> dict[str, object]:
    machine = Machine()
    vae = patcher.WeightsPatcher(FakeWeights("vae", 1, machine))

    class Handle:
        patcher = vae

    return {"is a model": comfy.model_patcher.is_model_patcher_output(Handle()), "is dynamic": vae.is_dynamic()}


class Tower(torch.nn.Module):
    """A model of four blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))
        self.last = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.last(x)


class Experts:
    """Two towers with real weights in real memory, which is the pretended GPU's; both page-locked by the host."""

    def __init__(self, patcher: ModuleType, *, streamed: int) -> None:
        offload, policies = core(patcher, "offload.weights"), core(patcher, "offload.residency")
        for module in (offload, core(patcher, "offload.stream")):
            module.device_memory = lambda nbytes, device: torch.empty(nbytes, dtype=torch.uint8)
        self.high, self.low = core(patcher, "specs").Expert
        self.reads: list[str] = []
        self.weights = {expert: self._weights(offload, expert, streamed) for expert in (self.high, self.low)}
        inner = policies.TakeTurns(self.weights, OneQueue)
        self.residency = patcher.HostResidency(self.weights, inner, one_at_a_time=True)
        self.residency.reserve(GB)

    def _weights(self, offload: ModuleType, expert: object, streamed: int) -> object:
        with torch.device("meta"):
            tower = Tower().requires_grad_(requires_grad=False)

        def fill(targets: dict[str, torch.Tensor], on_bytes: object) -> None:
            self.reads.append(expert.value)
            for name, target in targets.items():
                target.data.fill_(len(name) / (10 if expert is self.high else 20))

        weights = offload.Weights(tower, fill, device=str(GPU), dtype=torch.float32, streamed_blocks=streamed)
        weights.name = expert.value
        return weights

    def activate(self, expert: object) -> None:
        self.residency.activate(expert, silent, later=(self.high, self.low))

    def forward(self, expert: object) -> float:
        return self.weights[expert].module(torch.ones(8)).sum().item()

    def on_device(self) -> dict[str, bool]:
        return {expert.value: bool(each.bytes_on_device) for expert, each in self.weights.items()}


def see_moving(patcher: ModuleType, streamed: int) -> dict[str, object]:
    machine = Machine()
    held = Experts(patcher, streamed=streamed)
    pinned: dict[int, int] = {}
    mm.pin_memory = lambda piece: pinned.setdefault(piece.data_ptr(), piece.nbytes) > 0
    mm.unpin_memory = lambda piece: pinned.pop(piece.data_ptr()) > 0
    asked: list[float] = []
    load = mm.load_models_gpu
    mm.load_models_gpu = lambda models, **settings: (
        asked.append(settings["memory_required"]),
        load(models, **settings),
    )
    high, low = held.high, held.low
    try:
        held.activate(high)
        resident, block = held.weights[high].resident_bytes, held.weights[high].units[1].nbytes
        seen: dict[str, object] = {"counted": counted() == [["high", resident, resident]]}
        seen["buffers are asked for"] = (asked[0] - GB) / block
        seen["pinned"] = sum(pinned.values()) == sum(each.nbytes for each in held.weights.values())
        first = held.forward(high)
        # Broken off in the switch: what the host knows nothing of has to go.
        held.residency.prepare(low, 1)
        held.forward(high)
        seen["in the switch"] = held.on_device()
        held.residency.release()
        seen["broken off"] = held.on_device()
        held.activate(high)
        seen["back"] = held.forward(high) == first
        held.residency.prepare(low, 1)
        held.forward(high)
        held.activate(low)
        seen["switched"] = counted() == [["low", resident, resident]] and not held.on_device()["high"]
        second = held.forward(low)
        held.residency.release()
        mm.free_memory(1e30, GPU)
        seen["evicted"] = [counted(), held.on_device(), len(held.reads)]
        held.activate(high)
        seen["again"] = held.forward(high) == first and second not in (0.0, first)
        held.residency.release()
        machine.ram = 0
        mm.free_memory(1e30, GPU)
        seen["without RAM"] = [str(held.weights[high].place.value), len(pinned) == len(held.weights[low].units)]
        seen["reads"] = held.reads
    finally:
        mm.load_models_gpu = load
    return seen


def see_a_switch(patcher: ModuleType) -> dict[str, object]:
    return see_moving(patcher, streamed=0)


def see_streaming(patcher: ModuleType) -> dict[str, object]:
    return see_moving(patcher, streamed=3)


def main() -> None:
    patcher = load_pack()
    # The memory of this machine is none of the scenes' business: theirs is `Machine.ram`.
    patcher.host_ram = lambda: SimpleNamespace(free=1 << 60)
    scenes = (
        see_resident, see_one_at_a_time, see_others_evicted, see_failed_load, see_on_the_cpu, see_ram_cache,
        see_a_switch, see_streaming,
    )  # fmt: skip
    seen = {}
    for state in STATES:
        mm.vram_state = mm.VRAMState[state]
        seen[state] = {scene.__name__: scene(patcher) for scene in scenes}
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
