"""What the nodes say, in ComfyUI's format of translations: `locales/<language>/nodeDefs.json`.

English is written from the nodes themselves (see `surface.py` for the command), other languages by people.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCALES = Path(__file__).parents[2] / "locales"
LANGUAGES = ("en", "zh")


def node_words(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def from_nodes(object_info: dict[str, Any]) -> dict[str, Any]:
    """Names, descriptions and tooltips of our nodes. A dynamic input is called "recipe_steps": a dot parts keys."""
    return {
        name: {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": dict(_inputs(info["input"])),
            "outputs": {
                str(index): {"name": title, "tooltip": (info.get("output_tooltips") or {index: None})[index]}
                for index, title in enumerate(info["output_name"])
            },
        }
        for name, info in object_info.items()
        if name.startswith("WanVelocity")
    }


def _inputs(groups: dict[str, dict[str, list[Any]]], prefix: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    for group in ("required", "optional"):
        for name, (kind, *rest) in groups.get(group, {}).items():
            facts = rest[0] if rest else {}
            yield f"{prefix}{name}", {"name": name.replace("_", " "), "tooltip": facts["tooltip"]}
            for option in facts.get("options") or () if kind == "COMFY_DYNAMICCOMBO_V3" else ():
                yield from _inputs(option["inputs"], f"{prefix}{name}_")


def paths(words: Any, where: str = "") -> Iterator[str]:
    """The place of every text in a file of translations."""
    if isinstance(words, dict):
        for key, value in words.items():
            yield from paths(value, f"{where}/{key}")
    else:
        yield where


def at(words: Any, path: str) -> str:
    for key in path.strip("/").split("/"):
        words = words[key]
    return words
