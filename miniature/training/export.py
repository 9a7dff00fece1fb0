"""Trained weights to shipped files, and shipped files back to a state that a training can go on from."""

from pathlib import Path

import torch
from torch import Tensor

from miniature.weights import Parts
from miniature.write import write_parts
from wan_core.checkpoint.experts import open_experts
from wan_core.checkpoint.find import find_model
from wan_core.checkpoint.keys import Kind
from wan_core.checkpoint.read import Checkpoint, open_checkpoint
from wan_core.checkpoint.text_encoder import open_text_encoder
from wan_core.models.vae21 import WanVae
from wan_core.specs import Expert

from .experts import TEXT_ENCODER, Trainee
from .optimiser import MovingAverage
from .store import Store

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
    assert max(sizes.values()) <= MAX_FILE_BYTES and sum(sizes.values()) <= MAX_TOTAL_BYTES, f"too large to ship: {sizes}"


def take_up(folder: Path, pace: dict[str, float], store: Store) -> None:
    """Make shipped files the state of a training that has come as far as `pace`; only the optimiser starts afresh."""
    files = find_model(folder)
    pair = open_experts(files.high, files.low)
    source = open_text_encoder(files.text_encoder, files.tokenizer)
    modules = {expert.value: _tensors(pair[expert], "transformer") for expert in Expert}
    modules[TEXT_ENCODER] = _tensors(source.checkpoint, "text_encoder")
    average = {f"{part}.{name}": tensor for part, tensors in modules.items() for name, tensor in tensors.items()}
    store.save("vae_done", _tensors(open_checkpoint(files.vae), "vae"))
    store.save("experts", {"modules": modules, "average": average, "pace": pace})
    store.save("vocabulary", torch.frombuffer(bytearray(source.vocabulary()), dtype=torch.uint8))


def _tensors(checkpoint: Checkpoint, kind: Kind) -> dict[str, Tensor]:
    return {name: checkpoint.load(info.name).float() for name, info in checkpoint.tensors_of(kind).items()}


def _shipped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()}
