"""Workflows that were saved once open and run with the nodes of today, and graphs written by hand may be short."""

import json
from pathlib import Path

import pytest
import torch

from tests.host.client import Client, Prompt
from tests.host.graphs import inputs, node_id, set_recipe
from tests.host.test_runs import Saved
from tests.workflows.ui_format import ROOT, to_api

FROZEN = sorted((ROOT / "tests" / "workflows" / "frozen").glob("*.json"))
# What a hand-written graph must say; the rest has a default that means what it always meant.
NEEDED = {
    "WanVelocitySampler": {"experts", "positive", "negative", "latent", "recipe", "seed"},
    "WanVelocityEncodeText": {"text_encoder", "prompt"},
    "WanVelocityEmptyLatent": {"width", "height", "frames"},
}


@pytest.mark.parametrize("path", FROZEN, ids=lambda path: path.stem)
def test_an_old_workflow_opens_and_runs(client: Client, path: Path) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    graph = to_api(workflow, client.get("/object_info"))
    profile, sampler = inputs(graph, "WanVelocityProfile"), inputs(graph, "WanVelocitySampler")
    assert (profile["guidance"], profile["offload"], profile["lora"]) == ("sequential", "preset", "preset")
    assert (sampler["recipe"], sampler["denoise"], sampler["end_step"]) == ("draft", 1.0, 10000)
    inputs(graph, "WanVelocityEmptyLatent").update(width=64, height=64, frames=5)
    run = client.run(graph)
    assert run.status == "execution_success", run.error
    assert "guidance passes: sequential" in run.text(node_id(graph, "PreviewAny"))


def test_what_has_a_default_may_be_left_out(graph: Prompt, saved: Saved) -> None:
    set_recipe(graph)
    whole = saved(graph, {"latent": (node_id(graph, "WanVelocitySampler"), 0)})["latent"]
    for class_type, needed in NEEDED.items():
        node = inputs(graph, class_type)
        for name in [name for name in node if name.partition(".")[0] not in needed]:
            del node[name]
    assert "denoise" not in inputs(graph, "WanVelocitySampler")
    short = saved(graph, {"latent": (node_id(graph, "WanVelocitySampler"), 0)})["latent"]
    assert torch.equal(short, whole)
