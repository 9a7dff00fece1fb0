"""Graphs in API format for the host suite, all grown from the shipped miniature workflow."""

import json
from pathlib import Path

from tests.host.client import Prompt

API_WORKFLOWS = Path(__file__).parents[1] / "workflows"
MINI_EXPERTS = {
    "high_noise": "wan_velocity_mini_high_noise.safetensors",
    "low_noise": "wan_velocity_mini_low_noise.safetensors",
}
MINI_VAE = "wan_velocity_mini_vae.safetensors"


def shipped(name: str) -> Prompt:
    """A shipped workflow in API format."""
    return json.loads((API_WORKFLOWS / f"{name}.api.json").read_text(encoding="utf-8"))


def node_id(graph: Prompt, class_type: str) -> str:
    """The only node of a class."""
    (found,) = (key for key, node in graph.items() if node["class_type"] == class_type)
    return found


def inputs(graph: Prompt, class_type: str) -> dict[str, object]:
    """The inputs of the only node of a class, to be changed in place."""
    return graph[node_id(graph, class_type)]["inputs"]


def custom_recipe(**values: object) -> dict[str, object]:
    """Inputs of a custom recipe: short, euler, unless said otherwise."""
    fields = {
        "steps": 4, "shift": 5.0, "solver": "euler", "guidance_high": 4.0, "guidance_low": 3.0, "boundary": 0.875,
    } | values  # fmt: skip
    return {"recipe": "custom"} | {f"recipe.{name}": value for name, value in fields.items()}


def set_recipe(graph: Prompt, class_type: str = "WanVelocitySampler", **values: object) -> None:
    """Give a node a custom recipe in place of its own."""
    node = inputs(graph, class_type)
    for name in [name for name in node if name.partition(".")[0] == "recipe"]:
        del node[name]
    node |= custom_recipe(**values)


def miniature_graph() -> Prompt:
    """The shipped miniature workflow with a video of 64x64x5 and four steps."""
    graph = shipped("wan_velocity_mini_t2v")
    inputs(graph, "WanVelocityEmptyLatent").update(width=64, height=64, frames=5)
    set_recipe(graph)
    return graph


def native_experts(graph: Prompt, shift: float = 5.0) -> None:
    """Add the miniature experts as native models with a shift: nodes "native high" and "native low"."""
    for expert, file in (("high", MINI_EXPERTS["high_noise"]), ("low", MINI_EXPERTS["low_noise"])):
        graph[f"unet {expert}"] = {
            "class_type": "UNETLoader", "inputs": {"unet_name": file, "weight_dtype": "default"}
        }  # fmt: skip
        graph[f"native {expert}"] = {
            "class_type": "ModelSamplingSD3", "inputs": {"model": [f"unet {expert}", 0], "shift": shift}
        }  # fmt: skip
