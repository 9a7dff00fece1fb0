"""Trained weights to shipped files, and shipped files back to a state that a training can go on from."""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from miniature.weights import Parts
from miniature.write import write_parts
from wan_core.checkpoint.experts import open_experts
from wan_core.checkpoint.find import find_model
from wan_core.checkpoint.read import Checkpoint, open_checkpoint
from wan_core.checkpoint.text_encoder import EMBEDDED_VOCABULARY, open_text_encoder
from wan_core.models.vae21 import WanVae
from wan_core.specs import Expert

from .experts import TEXT_ENCODER, Trainee
from .optimiser import MovingAverage
from .store import Store
from .vae import VAE_DONE

MAX_FILE_BYTES = 16_000_000
MAX_TOTAL_BYTES = 48_000_000


def export(folder: Path, vae: WanVae, trainee: Trainee, average: MovingAverage, vocabulary: bytes, origin: str) -> None:
    """Write the averaged weights in bfloat16, in ComfyUI's layout; assert that they are small enough to ship."""
    parts = Parts(
        experts={expert: _shipped(average.of(expert.value)) for expert in trainee.transformers},
        text_encoder=_shipped(average.of(TEXT_ENCODER)),
        vae=_shipped(vae.state_dict()),
        vocabulary=vocabulary,
        origin=origin,
    )
    write_parts(folder, parts, "comfyui")
    sizes = {path.name: path.stat().st_size for path in folder.rglob("*.safetensors")}
    assert max(sizes.values()) <= MAX_FILE_BYTES and sum(sizes.values()) <= MAX_TOTAL_BYTES, (
        f"too large to ship: {sizes}"
    )


def take_up(folder: Path, pace: dict[str, float] | None, store: Store) -> None:
    """Make written files the state of a training; `pace` is how far the experts had come, `None` for not at all.

    Only the state of the optimiser is lost.
    """
    if pace is None:
        shutil.copyfile(folder / f"{VAE_DONE}.pt", store.path(VAE_DONE))
        return
    files = find_model(folder)
    pair = open_experts(files.high, files.low)
    source = open_text_encoder(files.text_encoder, files.tokenizer)
    modules = {expert.value: _tensors(pair[expert]) for expert in Expert}
    modules[TEXT_ENCODER] = _tensors(source.checkpoint)
    average = {f"{part}.{name}": tensor for part, tensors in modules.items() for name, tensor in tensors.items()}
    store.save(VAE_DONE, _tensors(open_checkpoint(files.vae)))
    store.save("experts", {"modules": modules, "average": average, "pace": pace})
    store.save("vocabulary", torch.frombuffer(bytearray(source.vocabulary()), dtype=torch.uint8))


def _tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {
        name: checkpoint.load(name, dtype=torch.float32) for name in checkpoint.tensors if name != EMBEDDED_VOCABULARY
    }


def _shipped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()}
