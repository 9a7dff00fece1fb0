"""The ModelPatcher through which ComfyUI counts, loads and evicts our weights, and the residency built on it.

What the host (v0.33) asks of a patcher, call by call, from `comfy.model_management`:
- `load_models_gpu` reads `model_size`, `loaded_size` and `current_loaded_device`, makes room for what is missing, calls
  `detach(unpatch_all=False)` on a patcher that is already in its list, and then `partially_load`.
- `free_memory` calls `partially_unload` and, where that frees too little, `detach()`, and forgets the patcher.
- An entry of its list lives as long as the patcher; nothing here refers back to the patcher, so that dropping the
  handle on a socket frees the weights at once.
What stays on the device moves whole: an expert is there or it is not, because the plan has already made sure that it
fits. The host's wish to load only a part (`--lowvram`, `--novram`) is therefore overruled; memory presets are for that.
Streamed blocks are no part of a patcher's size: their buffers come and go with a run, and are asked for with its
activations. Copies of weights on the host are page-locked by the host's own functions, so that it counts them. Nothing
is copied when weights are evicted: what a placement has made copies of comes back from those, the rest from its file.
"""

from collections.abc import Collection, Hashable, Mapping
from contextlib import AbstractContextManager

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import torch
from server import PromptServer

from ..wan_core.offload.host_memory import free_bytes
from ..wan_core.offload.residency import OnLoad, Residency
from ..wan_core.offload.weights import OnBytes, Weights
from ..wan_core.specs import Expert


class HostPinning:
    """Page-locking as the host does it: within its limit, counted in its total."""

    def pin(self, piece: torch.Tensor) -> bool:
        return bool(comfy.model_management.pin_memory(piece))

    def unpin(self, piece: torch.Tensor) -> None:
        comfy.model_management.unpin_memory(piece)


class WeightsPatcher(comfy.model_patcher.ModelPatcher):
    """The host's view of one module's `Weights`. others: are unloaded with it, although the host does not list them."""

    def __init__(self, weights: Weights, others: Collection[Weights] = ()) -> None:
        offload_device = comfy.model_management.unet_offload_device()
        super().__init__(weights.module, weights.device, offload_device, size=weights.resident_bytes)
        self.weights = weights
        self._others = others
        if weights.pinning is not None:
            weights.pinning = HostPinning()
        weights.host_room = _host_room
        self.on_bytes: OnBytes | None = None

    def model_size(self) -> int:
        return self.weights.resident_bytes

    def loaded_size(self) -> int:
        return self.weights.bytes_on_device

    def current_loaded_device(self) -> torch.device:
        return self.load_device if self.weights.bytes_on_device else self.offload_device

    def partially_load(
        self, device_to: torch.device, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> int:
        """Load everything; returns the bytes that this brought to the device."""
        before = self.loaded_size()
        try:
            self.weights.to_device(self.on_bytes)
        except BaseException:
            # Also an interrupt, which the host raises out of our progress calls: no half-loaded weights stay behind.
            self.weights.drop()
            raise
        return self.loaded_size() - before

    def partially_unload(
        self, device_to: torch.device, memory_to_free: float = 0, force_patch_weights: bool = False
    ) -> int:
        """Nothing can be unloaded by halves; answering 0 makes the host call `detach`."""
        return 0

    def detach(self, unpatch_all: bool = True) -> torch.nn.Module:
        """Leave the device, unless the host only renews its entry (`unpatch_all` false)."""
        if unpatch_all and _is_job_running():
            # Room on the card for something else in the graph. The next run needs the copies that this one made.
            self.weights.leave_device()
        elif unpatch_all:
            # Somebody wants memory back, and does not say which: the host's own models give up their page-locked
            # copies here, too.
            for weights in (self.weights, *self._others):
                weights.drop()
        return self.model


class HostResidency:
    """Residency of the experts under the host's memory management.

    inner: moves the weights as the placement says. Whatever it is going to have on the device is asked of the host
    before, and everything else is taken off by the host.
    """

    def __init__(self, weights: Mapping[Expert, Weights], inner: Residency, *, one_at_a_time: bool) -> None:
        self.patchers = {expert: WeightsPatcher(each, weights.values()) for expert, each in weights.items()}
        self._inner = inner
        self._one_at_a_time = one_at_a_time
        self._activation_bytes = 0

    def reserve(self, activation_bytes: int) -> None:
        """What the next run needs on the device beside the weights and the buffers that blocks pass through."""
        self._activation_bytes = activation_bytes

    @property
    def buffer_bytes(self) -> int:
        return self._inner.buffer_bytes

    def activate(self, name: Hashable, on_load: OnLoad, *, later: Collection[Hashable] = ()) -> None:
        wanted = {name} if self._one_at_a_time else {name, *later}
        for expert, patcher in self.patchers.items():
            if self._one_at_a_time and expert != name and patcher.loaded_size():
                # It waits for its next turn, so it gets a copy if it has none yet.
                patcher.weights.to_host()
                comfy.model_management.unload_model_and_clones(patcher)
        named = {f"{each.value} noise expert": patcher for each, patcher in self.patchers.items() if each in wanted}
        bring_to_device(named, self._activation_bytes + self.buffer_bytes, on_load)
        self._inner.activate(name, on_load, later=later)

    def prepare(self, name: Hashable, num_forwards: int) -> None:
        self._inner.prepare(name, num_forwards)

    def single_layers(self, name: Hashable) -> AbstractContextManager[None]:
        return self._inner.single_layers(name)

    def release(self) -> None:
        """The host evicts what it knows of; what a switch that was broken off had already brought, it does not know."""
        self._inner.release()
        for patcher in self.patchers.values():
            self._evict_unlisted(patcher)

    def notes(self) -> tuple[str, ...]:
        return self._inner.notes()

    def _evict_unlisted(self, patcher: WeightsPatcher) -> None:
        if patcher.loaded_size() and not any(each is patcher for each in comfy.model_management.loaded_models()):
            patcher.detach()


def bring_to_device(patchers: Mapping[str, WeightsPatcher], activation_bytes: int, on_load: OnLoad) -> None:
    """Have the host load these patchers whole, evicting whatever is in the way of them and their activations."""
    for what, patcher in patchers.items():
        patcher.on_bytes = lambda done, total, what=what: on_load(what, done, total)
    try:
        comfy.model_management.load_models_gpu(
            list(patchers.values()), memory_required=activation_bytes, force_full_load=True
        )
    finally:
        for patcher in patchers.values():
            patcher.on_bytes = None


def ram_kept_free() -> int:
    """Host memory that has to stay free in a graph: with less the host empties its cache, our experts and all."""
    return comfy.memory_management.RAM_CACHE_HEADROOM


def _host_room() -> int:
    return max(free_bytes() - ram_kept_free(), 0)


def _is_job_running() -> bool:
    """Whether the host is in the middle of a graph. `POST /free` is heeded between two of them, and only there."""
    return bool(PromptServer.instance.prompt_queue.currently_running)


def available_bytes(device: torch.device) -> int:
    """Free memory of `device`, with what the host would evict for us counted as free."""
    mm = comfy.model_management
    held = [patcher for patcher in mm.loaded_models() if patcher is not None and patcher.load_device == device]
    if device.type == "cpu":
        # The host evicts nothing from a CPU; what is ours is reused rather than loaded twice.
        held = [patcher for patcher in held if isinstance(patcher, WeightsPatcher)]
    return int(mm.get_free_memory(device)) + sum(patcher.loaded_size() for patcher in held)
