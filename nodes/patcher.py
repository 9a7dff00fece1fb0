"""The ModelPatcher through which ComfyUI counts, loads and evicts our weights, and the residency built on it.

What the host (v0.33) asks of a patcher, call by call, from `comfy.model_management`:
- `load_models_gpu` reads `model_size`, `loaded_size` and `current_loaded_device`, makes room for what is missing, calls
  `detach(unpatch_all=False)` on a patcher that is already in its list, and then `partially_load`.
- `free_memory` calls `partially_unload` and, where that frees too little, `detach()`, and forgets the patcher.
- An entry of its list lives as long as the patcher; nothing here refers back to the patcher, so that dropping the
  handle on a socket frees the weights at once.
Weights move whole: an expert is on the device or it is not, because the plan has already made sure that it fits. The
host's wish to load only a part (`--lowvram`, `--novram`) is therefore overruled; memory presets are for that.
"""

from collections.abc import Callable, Hashable, Mapping

import comfy.model_management
import comfy.model_patcher
import torch

from ..wan_core.offload import OnBytes, Weights
from ..wan_core.specs import Expert

OnLoad = Callable[[str, int, int], None]

# Left free for the rest of the host when evicted weights are kept in its memory.
_HOST_HEADROOM_BYTES = 2 << 30


class WeightsPatcher(comfy.model_patcher.ModelPatcher):
    """The host's view of one module's `Weights`."""

    def __init__(self, weights: Weights) -> None:
        offload_device = comfy.model_management.unet_offload_device()
        super().__init__(weights.module, weights.device, offload_device, size=weights.nbytes)
        self.weights = weights
        self.on_bytes: OnBytes | None = None

    def model_size(self) -> int:
        return self.weights.nbytes

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
        if unpatch_all and self.loaded_size():
            self._evict()
        return self.model

    def _evict(self) -> None:
        host = torch.device("cpu")
        room = comfy.model_management.get_free_memory(host) - _HOST_HEADROOM_BYTES
        if self.load_device != host and self.offload_device == host and room > self.weights.nbytes:
            self.weights.to_host()
        else:
            self.weights.drop()


class HostResidency:
    """Residency of the experts under the host's memory management.

    policy: "resident" keeps both experts on the device, "experts" one at a time, as `wan_core.offload` defines them.
    """

    def __init__(self, weights: Mapping[Expert, Weights], policy: str) -> None:
        self.patchers = {expert: WeightsPatcher(each) for expert, each in weights.items()}
        self._policy = policy
        self._activation_bytes = 0

    def reserve(self, activation_bytes: int) -> None:
        """What the next run needs on the device beside the weights."""
        self._activation_bytes = activation_bytes

    def activate(self, name: Hashable, on_load: OnLoad) -> None:
        wanted = self.patchers if self._policy == "resident" else {name: self.patchers[name]}
        for expert, patcher in self.patchers.items():
            if expert not in wanted and patcher.loaded_size():
                comfy.model_management.unload_model_and_clones(patcher)
        named = {f"{expert.value} noise expert": patcher for expert, patcher in wanted.items()}
        bring_to_device(named, self._activation_bytes, on_load)

    def release(self) -> None:
        """Nothing to do: what stays on the device is the host's business."""


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


def available_bytes(device: torch.device) -> int:
    """Free memory of `device`, with what the host would evict for us counted as free."""
    mm = comfy.model_management
    held = [patcher for patcher in mm.loaded_models() if patcher is not None and patcher.load_device == device]
    if device.type == "cpu":
        # The host evicts nothing from a CPU; what is ours is reused rather than loaded twice.
        held = [patcher for patcher in held if isinstance(patcher, WeightsPatcher)]
    return int(mm.get_free_memory(device)) + sum(patcher.loaded_size() for patcher in held)
