"""What travels on our own sockets: opened models, built when a plan first needs them.

Opening reads headers only. A handle keeps what it built for as long as the host keeps the handle in its cache, and
builds anew only where a plan binds something else. `patcher` and `get_models` are what the host's RAM cache looks for.
"""

from collections.abc import Callable, Mapping, Sequence

from ..wan_core.build import build_experts, build_text_encoder, build_vae
from ..wan_core.checkpoint.experts import ExpertPair
from ..wan_core.checkpoint.lora_pair import LoraChoice
from ..wan_core.checkpoint.text_encoder import TextEncoderSource
from ..wan_core.checkpoint.vae import VaeSource
from ..wan_core.component_plan import ComponentPlan
from ..wan_core.components import Experts, TextEncoder, Vae
from ..wan_core.hardware import Hardware
from ..wan_core.offload.residency import OnLoad, residency_for
from ..wan_core.offload.weights import Place, Weights
from ..wan_core.placement import Placement
from ..wan_core.plan import ExecutionPlan
from ..wan_core.specs import Expert
from .patcher import HostResidency, WeightsPatcher, bring_to_device


class _Handle:
    """The part that the host reads: the patchers of whatever is built."""

    def __init__(self) -> None:
        self._patchers: tuple[WeightsPatcher, ...] = ()

    @property
    def patcher(self) -> WeightsPatcher | None:
        return self._patchers[0] if self._patchers else None

    def get_models(self) -> list[WeightsPatcher]:
        return list(self._patchers)


def _residency(placement: Placement, weights: Mapping[Expert, Weights]) -> HostResidency:
    one_at_a_time = placement.policy != "resident"
    return HostResidency(weights, residency_for(placement, weights), one_at_a_time=one_at_a_time)


class _BuiltExperts(_Handle):
    """The last build of two experts, whichever LoRAs were on them; all handles that stem from one loader share it."""

    def __init__(self) -> None:
        super().__init__()
        self._built: Experts | None = None

    @property
    def placement(self) -> Placement | None:
        return self._built.placement if self._built else None

    def build(self, pair: ExpertPair, plan: ExecutionPlan, hardware: Hardware) -> Experts:
        if self._built is None or self._built.key != plan.key:
            # Nothing is read here: what is not taken over of the old weights goes before new ones come.
            self._built = build_experts(
                plan.binding,
                pair,
                hardware,
                make_residency=lambda weights: _residency(plan.binding.placement, weights),
                previous=self._built,
            )
            self._patchers = tuple(self._built.residency.patchers.values())
        self._built.residency.reserve(plan.activation_bytes)
        return self._built


class ExpertsHandle:
    """Both experts with the LoRAs on them (socket WAN_EXPERTS)."""

    def __init__(self, pair: ExpertPair, built: _BuiltExperts | None = None) -> None:
        self.pair = pair
        self._built = built or _BuiltExperts()

    @property
    def patcher(self) -> WeightsPatcher | None:
        return self._built.patcher

    def get_models(self) -> list[WeightsPatcher]:
        return self._built.get_models()

    @property
    def placement(self) -> Placement | None:
        """Where the weights of what is built are; a plan keeps it where another is no better."""
        return self._built.placement

    @property
    def bytes_on_host(self) -> int:
        """What copies of the weights take of the host's memory now."""
        return sum(patcher.weights.bytes_on_host for patcher in self.get_models())

    def with_lora(self, choice: LoraChoice) -> "ExpertsHandle":
        """The same experts with one more LoRA. Where only strengths differ, they are used as they are built."""
        return ExpertsHandle(self.pair.with_lora(choice), self._built)

    def build(self, plan: ExecutionPlan, hardware: Hardware) -> Experts:
        """The experts as the plan binds them, ready to be activated under the host's memory management."""
        return self._built.build(self.pair, plan, hardware)


class _ComponentHandle(_Handle):
    """The text encoder or the VAE: one module, built anew when its device or dtype changes."""

    def __init__(self, build: Callable[[ComponentPlan], TextEncoder | Vae]) -> None:
        super().__init__()
        self._build = build
        self._built: TextEncoder | Vae | None = None
        self._binding: tuple[str | int, ...] | None = None

    @property
    def place(self) -> Place:
        """Where the weights are now."""
        return self._built.weights.place if self._built else Place.FILE

    def _component(self, plan: ComponentPlan) -> TextEncoder | Vae:
        if self._binding != (plan.device, plan.dtype, plan.kernels, plan.streamed_blocks):
            self._built, self._patchers, self._binding = None, (), None
            self._built = self._build(plan)
            self._patchers = (WeightsPatcher(self._built.weights),)
            self._binding = (plan.device, plan.dtype, plan.kernels, plan.streamed_blocks)
        return self._built


class TextEncoderHandle(_ComponentHandle):
    """The text encoder (socket WAN_TEXT_ENCODER)."""

    def __init__(self, source: TextEncoderSource) -> None:
        super().__init__(lambda plan: build_text_encoder(plan, source))
        self.spec = source.spec

    def ready(self, plan: ComponentPlan, prompts: Sequence[str], on_load: OnLoad) -> TextEncoder:
        """The encoder, its weights on the device unless every prompt is remembered."""
        encoder = self._component(plan)
        if not encoder.is_cached(prompts):
            bring_to_device({"text encoder": self.patcher}, plan.peak_bytes - encoder.weights.resident_bytes, on_load)
        return encoder


class VaeHandle(_ComponentHandle):
    """The VAE (socket WAN_VAE)."""

    def __init__(self, source: VaeSource) -> None:
        super().__init__(lambda plan: build_vae(plan, source))
        self.spec = source.spec

    def ready(self, plan: ComponentPlan, on_load: OnLoad) -> Vae:
        """The VAE with its weights on the device and room for what the plan needs beside them."""
        vae = self._component(plan)
        bring_to_device({"VAE": self.patcher}, plan.peak_bytes, on_load)
        return vae
