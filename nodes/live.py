"""What a running node tells the host: progress bar, previews, interruption, and the sampler's live view in the browser.

The live view costs next to nothing where nobody looks: without a listening browser nothing is counted or sent.
"""

from types import TracebackType

import comfy.model_management
import comfy.utils
import latent_preview

from ..wan_core.component_plan import ComponentPlan
from ..wan_core.estimate import RunEstimate
from ..wan_core.hardware import Hardware
from ..wan_core.hooks import PlanEvent, StepEvent
from ..wan_core.live import LiveRun, LiveState, Memory
from ..wan_core.measure import peak_bytes, used_bytes
from . import host

# The event that `web/live_view.js` listens to; its data is a `LiveState` and the id of the node.
LIVE_EVENT = "wan_velocity.live"


class NodeHooks:
    """Progress bar, previews and interruption of one running node."""

    def __init__(self, node_id: str, *, previews: bool = False) -> None:
        self._node_id = node_id
        self._counted: str | None = None
        self._bar: comfy.utils.ProgressBar | None = None
        self._previewer = None
        if previews:
            device = comfy.model_management.get_torch_device()
            self._previewer = latent_preview.get_previewer(device, host.latent_format())

    def on_plan(self, plan: PlanEvent) -> None:
        """Nothing to show: a bar counts."""

    def on_warning(self, text: str) -> None:
        host.say(text, self._node_id)

    def tell_concessions(self, plan: ComponentPlan) -> None:
        """Say on the node what a plan could not keep: this node has no report."""
        if plan.concessions:
            self.on_warning("\n".join(map(str, plan.concessions)))

    def on_phase(self, name: str) -> None:
        """Nothing to show: what a phase counts says more."""

    def on_load(self, what: str, done: int, total: int) -> None:
        self._advance(what, done, total)

    def on_step(self, event: StepEvent) -> None:
        preview = None
        if self._previewer is not None:
            # The first latent frame stands for one frame of video only; the middle shows what is going on.
            middle = event.denoised.shape[2] // 2
            frame = event.denoised[:1, :, middle : middle + 1]
            preview = self._previewer.decode_latent_to_preview_image("JPEG", frame)
        self._advance("steps", event.index + 1, event.num_steps, preview)

    def on_chunk(self, done: int, total: int) -> None:
        self._advance("latent frames", done, total)

    def should_stop(self) -> bool:
        return comfy.model_management.processing_interrupted()

    def _advance(self, what: str, done: int, total: int, preview: object = None) -> None:
        if what != self._counted:
            # The host's bar swallows a value below its last one, so each thing that is counted has a bar.
            self._counted, self._bar = what, comfy.utils.ProgressBar(total, node_id=self._node_id)
        self._bar.update_absolute(done, total, preview)


class SamplerHooks(NodeHooks):
    """Hooks of the sampler: what any node shows, and its live view. A context manager around the run."""

    def __init__(self, node_id: str, hardware: Hardware) -> None:
        super().__init__(node_id, previews=True)
        self._hardware = hardware
        self._live = LiveRun(self._show, self._memory)

    def __enter__(self) -> "SamplerHooks":
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    @property
    def state(self) -> LiveState:
        """What is shown now."""
        return self._live.state

    def expect(self, estimate: RunEstimate) -> None:
        """How long the run should take; before that, no time left is shown."""
        self._live.expect(estimate)

    def on_plan(self, plan: PlanEvent) -> None:
        self._live.on_plan(plan)

    def on_warning(self, text: str) -> None:
        self._live.on_warning(text)

    def on_phase(self, name: str) -> None:
        self._live.on_phase(name)

    def on_load(self, what: str, done: int, total: int) -> None:
        super().on_load(what, done, total)
        self._live.on_load(what, done, total)

    def on_step(self, event: StepEvent) -> None:
        super().on_step(event)
        self._live.on_step(event)

    def _show(self, state: LiveState) -> None:
        if host.listener():
            host.send(LIVE_EVENT, {"node": self._node_id, **state.to_dict()})

    def _memory(self) -> Memory | None:
        if not host.listener():
            return None
        device = self._hardware.device
        return Memory(used=used_bytes(device), peak=peak_bytes(device), total=self._hardware.total_memory)
