"""The shipped workflows against the nodes as ComfyUI really has them."""

import pytest

from tests.host.client import Client, RejectedError
from tests.workflows.ui_format import NOTES, SHIPPED, api_workflow, to_api, ui_workflow, widget_names


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


def test_real_files_are_all_that_the_official_workflow_lacks(client: Client) -> None:
    with pytest.raises(RejectedError) as refusal:
        client.queue(api_workflow("wan_velocity_t2v_a14b_official"))
    problems = str(refusal.value).splitlines()
    assert problems and all("there is no 'wan" in line or "there is no 'umt5" in line for line in problems)
