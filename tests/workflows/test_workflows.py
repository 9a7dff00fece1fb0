"""The shipped workflows are sound as files, and their two formats agree; needs no ComfyUI."""

import pytest
from PIL import Image

from tests.workflows.ui_format import NOTES, ROOT, SHIPPED, api_workflow, ui_workflow

pytestmark = pytest.mark.parametrize("name", SHIPPED)


def test_has_both_formats(name: str) -> None:
    assert (ROOT / "tests" / "workflows" / f"{name}.api.json").is_file()


def test_links_agree_with_slots(name: str) -> None:
    workflow = ui_workflow(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"]) and max(nodes) == workflow["last_node_id"]
    assert [link[0] for link in workflow["links"]] == list(range(1, workflow["last_link_id"] + 1))
    for link, source, out_slot, target, in_slot, kind in workflow["links"]:
        output, taken = nodes[source]["outputs"][out_slot], nodes[target]["inputs"][in_slot]
        assert link in output["links"] and taken["link"] == link
        assert output["type"] == kind and taken["type"] in (kind, "*")
    linked = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    assert sorted(linked) == [link[0] for link in workflow["links"]]


def test_order_follows_the_links(name: str) -> None:
    workflow = ui_workflow(name)
    order = {node["id"]: node["order"] for node in workflow["nodes"]}
    assert sorted(order.values()) == list(range(len(order)))
    assert all(order[source] < order[target] for _, source, _, target, _, _ in workflow["links"])


def test_formats_agree(name: str) -> None:
    workflow, graph = ui_workflow(name), api_workflow(name)
    nodes = {str(node["id"]): node for node in workflow["nodes"] if node["type"] not in NOTES}
    assert {key: node["type"] for key, node in nodes.items()} == {
        key: node["class_type"] for key, node in graph.items()
    }
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    for key, node in nodes.items():
        linked = {slot["name"]: origins[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        inputs = graph[key]["inputs"]
        assert {name: value for name, value in inputs.items() if isinstance(value, list)} == linked
        typed = [value for value in inputs.values() if not isinstance(value, list)]
        saved = [value for value in node["widgets_values"] if value not in ("fixed", "randomize")]
        assert saved == typed, node["type"]


def test_is_explained_and_belongs_to_the_pack(name: str) -> None:
    workflow = ui_workflow(name)
    assert workflow["version"] == 0.4
    assert any(node["type"] in NOTES and len(node["widgets_values"][0]) > 200 for node in workflow["nodes"])
    packs = {node["type"]: node["properties"]["cnr_id"] for node in workflow["nodes"] if node["type"] not in NOTES}
    assert all(
        pack == ("wan-velocity" if kind.startswith("WanVelocity") else "comfy-core") for kind, pack in packs.items()
    )


def test_has_a_picture_for_the_template_browser(name: str) -> None:
    with Image.open(ROOT / "workflows" / f"{name}.jpg") as picture:
        assert picture.format == "JPEG" and picture.width >= 400 and 1.0 <= picture.width / picture.height <= 2.0
    assert (ROOT / "workflows" / f"{name}.jpg").stat().st_size < 100_000


def test_nodes_do_not_overlap(name: str) -> None:
    boxes = [(*node["pos"], *node["size"], node["type"]) for node in ui_workflow(name)["nodes"]]
    for index, (x, y, width, height, kind) in enumerate(boxes):
        for other_x, other_y, other_width, other_height, other in boxes[:index]:
            apart = (
                x + width <= other_x
                or other_x + other_width <= x
                or y + height <= other_y
                or other_y + other_height <= y
            )
            assert apart, f"{kind} lies over {other}"
