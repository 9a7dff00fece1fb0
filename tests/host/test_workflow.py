"""The shipped miniature workflow from prompt to video file, as an artist would queue it."""

from dataclasses import dataclass

import av
import pytest

from tests.host.client import Client, Run
from tests.host.graphs import inputs, node_id, set_recipe, shipped
from tests.host.server import ComfyServer


@dataclass
class Shipped:
    """The run of the shipped workflow and what ComfyUI logged meanwhile."""

    run: Run
    log: str


@pytest.fixture(scope="module")
def shipped_run(server: ComfyServer) -> Shipped:
    logged_before = len(server.log)
    run = server.client.run(shipped("wan_velocity_mini_t2v"))
    return Shipped(run=run, log=server.log[logged_before:])


@pytest.fixture
def run(shipped_run: Shipped) -> Run:
    return shipped_run.run


def test_makes_a_playable_video(run: Run, server: ComfyServer) -> None:
    assert run.status == "execution_success", run.error
    graph = shipped("wan_velocity_mini_t2v")
    size = inputs(graph, "WanVelocityEmptyLatent")
    (saved,) = run.outputs[node_id(graph, "SaveVideo")]["images"]
    with av.open(str(server.output / saved["subfolder"] / saved["filename"])) as container:
        (stream,) = container.streams.video
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.average_rate == 16
    assert [frame.shape for frame in frames] == [(size["height"], size["width"], 3)] * size["frames"]


def test_reports_what_ran(run: Run) -> None:
    report = run.text(node_id(shipped("wan_velocity_mini_t2v"), "PreviewAny"))
    assert "high noise: 4 steps" in report and "low noise: 4 steps" in report
    assert "s/step" in report and "TFLOP/s" in report and "peak memory, sample" in report


def test_shows_progress_and_previews(run: Run) -> None:
    sampler = node_id(shipped("wan_velocity_mini_t2v"), "WanVelocitySampler")
    steps = [event["value"] for event in run.named("progress") if event["node"] == sampler and event["max"] == 8]
    assert steps == list(range(1, 9))
    assert run.previews >= 8


def test_says_nothing_alarming(shipped_run: Shipped) -> None:
    assert "Prompt executed" in shipped_run.log
    alarms = ("WARNING", "ERROR", "memory leak", "Traceback")
    assert not [line for line in shipped_run.log.splitlines() if any(alarm in line for alarm in alarms)]


def test_plan_runs_without_sampling(client: Client, graph: dict) -> None:
    set_recipe(graph, steps=6)
    graph["plan"] = {
        "class_type": "WanVelocityPlan",
        "inputs": {
            "experts": [node_id(graph, "WanVelocityLoadExperts"), 0],
            "latent": [node_id(graph, "WanVelocityEmptyLatent"), 0],
            "vae": [node_id(graph, "WanVelocityLoadVAE"), 0],
            "text_encoder": [node_id(graph, "WanVelocityLoadTextEncoder"), 0],
            "recipe": "official",
        },
    }
    for class_type in ("SaveVideo", "PreviewAny"):
        del graph[node_id(graph, class_type)]
    result = client.run(graph)
    assert result.status == "execution_success", result.error
    text = result.text("plan")
    assert "26 high + 14 low" in text and "text encoder" in text and "VAE tiling: whole frames" in text
    executed = {event["node"] for event in result.named("executing")}
    assert node_id(graph, "WanVelocitySampler") not in executed
