"""The shipped model in ComfyUI: our nodes and native ones make the same kind of video of one prompt.

Native samplers draw other noise, so the videos differ; what the prompt names must be in both.
"""

from collections.abc import Callable

import numpy as np
import pytest
from torch import Tensor

from miniature.judge import Reading, read_clip
from tests.host.client import Prompt
from tests.host.graphs import inputs, node_id, set_recipe, shipped
from tests.host.models import TRAINED
from tests.host.test_native import native_sampler

Saved = Callable[[Prompt, dict[str, tuple[str, int]]], dict[str, Tensor]]

PROMPT = "a large red circle moving right on a black background"
SAYS = Reading(colour="red", shape="circle", count=1, motion="right")
STEPS, HIGH_STEPS = 8, 5


@pytest.fixture
def both() -> Prompt:
    """The shipped workflow with the shipped model, and native loaders, samplers and decode beside it."""
    graph = shipped("wan_velocity_mini_t2v")
    inputs(graph, "WanVelocityLoadExperts").update(
        {name: TRAINED[value] for name, value in inputs(graph, "WanVelocityLoadExperts").items() if value in TRAINED}
    )
    for loader in ("WanVelocityLoadTextEncoder", "WanVelocityLoadVAE"):
        node = inputs(graph, loader)
        node.update({name: TRAINED[value] for name, value in node.items() if value in TRAINED})
    inputs(graph, "WanVelocityEmptyLatent").update(width=128, height=128, frames=33)
    inputs(graph, "WanVelocityEncodeText").update(prompt=PROMPT)
    set_recipe(graph, steps=STEPS, shift=8.0)
    for expert in ("high", "low"):
        graph[f"unet {expert}"] = {
            "class_type": "UNETLoader",
            "inputs": {"unet_name": f"trained_{expert}_noise.safetensors", "weight_dtype": "default"},
        }
        graph[f"native {expert}"] = {
            "class_type": "ModelSamplingSD3", "inputs": {"model": [f"unet {expert}", 0], "shift": 8.0}
        }  # fmt: skip
    empty = [node_id(graph, "WanVelocityEmptyLatent"), 0]
    counts = {"steps": STEPS}
    graph["first"] = native_sampler(
        graph, "high", empty, end_at_step=HIGH_STEPS, return_with_leftover_noise="enable", **counts
    )
    graph["second"] = native_sampler(
        graph, "low", ["first", 0], add_noise="disable", start_at_step=HIGH_STEPS, **counts
    )
    graph["vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": "trained_vae.safetensors"}}
    graph["decode"] = {"class_type": "VAEDecode", "inputs": {"samples": ["second", 0], "vae": ["vae", 0]}}
    return graph


def reading(images: Tensor) -> Reading:
    return read_clip(np.moveaxis(images.numpy() * 2 - 1, -1, 0))


def test_native_nodes_make_the_same_kind_of_video(both: Prompt, saved: Saved) -> None:
    found = saved(both, {"ours": (node_id(both, "WanVelocityDecode"), 0), "native": ("decode", 0)})
    for name, images in found.items():
        assert images.shape == (33, 128, 128, 3)
        assert reading(images) == SAYS, name
