"""Runs that are repeated, interrupted, or run in another way: what comes after is as if nothing had happened."""

import json
import time
import uuid
from collections.abc import Callable

import torch
from torch import Tensor

from tests.host.client import Client, Prompt, Run
from tests.host.graphs import inputs, node_id, set_recipe
from tests.host.models import OFFICIAL
from tests.host.server import ComfyServer

Saved = Callable[[Prompt, dict[str, tuple[str, int]]], dict[str, Tensor]]


def our_latent(graph: Prompt, saved: Saved) -> Tensor:
    return saved(graph, {"latent": (node_id(graph, "WanVelocitySampler"), 0)})["latent"]


def interrupted(client: Client, graph: Prompt, class_type: str) -> tuple[Run, float]:
    """Interrupt a graph once the node of this class shows progress; the run, and the seconds that stopping took."""
    node, asked = node_id(graph, class_type), []

    def stop(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == node and data["value"] >= 1 and not asked:
            asked.append(time.monotonic())
            client.interrupt()

    run = client.run(graph, stop)
    assert asked, "the node never showed progress"
    return run, time.monotonic() - asked[0]


def loaded_models(client: Client, graph: Prompt) -> list[list]:
    """What the host counts: class, loaded bytes and size of each model in its list."""
    after = [node_id(graph, "WanVelocitySampler"), 0]
    graph["models"] = {"class_type": "HostTestLoadedModels", "inputs": {"after": after, "label": uuid.uuid4().hex}}
    run = client.run(graph)
    del graph["models"]
    return json.loads(run.text("models"))


def test_interrupted_sampling_stops_at_once_and_leaves_nothing(
    client: Client, graph: Prompt, saved: Saved, server: ComfyServer
) -> None:
    before = our_latent(graph, saved)
    inputs(graph, "WanVelocitySampler").update(seed=99)
    set_recipe(graph, steps=1000)
    run, seconds = interrupted(client, graph, "WanVelocitySampler")
    assert run.status == "execution_interrupted"
    assert seconds < 2.0
    # An end step past the end changes nothing, but to the host's cache it is another input, so that this samples again.
    inputs(graph, "WanVelocitySampler").update(seed=0, end_step=9999)
    set_recipe(graph)
    assert torch.equal(our_latent(graph, saved), before)
    # After the last interrupt: other tests leave refusals, with ComfyUI's own tracebacks, in the same log.
    assert "Traceback" not in server.log.rpartition("Processing interrupted")[2]


def test_interrupted_decode_stops_at_once(client: Client, graph: Prompt) -> None:
    graph["long"] = {
        "class_type": "HostTestRandomLatent",
        "inputs": {"shape": "1,16,41,8,8", "seed": 0, "mask": False},
    }
    inputs(graph, "WanVelocityDecode").update(latent=["long", 0])
    run, seconds = interrupted(client, graph, "WanVelocityDecode")
    assert run.status == "execution_interrupted"
    assert seconds < 2.0


def test_same_seed_same_bits_after_another_job(graph: Prompt, saved: Saved) -> None:
    first = our_latent(graph, saved)
    inputs(graph, "WanVelocitySampler").update(seed=5)
    assert not torch.equal(our_latent(graph, saved), first)
    inputs(graph, "WanVelocitySampler").update(seed=0, end_step=9000)
    assert torch.equal(our_latent(graph, saved), first)


def test_the_host_counts_our_weights_and_can_unload_them(client: Client, graph: Prompt, saved: Saved) -> None:
    before = our_latent(graph, saved)
    ours = {"WanTransformer", "Umt5Encoder"}
    counted = [row for row in loaded_models(client, graph) if row[0] in ours]
    assert sorted(row[0] for row in counted).count("WanTransformer") == 2
    assert all(loaded == size > 0 for _, loaded, size in counted)
    client.free(graph)
    assert not loaded_models(client, graph)
    inputs(graph, "WanVelocitySampler").update(end_step=9998)
    assert torch.equal(our_latent(graph, saved), before)


def test_the_videos_of_a_batch_come_one_after_the_other(graph: Prompt, saved: Saved) -> None:
    images = {"images": (node_id(graph, "WanVelocityDecode"), 0)}
    frames = inputs(graph, "WanVelocityEmptyLatent")["frames"]
    inputs(graph, "WanVelocityEmptyLatent").update(batch=2)
    both = saved(graph, images)["images"]
    assert both.shape[0] == 2 * frames
    assert (both[:frames] - both[frames:]).abs().mean() > 0.01


def test_batched_and_sequential_guidance_agree(graph: Prompt, saved: Saved) -> None:
    found = {}
    for way in ("batched", "sequential"):
        graph["profile"] = {"class_type": "WanVelocityProfile", "inputs": {"preset": "auto", "guidance": way}}
        inputs(graph, "WanVelocitySampler").update(profile=["profile", 0])
        found[way] = our_latent(graph, saved)
    assert (found["batched"] - found["sequential"]).norm() / found["batched"].norm() <= 1e-5


def test_official_folder_gives_the_same_as_single_files(graph: Prompt, saved: Saved) -> None:
    single = our_latent(graph, saved)
    inputs(graph, "WanVelocityLoadExperts").update(high_noise=OFFICIAL, low_noise="from the same folder")
    assert torch.equal(our_latent(graph, saved), single)


def test_an_unsupported_choice_falls_back_and_says_so(client: Client, graph: Prompt) -> None:
    graph["profile"] = {"class_type": "WanVelocityProfile", "inputs": {"preset": "auto", "attention": "cudnn"}}
    inputs(graph, "WanVelocitySampler").update(profile=["profile", 0])
    report = client.run(graph).text(node_id(graph, "PreviewAny"))
    assert "instead of cudnn" in report


def test_a_batch_decodes_to_its_videos_one_after_the_other(graph: Prompt, saved: Saved) -> None:
    inputs(graph, "WanVelocityEmptyLatent").update(batch=2)
    found = saved(
        graph,
        {"latent": (node_id(graph, "WanVelocitySampler"), 0), "images": (node_id(graph, "WanVelocityDecode"), 0)},
    )
    assert found["latent"].shape == (2, 16, 2, 8, 8)
    assert found["images"].shape == (10, 64, 64, 3)
    graph["second video"] = {
        "class_type": "LatentFromBatch",
        "inputs": {"samples": [node_id(graph, "WanVelocitySampler"), 0], "batch_index": 1, "length": 1},
    }
    inputs(graph, "WanVelocityDecode").update(latent=["second video", 0])
    alone = saved(graph, {"images": (node_id(graph, "WanVelocityDecode"), 0)})["images"]
    assert torch.allclose(found["images"][5:], alone, atol=1e-5)
    assert not torch.allclose(found["images"][:5], alone, atol=1e-2)
