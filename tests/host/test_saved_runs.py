"""Runs that did not end, in ComfyUI: queued again they go on, in this process or the next, with the same bits."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.host.client import Client, Prompt, RejectedError, Run
from tests.host.graphs import inputs, node_id, set_recipe
from tests.host.server import ComfyInstall, ComfyServer

Saved = Callable[[Prompt, dict[str, tuple[str, int]]], dict[str, Tensor]]
STEPS = 30


@pytest.fixture
def folder(server: ComfyServer) -> Iterator[Path]:
    folder = server.base / "user" / "__wan_velocity" / "saved_runs"
    for path in folder.glob("*"):
        path.unlink()
    yield folder


@pytest.fixture
def sampling(graph: Prompt) -> Prompt:
    """The miniature graph up to its latent: nothing removes what the sampler leaves."""
    sampler = node_id(graph, "WanVelocitySampler")
    set_recipe(graph, steps=STEPS, solver="unipc")
    kept = {}

    def take(node: str) -> None:
        kept[node] = graph[node]
        for value in graph[node]["inputs"].values():
            if isinstance(value, list):
                take(value[0])

    take(sampler)
    kept["report"] = {"class_type": "PreviewAny", "inputs": {"source": [sampler, 1]}}
    return kept


def interrupted(client: Client, graph: Prompt, step: int) -> Run:
    """Interrupt a graph once its sampler has done so many steps."""
    node, asked = node_id(graph, "WanVelocitySampler"), []

    def stop(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == node and data["max"] == STEPS and data["value"] >= step and not asked:
            asked.append(True)
            client.interrupt()

    run = client.run(graph, stop)
    assert run.status == "execution_interrupted"
    return run


def latent_and_report(graph: Prompt, saved: Saved, client: Client) -> tuple[Tensor, str]:
    latent = saved(graph, {"latent": (node_id(graph, "WanVelocitySampler"), 0)})["latent"]
    return latent, client.run(graph).text("report")  # from the host's cache


def test_an_interrupted_run_goes_on_when_it_is_queued_again(
    client: Client, sampling: Prompt, saved: Saved, folder: Path
) -> None:
    interrupted(client, sampling, 3)
    (state,) = folder.iterdir()
    assert state.name.startswith("64x64x5 seed 0 ")
    latent, report = latent_and_report(sampling, saved, client)
    assert f"of {STEPS} steps done before" in report
    inputs(sampling, "WanVelocitySampler").update(resume="never")
    whole, report = latent_and_report(sampling, saved, client)
    assert "done before" not in report
    assert torch.equal(latent, whole)


def test_another_process_finds_the_sampled_run(
    client: Client, sampling: Prompt, saved: Saved, folder: Path, server: ComfyServer, install: ComfyInstall
) -> None:
    whole, _ = latent_and_report(sampling, saved, client)
    with ComfyServer(install, server.base) as another:
        run = another.client.run(sampling)
        assert run.status == "execution_success", run.error
        assert "saved run: all steps done before" in run.text("report")
    assert whole.isfinite().all() and len(list(folder.iterdir())) == 1


def test_decoding_removes_what_only_decoding_needs(client: Client, graph: Prompt, folder: Path) -> None:
    inputs(graph, "WanVelocitySampler").update(seed=77)
    assert client.run(graph).status == "execution_success"
    assert not list(folder.iterdir())


def test_a_run_chosen_by_name_must_be_of_these_inputs(client: Client, sampling: Prompt, folder: Path) -> None:
    interrupted(client, sampling, 2)
    (state,) = folder.iterdir()
    inputs(sampling, "WanVelocitySampler").update(saved_run=state.name, seed=5)
    run = client.run(sampling)
    assert "the saved run is another one: seed 0 there, 5 here" in run.error
    inputs(sampling, "WanVelocitySampler").update(seed=0)
    assert f"of {STEPS} steps done before" in client.run(sampling).text("report")
    inputs(sampling, "WanVelocitySampler").update(saved_run="../none")
    with pytest.raises(RejectedError, match="there is no saved run '../none' in .*; there are '64x64x5"):
        client.run(sampling)


def test_only_the_newest_few_are_kept(client: Client, sampling: Prompt, folder: Path) -> None:
    set_recipe(sampling, steps=1)
    for seed in range(8):
        inputs(sampling, "WanVelocitySampler").update(seed=seed)
        assert client.run(sampling).status == "execution_success"
    assert sorted(path.name.split()[2] for path in folder.iterdir()) == ["2", "3", "4", "5", "6", "7"]
