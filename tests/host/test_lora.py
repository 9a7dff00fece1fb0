"""Wan LoRA Pair in a graph: it finds the partner, chains, follows its strengths without loading, and refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from miniature.architecture import TRANSFORMER
from tests.host.client import Client, Prompt, RejectedError
from tests.host.graphs import inputs, node_id
from tests.host.server import ComfyServer
from tests.lora_files import FAMILIES, Writer
from wan_core.specs import Expert

Saved = Callable[[Prompt, dict[str, tuple[str, int]]], dict[str, Tensor]]


@pytest.fixture(scope="module")
def loras(server: ComfyServer) -> Path:
    """LoRA files in the host's own folder."""
    folder = server.base / "models" / "loras"
    for seed, expert in enumerate(Expert):
        for family in ("kohya", "comfyui"):
            writer = Writer(TRANSFORMER, seed)
            FAMILIES[family](writer)
            writer.save(folder / "pairs" / f"{family}_{expert.value}_noise.safetensors")
    save_file(
        {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(4, 4)}, folder / "flux.safetensors"
    )
    wide = {f"diffusion_model.blocks.0.ffn.0.lora_{end}.weight": torch.ones(5, 5) for end in ("down", "up")}
    save_file(wide, folder / "wide.safetensors")
    return folder


def add_lora(graph: Prompt, name: str, file: str, **changes: object) -> None:
    """Put a LoRA node called `name` before the sampler, after what is there."""
    sampler = inputs(graph, "WanVelocitySampler")
    values = {"lora": file, "partner": "found by name", "strength_high": 1.0, "strength_low": 1.0} | changes
    graph[name] = {"class_type": "WanVelocityLora", "inputs": {"experts": sampler["experts"], **values}}
    sampler["experts"] = [name, 0]


def latent(graph: Prompt, saved: Saved) -> Tensor:
    return saved(graph, {"latent": (node_id(graph, "WanVelocitySampler"), 0)})["latent"]


def test_lists_the_files_of_the_loras_folder(client: Client, loras: Path) -> None:
    required = client.get("/object_info")["WanVelocityLora"]["input"]["required"]
    files = required["lora"][1]["options"] if required["lora"][0] == "COMBO" else required["lora"][0]
    assert str(Path("pairs") / "kohya_high_noise.safetensors") in files and "flux.safetensors" in files


def test_a_pair_changes_both_experts_and_the_report_says_what_ran(
    client: Client, graph: Prompt, saved: Saved, loras: Path
) -> None:
    bare = latent(graph, saved)
    add_lora(graph, "lora", "pairs/kohya_low_noise.safetensors", strength_low=0.5)
    changed = latent(graph, saved)
    assert (changed - bare).norm() > 0.02 * bare.norm()
    report = client.run(graph).text(node_id(graph, "PreviewAny"))
    assert "kohya_high_noise.safetensors' on high noise: 70/70 modules, rank 4, alpha/rank 0.25, strength 1" in report
    assert "kohya_low_noise.safetensors' on low noise: 70/70 modules, rank 4, alpha/rank 0.25, strength 0.5" in report
    assert "LoRA application: beside" in report


def test_a_change_of_strength_loads_nothing(client: Client, graph: Prompt, loras: Path) -> None:
    add_lora(graph, "lora", "pairs/kohya_high_noise.safetensors", strength_high=0.9)
    assert client.run(graph).status == "execution_success"
    graph["lora"]["inputs"].update(strength_high=-0.4, strength_low=0.3)
    run = client.run(graph)
    assert run.status == "execution_success", run.error
    sampler = node_id(graph, "WanVelocitySampler")
    # Loading counts bytes on the sampler's progress bar, sampling counts steps.
    assert {event["max"] for event in run.named("progress") if event["node"] == sampler} == {4}


def test_a_chain_equals_its_parts_in_either_application(graph: Prompt, saved: Saved, loras: Path) -> None:
    add_lora(graph, "first", "pairs/kohya_high_noise.safetensors", strength_high=0.5)
    add_lora(graph, "second", "pairs/comfyui_high_noise.safetensors", strength_low=-0.5)
    found = {}
    for application in ("beside", "merged"):
        graph["profile"] = {"class_type": "WanVelocityProfile", "inputs": {"preset": "cpu", "lora": application}}
        inputs(graph, "WanVelocitySampler").update(profile=["profile", 0])
        found[application] = latent(graph, saved)
    assert (found["beside"] - found["merged"]).norm() <= 1e-4 * found["merged"].norm()
    for name in ("first", "second"):
        graph[name]["inputs"].update(strength_high=0.0, strength_low=0.0)
    without = latent(graph, saved)
    inputs(graph, "WanVelocitySampler").update(experts=[node_id(graph, "WanVelocityLoadExperts"), 0])
    assert torch.equal(latent(graph, saved), without)
    assert (found["merged"] - without).norm() > 0.02 * without.norm()


def test_two_samplers_of_one_loader_with_and_without(graph: Prompt, saved: Saved, loras: Path) -> None:
    bare = latent(graph, saved)
    sampler = node_id(graph, "WanVelocitySampler")
    graph["other sampler"] = {
        "class_type": "WanVelocitySampler", "inputs": dict(graph[sampler]["inputs"], seed=12)
    }  # fmt: skip
    other = graph["other sampler"]["inputs"]
    graph["lora"] = {
        "class_type": "WanVelocityLora",
        "inputs": {
            "experts": other["experts"], "lora": "pairs/kohya_high_noise.safetensors", "partner": "none",
            "strength_high": 1.0, "strength_low": 1.0,
        },
    }  # fmt: skip
    other["experts"] = ["lora", 0]
    # Another end step means the same and makes the host sample again.
    graph[sampler]["inputs"].update(end_step=8888)
    found = saved(graph, {"with": ("other sampler", 0), "without": (sampler, 0)})
    assert torch.equal(found["without"], bare)
    assert not torch.allclose(found["with"], bare, atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lora": "flux.safetensors"}, "is a LoRA for the Flux or Hunyuan family"),
        ({"partner": "flux.safetensors"}, "is a LoRA for the Flux or Hunyuan family"),
        ({"lora": "nowhere.safetensors"}, "there is no 'nowhere.safetensors'"),
        ({"strength_high": 1000.0}, "bigger than max of 100"),
    ],
)
def test_refused_before_anything_runs(
    client: Client, graph: Prompt, loras: Path, changes: dict[str, object], expected: str
) -> None:
    add_lora(graph, "lora", "pairs/kohya_high_noise.safetensors", **changes)
    with pytest.raises(RejectedError, match="(?s).*") as refusal:
        client.queue(graph)
    assert expected in str(refusal.value)


def test_a_lora_that_does_not_fit_is_refused_in_one_sentence(client: Client, graph: Prompt, loras: Path) -> None:
    add_lora(graph, "lora", "wide.safetensors")
    run = client.run(graph)
    assert run.status == "execution_error"
    assert "does not fit these experts" in run.error and "\n" not in run.error
