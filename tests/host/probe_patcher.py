"""Runs in ComfyUI's own Python: our patchers under the host's real memory management (`pretended_host.py`).

Played by `probes.py` for `test_patcher.py`.
"""

import gc
from types import ModuleType, SimpleNamespace

from pretended_host import (
    GB,
    GPU,
    STATES,
    FakeWeights,
    Machine,
    OneQueue,
    core,
    counted,
    evict,
    load_pack,
    mm,
    silent,
    unload,
)

import comfy.memory_management  # isort: skip
import comfy.model_patcher  # isort: skip
import torch  # isort: skip


def experts(machine: Machine, patcher: ModuleType, policy: str) -> object:
    expert_type, policies = core(patcher, "specs").Expert, core(patcher, "offload.residency")
    weights = {expert: FakeWeights(expert.value, 28, machine) for expert in expert_type}
    inner = policies.KeepResident(weights) if policy == "resident" else policies.TakeTurns(weights, OneQueue)
    residency = patcher.HostResidency(weights, inner, one_at_a_time=policy != "resident")
    residency.reserve(10 * GB)
    residency.experts = expert_type
    return residency


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
    for way, clear in (("evicted", evict), ("unloaded", unload)):
        clear()
        seen[way], seen[f"left when {way}"] = machine.take_moves(), counted()
        held.activate(high, silent, later=(high, low))
        seen[f"back when {way}"] = machine.take_moves()
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
    seen = {"moves": machine.take_moves(), "counted": counted()}
    evict()
    seen["evicted"] = machine.take_moves()
    held.activate(held.experts.HIGH, silent)
    seen["back"] = machine.take_moves()
    unload()
    return seen | {"unloaded": machine.take_moves(), "left": counted()}


def see_others_evicted(patcher: ModuleType) -> dict[str, object]:
    machine = Machine(gpu=80)
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
    unload(cpu)
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
    """Two towers with real weights in real memory, which is the pretended GPU's; copies are page-locked by the host.

    pinned: the bytes of each page-locked piece. streamed: so many blocks of each; `None` keeps both on the device.
    """

    def __init__(self, patcher: ModuleType, machine: Machine, *, streamed: int | None) -> None:
        offload, policies = core(patcher, "offload.weights"), core(patcher, "offload.residency")
        # The memory of this machine is none of the scenes' business.
        core(patcher, "offload.host_memory").host_ram = lambda: SimpleNamespace(free=machine.free(torch.device("cpu")))
        for module in (offload, core(patcher, "offload.stream")):
            module.device_memory = lambda nbytes, device: torch.empty(nbytes, dtype=torch.uint8)
        self.high, self.low = core(patcher, "specs").Expert
        self.reads: list[str] = []
        self.weights = {expert: self._weights(offload, expert, streamed or 0) for expert in (self.high, self.low)}
        self.pinned: dict[int, int] = {}
        mm.pin_memory = lambda piece: self.pinned.setdefault(piece.data_ptr(), piece.nbytes) > 0
        mm.unpin_memory = lambda piece: self.pinned.pop(piece.data_ptr()) > 0
        stays = streamed is None
        inner = policies.KeepResident(self.weights) if stays else policies.TakeTurns(self.weights, OneQueue)
        self.residency = patcher.HostResidency(self.weights, inner, one_at_a_time=not stays)
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

    def run(self) -> list[float]:
        """A forward of each expert, as a graph makes them."""
        self.activate(self.high)
        first = self.forward(self.high)
        self.residency.prepare(self.low, 1)
        self.forward(self.high)
        self.activate(self.low)
        second = self.forward(self.low)
        self.residency.release()
        return [first, second]

    def holdings(self) -> dict[str, object]:
        """What is held after an eviction, and what the file was read for since the last question."""
        reads, self.reads[:] = sorted(set(self.reads)), []
        copies = sum(each.bytes_on_host for each in self.weights.values())
        assert copies == sum(self.pinned.values()), "all copies are page-locked by the host, and no others"
        return {
            "listed": len(mm.current_loaded_models),
            "on device": sum(each.bytes_on_device for each in self.weights.values()),
            "copies": copies / sum(each.nbytes for each in self.weights.values()),
            "read": reads,
        }


def see_what_is_left(patcher: ModuleType, streamed: int | None) -> dict[str, object]:
    """Evicted and unloaded after each of some runs; the latents that these gave."""
    machine = Machine()
    held = Experts(patcher, machine, streamed=streamed)
    latents, seen = [held.run()], {"new": held.holdings()}
    for name, clear, ram_after in (
        ("evicted", evict, 128), ("evicted again", evict, 128), ("unloaded", unload, 128),
        ("unloaded again", unload, 0), ("without RAM", evict, 0), ("without RAM again", unload, 0),
    ):  # fmt: skip
        clear()
        seen[name] = held.holdings()
        machine.ram = ram_after
        latents.append(held.run())
    return seen | {"latents": latents}


def see_ram_kept_free(patcher: ModuleType) -> dict[str, object]:
    """The share of the experts that gets copies, where the host wants some or all of its memory to stay free."""
    seen = {}
    for name, headroom in (("a little", 10 * GB), ("all", 128 * GB)):
        held = Experts(patcher, Machine(), streamed=0)
        comfy.memory_management.RAM_CACHE_HEADROOM = headroom
        held.run()
        comfy.memory_management.RAM_CACHE_HEADROOM = 0
        seen[name] = held.holdings()["copies"]
        unload()
    return seen


def see_left_by_resident(patcher: ModuleType) -> dict[str, object]:
    return see_what_is_left(patcher, None)


def see_left_by_turns(patcher: ModuleType) -> dict[str, object]:
    return see_what_is_left(patcher, 0)


def see_left_by_streaming(patcher: ModuleType) -> dict[str, object]:
    return see_what_is_left(patcher, 3)


def see_moving(patcher: ModuleType, streamed: int) -> dict[str, object]:
    machine = Machine()
    held = Experts(patcher, machine, streamed=streamed)
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
        seen["pinned"] = sum(held.pinned.values()) == sum(each.nbytes for each in held.weights.values())
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
        evict()
        held.activate(high)
        seen["again"] = held.forward(high) == first and second not in (0.0, first)
        held.residency.release()
    finally:
        mm.load_models_gpu = load
    return seen


def see_a_switch(patcher: ModuleType) -> dict[str, object]:
    return see_moving(patcher, streamed=0)


def see_streaming(patcher: ModuleType) -> dict[str, object]:
    return see_moving(patcher, streamed=3)


@torch.inference_mode()
def play() -> dict[str, dict[str, dict]]:
    """What was seen, by VRAM state and scene."""
    patcher = load_pack()
    scenes = (
        see_resident, see_one_at_a_time, see_others_evicted, see_failed_load, see_on_the_cpu, see_ram_cache,
        see_a_switch, see_streaming, see_left_by_resident, see_left_by_turns, see_left_by_streaming,
        see_ram_kept_free,
    )  # fmt: skip
    seen = {}
    for state in STATES:
        mm.vram_state = mm.VRAMState[state]
        seen[state] = {scene.__name__: scene(patcher) for scene in scenes}
    return seen
