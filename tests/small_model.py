"""A model smaller than the miniature, random weights, in the same files: for tests of what is done with weights,
which compute the same thing many times and ask whether it is the same.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch

from miniature.architecture import TEXT_ENCODER, VAE
from miniature.architecture import TRANSFORMER as MINIATURE
from miniature.vocabulary import train_vocabulary
from miniature.weights import Parts, draw_table, text_encoder_table, transformer_table, vae_table
from miniature.write import PREFIX, write_comfyui, write_safetensors
from wan_core.specs import Expert

# One head, as wide as in every Wan; four blocks, so that some stream and some stay.
TRANSFORMER = replace(MINIATURE, dim=128, num_heads=1, ffn_dim=256, num_layers=4)


def write_small_model(folder: Path, seed: int = 0) -> None:
    """A complete model in ComfyUI's layout; the same seed gives the same bytes."""
    dtype = torch.bfloat16
    experts = {expert: draw_table(transformer_table(TRANSFORMER), f"{seed} {expert.value}", dtype) for expert in Expert}
    parts = Parts(
        experts={},
        text_encoder=draw_table(text_encoder_table(TEXT_ENCODER), f"{seed} text encoder", dtype),
        vae=draw_table(vae_table(VAE), f"{seed} vae", dtype),
        vocabulary=train_vocabulary(TEXT_ENCODER.vocab_size),
        origin=f"random, seed {seed}",
    )
    write_comfyui(folder, parts)
    config = {"transformer": {"num_heads": TRANSFORMER.num_heads, "text_dim": TRANSFORMER.text_dim}}
    for expert, tensors in experts.items():
        metadata = {"wan_velocity.expert": expert.value, "config": json.dumps(config)}
        write_safetensors(folder / "diffusion_models" / f"{PREFIX}_{expert.value}_noise.safetensors", tensors, metadata)
