"""Our experts evicted in the middle of a graph and unloaded between two, in a real ComfyUI: what stays, what returns.

On a CPU both experts are always resident; other placements, and a card's memory, are `test_patcher.py`'s.
"""

import json
import uuid

import pytest
import torch

from tests.host.client import Client, Prompt
from tests.host.graphs import inputs, node_id
from tests.host.test_runs import Saved, our_latent

NOTHING = {"device": 0, "copies": 0}


def held(client: Client, graph: Prompt, *, evict: bool = False) -> dict[str, float]:
    """What is held of the experts after the sampler, as shares of all of it; see `HostTestHeld`."""
    experts = inputs(graph, "WanVelocitySampler")["experts"]
    after = [node_id(graph, "WanVelocitySampler"), 0]
    values = {"after": after, "experts": experts, "evict": evict, "label": uuid.uuid4().hex}
    graph["held"] = {"class_type": "HostTestHeld", "inputs": values}
    run = client.run(graph)
    assert run.status == "execution_success", run.error
    del graph["held"]
    found = json.loads(run.text("held"))
    return {name: found[name] / found["all"] for name in NOTHING}


def test_evicted_for_another_node_of_the_graph(client: Client, graph: Prompt, saved: Saved) -> None:
    before = our_latent(graph, saved)
    assert held(client, graph) == {"device": 1, "copies": 0}
    assert held(client, graph, evict=True) == NOTHING
    inputs(graph, "WanVelocitySampler").update(end_step=9997)
    assert torch.equal(our_latent(graph, saved), before)
    assert held(client, graph)["device"] == 1


@pytest.mark.parametrize("cache", [False, True], ids=["models", "models and cache"])
def test_unloaded_between_two_graphs(client: Client, graph: Prompt, saved: Saved, *, cache: bool) -> None:
    before = our_latent(graph, saved)
    assert held(client, graph) == {"device": 1, "copies": 0}
    client.free(graph, cache=cache)
    if not cache:
        # Else the host has forgotten the experts, and everything runs anew.
        assert held(client, graph) == NOTHING
    inputs(graph, "WanVelocitySampler").update(end_step=9996)
    assert torch.equal(our_latent(graph, saved), before)
