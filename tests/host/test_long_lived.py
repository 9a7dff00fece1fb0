"""A hundred runs in one ComfyUI, with changing prompts, sizes, LoRAs and profiles: no growth, and the same bits."""

from statistics import median

import psutil
import pytest
import torch
from safetensors.torch import load_file

from miniature.architecture import TRANSFORMER
from tests.host.client import Client, Prompt
from tests.host.graphs import inputs, node_id, set_recipe
from tests.host.server import ComfyServer
from tests.lora_files import write_lora
from wan_core.specs import Expert

NUM_RUNS = 100
# Every combination has been seen by then, most of them twice.
WARM_UP = 40
PROMPTS = ("a red circle", "two stars on green", "a blue square that turns", "")
SIZES = ((32, 48, 1), (32, 32, 5), (48, 32, 1))
PROFILES = (
    {"preset": "auto"},
    {"preset": "cpu"},
    {"preset": "auto", "guidance": "sequential"},
    {"preset": "reference"},
    {"preset": "auto", "lora": "merged"},
)
STRENGTHS = (None, 1.0, -0.5, None, 0.25)


@pytest.fixture(scope="module")
def lora(server: ComfyServer) -> str:
    folder = server.base / "models" / "loras" / "long lived"
    for expert in Expert:
        write_lora(folder, "kohya", TRANSFORMER, expert)
    (file,) = folder.rglob("*high*.safetensors")
    return str(file.relative_to(folder.parent))


def numbered(graph: Prompt, number: int, lora: str) -> Prompt:
    """The graph of one of the runs; run 0 and the last one are the same."""
    number %= NUM_RUNS - 1
    graph = {key: {**node, "inputs": dict(node["inputs"])} for key, node in graph.items()}
    for unwanted in ("CreateVideo", "SaveVideo"):
        del graph[node_id(graph, unwanted)]
    set_recipe(graph, steps=2, solver="unipc")
    width, height, frames = SIZES[number % len(SIZES)]
    inputs(graph, "WanVelocityEmptyLatent").update(width=width, height=height, frames=frames)
    inputs(graph, "WanVelocityEncodeText").update(prompt=PROMPTS[number % len(PROMPTS)])
    sampler = inputs(graph, "WanVelocitySampler")
    graph["profile"] = {"class_type": "WanVelocityProfile", "inputs": PROFILES[number % len(PROFILES)]}
    sampler.update(seed=number % 7, resume="never", profile=["profile", 0])
    if (strength := STRENGTHS[number // 3 % len(STRENGTHS)]) is not None:
        values = {"experts": sampler["experts"], "lora": lora, "strength_high": strength, "strength_low": strength}
        graph["lora"] = {"class_type": "WanVelocityLora", "inputs": values}
        sampler["experts"] = ["lora", 0]
    for name, node in (("latent", "WanVelocitySampler"), ("images", "WanVelocityDecode")):
        save = {"value": [node_id(graph, node), 0], "name": f"long lived {name}"}
        graph[f"save {name}"] = {"class_type": "HostTestSaveTensor", "inputs": save}
    return graph


@pytest.mark.timeout(600)  # a minute and a half on an idle machine
def test_a_hundred_runs(client: Client, server: ComfyServer, graph: Prompt, lora: str) -> None:
    process, resident, first = psutil.Process(server.pid), [], None
    for number in range(NUM_RUNS):
        run = client.run(numbered(graph, number, lora))
        assert run.status == "execution_success", run.error
        resident.append(process.memory_info().rss)
        if number == 0:
            first = load_file(server.output / "long lived latent.safetensors")["tensor"]
    last = load_file(server.output / "long lived latent.safetensors")["tensor"]
    assert torch.equal(first, last)
    before, after = median(resident[WARM_UP : WARM_UP + 15]), median(resident[-15:])
    history = [round(each / 2**20) for each in resident[::10]]
    assert after <= 1.01 * before, f"resident memory grew by {after / before - 1:.2%}: MiB every tenth run {history}"
