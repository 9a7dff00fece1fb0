"""The host adapter: everything our nodes ask of ComfyUI, apart from memory management (`patcher.py`).

Files, device, progress, previews and interruption. No other file of the nodes imports comfy, folder_paths,
latent_preview or server, so that another host needs another one of these.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.utils
import folder_paths
import latent_preview
import torch
from server import PromptServer

from ..wan_core.checkpoint.locate import is_shard, weight_files
from ..wan_core.errors import InputError, Interrupted
from ..wan_core.hardware import Hardware
from ..wan_core.hooks import StepEvent
from .patcher import available_bytes

PACK_ROOT = Path(__file__).parent.parent
MODEL_FOLDERS = ("diffusion_models", "loras", "text_encoders", "vae")
_MEASURING_BYTES = 1 << 30
# The host lists no GGUF files; these lists of them have the names that ComfyUI-GGUF gives them.
_GGUF_LISTS = {"diffusion_models": "unet_gguf", "text_encoders": "clip_gguf"}


def register_pack_models() -> None:
    """Let every loader of the host, native ones included, see the models below the pack's own `models` folder."""
    for kind in MODEL_FOLDERS:
        for folder in sorted((PACK_ROOT / "models").glob(f"**/{kind}/")):
            folder_paths.add_model_folder_path(kind, str(folder))


def model_choices(kind: str) -> list[str]:
    """Files of a model folder of the host that can be read, sorted; the shards of one model stand as their folder."""
    names = [name for name in folder_paths.get_filename_list(kind) if name.endswith((".safetensors", ".pth"))]
    if listing := _GGUF_LISTS.get(kind):
        folder_paths.folder_names_and_paths[listing] = (folder_paths.folder_names_and_paths[kind][0], {".gguf"})
        names += folder_paths.get_filename_list(listing)
    return sorted({str(Path(name).parent) if is_shard(Path(name)) else name for name in names})


def model_path(kind: str, name: str) -> Path:
    """Where a choice of `model_choices` is."""
    for folder in folder_paths.get_folder_paths(kind):
        if (path := Path(folder, name)).exists():
            return path
    raise InputError(f"there is no {name!r} in the {kind} folders of this ComfyUI; choose another file or refresh")


def stamps(kind: str, names: Sequence[str | None]) -> str:
    """Changes when one of these files does, so that the host opens it anew; `None` is a connected name."""
    files = [file for name in names if name is not None for file in weight_files(model_path(kind, name))]
    return repr([(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files])


def hardware() -> Hardware:
    """The device that the host computes on, with what it would evict for us counted as free."""
    device = comfy.model_management.get_torch_device()
    _make_room_to_measure(device)
    return Hardware.detect(str(device), free_memory=available_bytes(device))


@cache
def _make_room_to_measure(device: torch.device) -> None:
    """Before the matrix products of the first `Hardware.detect`, which a card full of other models could not take."""
    if device.type != "cpu":
        comfy.model_management.free_memory(_MEASURING_BYTES, device)


def result_device() -> torch.device:
    """Where the host wants tensors between nodes."""
    return comfy.model_management.intermediate_device()


def latent_format() -> comfy.latent_formats.LatentFormat:
    """What the host knows of Wan's latents: the way to model space, the colors of its previews."""
    return comfy.latent_formats.Wan21()


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the core's `Interrupted` into the exception that the host raises for an interrupt."""
    try:
        yield
    except Interrupted:
        comfy.model_management.throw_exception_if_processing_interrupted()
        raise


def say(text: str, node_id: str) -> None:
    """Show a line of text on a node."""
    PromptServer.instance.send_progress_text(text, node_id)


class NodeHooks:
    """Progress bar, previews, remaining time and interruption of one running node."""

    def __init__(self, node_id: str, *, previews: bool = False) -> None:
        self._node_id = node_id
        self._counted: str | None = None
        self._bar: comfy.utils.ProgressBar | None = None
        self._previewer = None
        self._seconds: list[float] = []
        if previews:
            device = comfy.model_management.get_torch_device()
            self._previewer = latent_preview.get_previewer(device, latent_format())

    def on_phase(self, name: str) -> None:
        """Nothing to show: what a phase counts says more."""

    def on_load(self, what: str, done: int, total: int) -> None:
        if what != self._counted:
            say(f"loading {what}, {total / 2**30:.3g} GiB", self._node_id)
        self._advance(what, done, total)

    def on_step(self, event: StepEvent) -> None:
        self._seconds.append(event.seconds)
        done, preview = event.index + 1, None
        if self._previewer is not None:
            # The first latent frame stands for one frame of video only; the middle shows what is going on.
            middle = event.denoised.shape[2] // 2
            frame = event.denoised[:1, :, middle : middle + 1]
            preview = self._previewer.decode_latent_to_preview_image("JPEG", frame)
        say(f"{event.expert.value} noise, {self._remaining(event.num_steps - done)}", self._node_id)
        self._advance("steps", done, event.num_steps, preview)

    def on_chunk(self, done: int, total: int) -> None:
        self._advance("latent frames", done, total)

    def should_stop(self) -> bool:
        return comfy.model_management.processing_interrupted()

    def _advance(self, what: str, done: int, total: int, preview: object = None) -> None:
        if what != self._counted:
            # The host's bar swallows a value below its last one, so each thing that is counted has a bar.
            self._counted, self._bar = what, comfy.utils.ProgressBar(total, node_id=self._node_id)
        self._bar.update_absolute(done, total, preview)

    def _remaining(self, num_steps: int) -> str:
        # The first step also pays for compilation and warm-up.
        timed = self._seconds[1:] or self._seconds
        per_step = sum(timed) / len(timed)
        return f"{per_step:.3g} s/step, {num_steps * per_step:.0f} s left"
