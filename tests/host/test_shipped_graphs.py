"""The shipped workflows against the nodes as ComfyUI really has them."""

import json
import os

import pytest

from tests.host.client import Client, RejectedError
from tests.host.graphs import inputs, node_id
from tests.host.server import ComfyServer
from tests.surface import surface
from tests.workflows.ui_format import (
    NOTES,
    SHIPPED,
    add_new_widgets,
    api_path,
    api_workflow,
    to_api,
    ui_path,
    ui_workflow,
    widget_names,
)


@pytest.fixture(scope="module", autouse=True)
def _renewed(server: ComfyServer) -> None:
    """Where the public surface is renewed, so are the shipped workflows; old ones need nothing (`test_frozen.py`)."""
    if not os.environ.get(surface.RENEW):
        return
    info = server.client.get("/object_info")
    for name in SHIPPED:
        workflow = ui_workflow(name)
        add_new_widgets(workflow, info)
        for path, data in ((ui_path(name), workflow), (api_path(name), to_api(workflow, info))):
            path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", SHIPPED)
def test_widgets_and_slots_are_those_of_the_nodes(client: Client, name: str) -> None:
    info = client.get("/object_info")
    for node in ui_workflow(name)["nodes"]:
        if node["type"] in NOTES:
            continue
        schema = info[node["type"]]
        values = node["widgets_values"]
        names = widget_names(schema, values)
        # Only native nodes may leave widgets to the editor: they change without us.
        assert len(values) == len(names) or (len(values) < len(names) and not node["type"].startswith("WanVelocity"))
        assert [slot["type"] for slot in node["outputs"]] == schema["output"]
        sockets = {name for group in ("required", "optional") for name in schema["input"].get(group, {})} - set(names)
        assert {slot["name"] for slot in node["inputs"]} == sockets


@pytest.mark.parametrize("name", SHIPPED)
def test_editor_would_queue_the_api_form(client: Client, name: str) -> None:
    assert to_api(ui_workflow(name), client.get("/object_info")) == api_workflow(name)


def test_template_browser_finds_them(client: Client) -> None:
    (found,) = [names for pack, names in client.get("/workflow_templates").items() if "velocity" in pack]
    assert sorted(found) == SHIPPED


REAL = [name for name in SHIPPED if "a14b" in name]


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_all_that_a_real_workflow_lacks(client: Client, name: str) -> None:
    with pytest.raises(RejectedError) as refusal:
        client.queue(api_workflow(name))
    problems = str(refusal.value).splitlines()
    assert problems and all("there is no 'wan" in line or "there is no 'umt5" in line for line in problems)


@pytest.mark.parametrize("name", REAL)
def test_every_file_that_a_real_workflow_names_can_be_found(name: str) -> None:
    """The editor offers to download what is missing by the links that a node carries."""
    offered = {}
    for node in ui_workflow(name)["nodes"]:
        for model in node["properties"].get("models", ()):
            assert model["url"].endswith(f"/{model['directory']}/{model['name']}")
            offered[model["name"]] = model["directory"]
    named = {value for node in api_workflow(name).values() for value in node["inputs"].values() if is_file(value)}
    assert named <= offered.keys()
    (note,) = [node["widgets_values"][0] for node in ui_workflow(name)["nodes"] if node["type"] in NOTES]
    assert all(f"[{file}]" in note for file in offered)


def is_file(value: object) -> bool:
    return isinstance(value, str) and value.endswith(".safetensors")


def test_profiles_are_compared_as_the_workflow_says(client: Client) -> None:
    graph = api_workflow("wan_velocity_compare_profiles")
    inputs(graph, "WanVelocityEmptyLatent").update(width=64, height=64, frames=5)
    run = client.run(graph)
    assert run.status == "execution_success", run.error
    comparison = node_id(graph, "WanVelocityCompare")
    assert "PSNR" in run.text(comparison) and "SSIM" in run.text(comparison)
    reports = [run.text(key) for key, node in graph.items() if node["class_type"] == "PreviewAny"]
    assert "self attention: math" in reports[0] and "self attention: math" not in reports[1]
