"""Native nodes in our graph and our nodes against native ones, in float32 on the miniature model."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.host.client import Client, Prompt
from tests.host.graphs import MINI_VAE, inputs, native_experts, node_id, set_recipe
from tests.host.models import WIDE_TEXT

Saved = Callable[[Prompt, dict[str, tuple[str, int]]], dict[str, Tensor]]

STEPS, SPLIT, SHIFT = 6, 3, 5.0


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def our_latent(graph: Prompt, saved: Saved) -> Tensor:
    return saved(graph, {"latent": (node_id(graph, "WanVelocitySampler"), 0)})["latent"]


def native_sampler(graph: Prompt, expert: str, latent: list, **changes: object) -> dict[str, object]:
    """A native KSamplerAdvanced on one expert, with the conditioning, seed and guidance of our sampler."""
    text = node_id(graph, "WanVelocityEncodeText")
    values = {
        "model": [f"native {expert}", 0], "positive": [text, 0], "negative": [text, 1], "latent_image": latent,
        "add_noise": "enable", "noise_seed": 7, "steps": STEPS, "cfg": 4.0 if expert == "high" else 3.0,
        "sampler_name": "euler", "scheduler": "simple", "start_at_step": 0, "end_at_step": 10000,
        "return_with_leftover_noise": "disable",
    } | changes  # fmt: skip
    return {"class_type": "KSamplerAdvanced", "inputs": values}


@pytest.fixture
def both(graph: Prompt) -> Prompt:
    """Our sampler and a native pair in one graph: same experts, noise, sigmas, split, guidance and conditioning."""
    empty = [node_id(graph, "WanVelocityEmptyLatent"), 0]
    native_experts(graph, SHIFT)
    graph["sigmas"] = {
        "class_type": "BasicScheduler",
        "inputs": {"model": ["native high", 0], "scheduler": "simple", "steps": STEPS, "denoise": 1.0},
    }
    set_recipe(graph, solver="euler")
    inputs(graph, "WanVelocitySampler").update(sigmas=["sigmas", 0], seed=7, noise_device="cpu")
    graph["first"] = native_sampler(graph, "high", empty, end_at_step=SPLIT, return_with_leftover_noise="enable")
    graph["second"] = native_sampler(graph, "low", ["first", 0], add_noise="disable", start_at_step=SPLIT)
    return graph


def test_fully_native_graph_gives_the_same_latent(both: Prompt, saved: Saved) -> None:
    found = saved(both, {"ours": (node_id(both, "WanVelocitySampler"), 0), "native": ("second", 0)})
    assert relative(found["ours"], found["native"]) <= 1e-3


def test_hands_over_to_a_native_sampler(both: Prompt, saved: Saved) -> None:
    inputs(both, "WanVelocitySampler").update(end_step=SPLIT, leftover_noise="keep")
    both["second of ours"] = native_sampler(
        both, "low", [node_id(both, "WanVelocitySampler"), 0], add_noise="disable", start_at_step=SPLIT
    )
    found = saved(both, {"chained": ("second of ours", 0), "native": ("second", 0)})
    assert relative(found["chained"], found["native"]) <= 1e-3


def test_takes_over_from_a_native_sampler(both: Prompt, saved: Saved) -> None:
    inputs(both, "WanVelocitySampler").update(latent=["first", 0], start_step=SPLIT, add_noise="off")
    found = saved(both, {"chained": (node_id(both, "WanVelocitySampler"), 0), "native": ("second", 0)})
    assert relative(found["chained"], found["native"]) <= 1e-3


def test_native_empty_latent(graph: Prompt, saved: Saved) -> None:
    before = our_latent(graph, saved)
    graph["native empty"] = {
        "class_type": "EmptyHunyuanLatentVideo",
        "inputs": {"width": 64, "height": 64, "length": 5, "batch_size": 1},
    }
    inputs(graph, "WanVelocitySampler").update(latent=["native empty", 0])
    assert torch.equal(our_latent(graph, saved), before)


def test_native_conditioning_nodes_between(graph: Prompt, saved: Saved) -> None:
    """A negative set to zero runs; an average that is all of one prompt changes nothing."""
    before = our_latent(graph, saved)
    text = node_id(graph, "WanVelocityEncodeText")
    graph["averaged"] = {
        "class_type": "ConditioningAverage",
        "inputs": {"conditioning_to": [text, 0], "conditioning_from": [text, 1], "conditioning_to_strength": 1.0},
    }
    inputs(graph, "WanVelocitySampler").update(positive=["averaged", 0])
    assert torch.equal(our_latent(graph, saved), before)
    graph["zeroed"] = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": [text, 1]}}
    inputs(graph, "WanVelocitySampler").update(negative=["zeroed", 0])
    changed = our_latent(graph, saved)
    assert torch.isfinite(changed).all() and not torch.equal(changed, before)


def test_decode_equals_native_decode(graph: Prompt, saved: Saved) -> None:
    latent = [node_id(graph, "WanVelocitySampler"), 0]
    graph["native vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": MINI_VAE}}
    graph["native decode"] = {"class_type": "VAEDecode", "inputs": {"samples": latent, "vae": ["native vae", 0]}}
    found = saved(graph, {"ours": (node_id(graph, "WanVelocityDecode"), 0), "native": ("native decode", 0)})
    assert found["ours"].shape == (5, 64, 64, 3)
    assert (found["ours"] - found["native"]).abs().max() <= 1e-3


def test_encode_equals_native_encode(graph: Prompt, saved: Saved) -> None:
    images = [node_id(graph, "WanVelocityDecode"), 0]
    graph["encode"] = {
        "class_type": "WanVelocityEncode",
        "inputs": {"images": images, "vae": [node_id(graph, "WanVelocityLoadVAE"), 0]},
    }
    graph["native vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": MINI_VAE}}
    graph["native encode"] = {"class_type": "VAEEncode", "inputs": {"pixels": images, "vae": ["native vae", 0]}}
    graph["tiles"] = {"class_type": "WanVelocityProfile", "inputs": {"preset": "auto", "vae_tiling": "on"}}
    graph["tiled"] = copy.deepcopy(graph["encode"])
    graph["tiled"]["inputs"]["profile"] = ["tiles", 0]
    found = saved(graph, {"ours": ("encode", 0), "tiled": ("tiled", 0), "native": ("native encode", 0)})
    assert found["ours"].shape == (1, 16, 2, 8, 8)
    assert relative(found["ours"], found["native"]) <= 1e-3
    assert relative(found["tiled"], found["ours"]) <= 1e-5  # one tile covers so small a frame


def test_what_a_decode_or_an_encode_concedes_is_said_on_its_node(graph: Prompt, client: Client) -> None:
    decode, vae = node_id(graph, "WanVelocityDecode"), node_id(graph, "WanVelocityLoadVAE")
    graph["tiles"] = {"class_type": "WanVelocityProfile", "inputs": {"preset": "auto", "vae_tiling": "on"}}
    inputs(graph, "WanVelocityDecode").update(profile=["tiles", 0])
    graph["encode"] = {
        "class_type": "WanVelocityEncode",
        "inputs": {"images": [decode, 0], "vae": [vae, 0], "profile": ["tiles", 0]},
    }
    graph["keep"] = {"class_type": "HostTestSaveTensor", "inputs": {"value": ["encode", 0], "name": "conceded"}}
    run = client.run(graph)
    assert run.status == "execution_success", run.error
    for node in (decode, "encode"):
        assert (node, "VAE tiling: tiles of 512x512 pixels [near] (asked for)") in run.said


def test_takes_native_text_of_the_real_width(both: Prompt, saved: Saved) -> None:
    """[1, 512, 4096] with zeros after the prompt, as a native CLIP gives it, on experts of that text width."""
    inputs(both, "WanVelocityLoadExperts").update(WIDE_TEXT)
    both["unet high"]["inputs"]["unet_name"] = WIDE_TEXT["high_noise"]
    both["unet low"]["inputs"]["unet_name"] = WIDE_TEXT["low_noise"]
    for name, seed in (("positive", 1), ("negative", 2)):
        both[name] = {"class_type": "HostTestClipForm", "inputs": {"width": 4096, "length": 12, "seed": seed}}
        for sampler in (node_id(both, "WanVelocitySampler"), "first", "second"):
            both[sampler]["inputs"][name] = [name, 0]
    found = saved(both, {"ours": (node_id(both, "WanVelocitySampler"), 0), "native": ("second", 0)})
    assert relative(found["ours"], found["native"]) <= 1e-3
