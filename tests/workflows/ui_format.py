"""ComfyUI's two workflow formats, what the editor saves (UI) and what is queued (API), and the way between them.

The way back does not exist: the API format has no positions, and no titles. Widgets are saved by position, which is
why a shipped workflow is compared with the nodes' real schemas (`tests/host/test_shipped_graphs.py`).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
NOTES = ("Note", "MarkdownNote")
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"

# Stands for the widget that the editor puts behind a seed: "fixed", "randomize", ...
CONTROL = "control_after_generate"


def ui_path(name: str) -> Path:
    return ROOT / "workflows" / f"{name}.json"


def api_path(name: str) -> Path:
    return ROOT / "tests" / "workflows" / f"{name}.api.json"


def ui_workflow(name: str) -> dict[str, Any]:
    return json.loads(ui_path(name).read_text(encoding="utf-8"))


def api_workflow(name: str) -> dict[str, Any]:
    return json.loads(api_path(name).read_text(encoding="utf-8"))


def widget_names(info: dict[str, Any], values: list[Any]) -> list[str]:
    """Names of a node's widgets in the order in which their values are saved; dynamic ones depend on the values."""
    names: list[str] = []
    for group in ("required", "optional"):
        for name, spec in info["input"].get(group, {}).items():
            names += _widgets(name, spec, values[len(names) :])
    return names


def to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """What the editor would queue for a workflow in UI format."""
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        values, info = node["widgets_values"], object_info[node["type"]]
        # A widget that is newer than the workflow starts on its default.
        named = dict(zip(widget_names(info, values), values, strict=False))
        named |= {name: value for name, value in _defaults(info).items() if name not in named}
        linked = {slot["name"]: origins[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        inputs = {name: value for name, value in named.items() if not name.endswith(CONTROL)} | linked
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def add_new_widgets(workflow: dict[str, Any], object_info: dict[str, Any]) -> None:
    """Give our nodes the widgets that are newer than the workflow, on their defaults, which come last."""
    for node in workflow["nodes"]:
        if node["type"].startswith("WanVelocity"):
            info, values = object_info[node["type"]], node["widgets_values"]
            defaults = _defaults(info)
            values += [defaults[name] for name in widget_names(info, values)[len(values) :]]


def _defaults(info: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for group in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(group, {}).items():
            options = rest[0] if rest else {}
            choices = kind if isinstance(kind, list) else options.get("options", [])
            if isinstance(kind, list) or kind in WIDGET_TYPES:
                found[name] = options.get("default", choices[0] if choices else None)
    return {name: value for name, value in found.items() if value is not None}


def _widgets(name: str, spec: list[Any], values: list[Any]) -> Iterator[str]:
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if kind != DYNAMIC_COMBO:
        if isinstance(kind, list) or kind in WIDGET_TYPES:
            yield name
            if options.get("control_after_generate"):
                yield f"{name} {CONTROL}"
        return
    yield name
    if not values:
        # The editor fills what a workflow leaves out at the end.
        return
    used = 1
    (chosen,) = (option for option in options["options"] if option["key"] == values[0])
    for group in ("required", "optional"):
        for inner, inner_spec in chosen["inputs"].get(group, {}).items():
            names = list(_widgets(f"{name}.{inner}", inner_spec, values[used:]))
            used += len(names)
            yield from names
