"""The host adapter: everything our nodes ask of ComfyUI, apart from memory management (`patcher.py`).

Files, device, interruption and messages; `live.py` has the progress of a running node, `routes.py` what the editor asks
before a run. No other file of the nodes imports comfy, folder_paths, latent_preview or server, so that another host
needs another one of these.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import folder_paths
import torch
from server import PromptServer

from ..wan_core.checkpoint.locate import is_shard, weight_files
from ..wan_core.cli.doctor import folder_notes
from ..wan_core.errors import InputError, Interrupted
from ..wan_core.hardware import Hardware
from .patcher import available_bytes, ram_kept_free

_LOG = logging.getLogger(__name__)
PACK_ROOT = Path(__file__).parent.parent
MODEL_FOLDERS = ("diffusion_models", "loras", "text_encoders", "vae")
_MEASURING_BYTES = 1 << 30
# The host lists no GGUF files; these lists of them have the names that ComfyUI-GGUF gives them.
_GGUF_LISTS = {"diffusion_models": "unet_gguf", "text_encoders": "clip_gguf"}


def warn_of_folder() -> None:
    """Say in the log why the panels stay empty, where they do."""
    for note in folder_notes(PACK_ROOT):
        _LOG.warning("%s: %s", PACK_ROOT.name, note)


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


def saved_runs_folder() -> Path:
    """Where runs that did not end wait to be resumed; a folder of the host's that it does not show over HTTP."""
    return Path(folder_paths.get_user_directory(), "__wan_velocity", "saved_runs")


def free_device() -> None:
    """Give back all device memory that can be given back, ours included: what is needed next comes back by itself."""
    device = comfy.model_management.get_torch_device()
    if device.type != "cpu":
        comfy.model_management.free_memory(1 << 62, device)
        comfy.model_management.soft_empty_cache()


def hardware(*, measure: bool = True, copies: int = 0) -> Hardware:
    """The device that the host computes on, with what it would evict for us counted as free.

    measure: `False` while something else runs, which times of its own would be wrong for and a disturbance to. copies:
    bytes of host memory that whoever asks holds already, and so need no room there.
    """
    device = comfy.model_management.get_torch_device()
    if measure:
        _make_room_to_measure(device)
    found = Hardware.detect(str(device), free_memory=available_bytes(device), measure=measure)
    return replace(found, host_free_memory=max(found.host_free_memory - ram_kept_free(), 0) + copies)


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


def listener() -> str | None:
    """The client that queued the running job, if it is there to listen."""
    client = PromptServer.instance.client_id
    return client if client in PromptServer.instance.sockets else None


def say(text: str, node_id: str) -> None:
    """Show a line of text on a node, to whoever queued the job."""
    if client := listener():
        PromptServer.instance.send_progress_text(text, node_id, client)


def send(event: str, data: dict[str, object]) -> None:
    """Send an event of this pack's own to whoever queued the job."""
    if client := listener():
        PromptServer.instance.send_sync(event, data, client)
