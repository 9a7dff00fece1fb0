"""The pack as ComfyUI sees it: it loads without a word, and every node is there with its contract."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.host.client import Client
from tests.host.server import PACK_FOLDER, ComfyServer
from wan_core.profiles import setting_names

# Saved workflows name nodes by id, and widgets by position: ids stay, and new widgets come last.
WIDGETS = {
    "WanVelocityLoadExperts": ["high_noise", "low_noise"],
    "WanVelocityLora": ["lora", "partner", "strength_high", "strength_low"],
    "WanVelocityProfile": [
        "preset", "attention", "cross_attention", "weights", "residual", "tf32", "guidance", "offload", "compile",
        "vae_tiling", "vae_precision", "quality", "on_unsupported", "lora", "streamed_blocks", "memory_budget",
        "fused_kernels", "weight_storage",
    ],
    "WanVelocityLoadTextEncoder": ["file"],
    "WanVelocityEncodeText": ["prompt", "negative_prompt"],
    "WanVelocityEmptyLatent": ["width", "height", "frames", "batch"],
    "WanVelocitySampler": [
        "recipe", "seed", "denoise", "noise_device", "start_step", "end_step", "add_noise", "leftover_noise", "resume",
        "saved_run",
    ],
    "WanVelocityLoadVAE": ["file"],
    "WanVelocityDecode": [],
    "WanVelocityEncode": [],
    "WanVelocityPlan": ["recipe"],
    "WanVelocityCompare": [],
    "WanVelocityAccelerate": [],
}  # fmt: skip
CUSTOM_RECIPE = ["steps", "shift", "solver", "guidance_high", "guidance_low", "boundary"]
_WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")


@pytest.fixture(scope="module")
def info(server: ComfyServer) -> dict[str, Any]:
    return server.client.get("/object_info")


def inputs_of(node: dict[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    for group in ("required", "optional"):
        yield from node["input"].get(group, {}).items()


def test_loads_without_a_warning(server: ComfyServer) -> None:
    log = server.log
    assert PACK_FOLDER in log, "the pack was not tried"
    ours = [line for line in log.splitlines() if PACK_FOLDER in line or "wan_core" in line.lower()]
    assert not [line for line in ours if "WARNING" in line or "ERROR" in line or "FAILED" in line], ours


def test_every_node_is_listed(info: dict[str, Any]) -> None:
    listed = {name: node for name, node in info.items() if name.startswith("WanVelocity")}
    assert listed.keys() == WIDGETS.keys()
    assert {node["category"] for node in listed.values()} == {"Wan Velocity"}
    assert all(node["display_name"] and node["description"] and node["search_aliases"] for node in listed.values())


@pytest.mark.parametrize("name", WIDGETS)
def test_widgets_stay_where_saved_workflows_expect_them(info: dict[str, Any], name: str) -> None:
    widgets = [widget for widget, spec in inputs_of(info[name]) if spec[0] in _WIDGET_TYPES]
    assert widgets == WIDGETS[name]


@pytest.mark.parametrize("name", WIDGETS)
def test_every_input_says_what_it_takes(info: dict[str, Any], name: str) -> None:
    assert all(spec[1].get("tooltip") for _, spec in inputs_of(info[name]))


@pytest.mark.parametrize("name", ["WanVelocitySampler", "WanVelocityPlan"])
def test_a_custom_recipe_shows_every_value(info: dict[str, Any], name: str) -> None:
    *_, custom = info[name]["input"]["required"]["recipe"][1]["options"]
    assert custom["key"] == "custom"
    assert list(custom["inputs"]["required"]) == CUSTOM_RECIPE
    assert all(spec[1]["tooltip"] for spec in custom["inputs"]["required"].values())


def test_every_setting_of_a_profile_has_a_widget(info: dict[str, Any]) -> None:
    settings = info["WanVelocityProfile"]["input"]["optional"]
    assert len(settings) == len(setting_names())
    assert all(spec[1]["default"] == "preset" and spec[1]["advanced"] for spec in settings.values())


def test_native_loaders_see_the_packs_models(client: Client) -> None:
    assert "wan_velocity_mini_high_noise.safetensors" in client.get("/models/diffusion_models")
    assert "wan_velocity_mini_vae.safetensors" in client.get("/models/vae")
