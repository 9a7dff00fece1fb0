"""Files of other formats in a real host: listed in the combos, and the same video to the last bit."""

from collections.abc import Callable

import pytest
import torch

from tests.host.client import Client, Prompt
from tests.host.graphs import inputs, node_id
from tests.host.models import BY_BLOCK, ENCODER_PTH, GGUF, VAE_PTH
from tests.host.server import ComfyServer

Saved = Callable[[Prompt, dict[str, tuple[str, int]]], dict[str, torch.Tensor]]


def options(client: Client, node: str, widget: str) -> list[str]:
    kind, details = client.get("/object_info")[node]["input"]["required"][widget]
    return details["options"] if kind == "COMBO" else kind


def test_combos_list_what_can_be_read(client: Client) -> None:
    experts = options(client, "WanVelocityLoadExperts", "high_noise")
    assert {*GGUF.values(), *BY_BLOCK.values()} <= {*experts}
    assert not [name for name in experts if "block_0" in name or "-of-0000" in name]
    assert ENCODER_PTH in options(client, "WanVelocityLoadTextEncoder", "file")
    assert VAE_PTH in options(client, "WanVelocityLoadVAE", "file")


@pytest.mark.parametrize("given", ["both", "low by name"])
def test_gguf_and_pytorch_files_give_the_same_video(
    server: ComfyServer, graph: Prompt, saved: Saved, given: str
) -> None:
    """Unquantised on purpose: what is left to differ is a tensor that went astray."""
    wanted = {
        "latent": (node_id(graph, "WanVelocitySampler"), 0),
        "images": (node_id(graph, "WanVelocityDecode"), 0),
    }
    expected = saved(graph, wanted)
    experts = GGUF if given == "both" else GGUF | {"low_noise": "from the same folder"}
    inputs(graph, "WanVelocityLoadExperts").update(experts)
    inputs(graph, "WanVelocityLoadTextEncoder").update(file=ENCODER_PTH)
    inputs(graph, "WanVelocityLoadVAE").update(file=VAE_PTH)
    got = saved(graph, wanted)
    assert torch.equal(got["latent"], expected["latent"]) and torch.equal(got["images"], expected["images"])


def test_weights_in_eight_bits_give_the_same_video_decoded_and_as_stored(
    server: ComfyServer, graph: Prompt, saved: Saved
) -> None:
    wanted = {"latent": (node_id(graph, "WanVelocitySampler"), 0)}
    plain = saved(graph, wanted)["latent"]
    inputs(graph, "WanVelocityLoadExperts").update(BY_BLOCK)
    latents = []
    for storage in ("compute", "file"):
        settings = {"preset": "auto", "weight_storage": storage}
        graph["profile"] = {"class_type": "WanVelocityProfile", "inputs": settings}
        inputs(graph, "WanVelocitySampler").update(profile=["profile", 0])
        latents.append(saved(graph, wanted)["latent"])
    assert torch.equal(*latents) and not torch.equal(latents[0], plain)
