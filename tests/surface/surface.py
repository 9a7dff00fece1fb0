"""The public surface as one JSON file: what saved workflows, scripts and other people's code refer to by name.

Two parts, because the nodes can be seen only inside ComfyUI: "nodes" (tests/host) and everything else (here). Whatever
stands in the file is a promise. Additions are fine and are written down with

    WAN_VELOCITY_RENEW_SURFACE=1 python -m pytest tests/surface tests/host/test_public_surface.py

which refuses to take anything away or to change it; before the first release that is done by hand.
"""

import argparse
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import wan_core
from tests.workflows.ui_format import DYNAMIC_COMBO, WIDGET_TYPES
from wan_core.cli import VERBS
from wan_core.profiles import PRESETS, setting_choices, setting_names
from wan_core.recipes import RECIPES

FILE = Path(__file__).with_name("public_surface.json")
RENEW = "WAN_VELOCITY_RENEW_SURFACE"
# Lists that users and developers add to: what is new in them is no change of what was there.
GROWING = ("options", "choices")


def shipped(part: str) -> Any:
    """One part of the committed file."""
    return json.loads(FILE.read_text(encoding="utf-8")).get(part, {}) if FILE.exists() else {}


def check(part: str, found: dict[str, Any]) -> list[str]:
    """What is wrong between a part of the file and what the code has now; renews the file where asked and harmless."""
    known = shipped(part)
    broken = [f"{part}: {text}" for text in broken_promises(known, found)]
    if broken or known == found:
        return broken
    if not os.environ.get(RENEW):
        tests = "tests/surface tests/host/test_public_surface.py"
        return [f"{part} has grown; write it down: {RENEW}=1 python -m pytest {tests}"]
    whole = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    FILE.write_text(json.dumps(whole | {part: found}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return []


def broken_promises(known: Any, found: Any, where: str = "") -> Iterator[str]:
    """What was there and is not any more, or is something else."""
    if isinstance(known, dict) and isinstance(found, dict):
        for key, value in known.items():
            place = f"{where}.{key}".lstrip(".")
            if key not in found:
                yield f"{place} is gone"
            else:
                yield from broken_promises(value, found[key], place)
    elif isinstance(known, list) and isinstance(found, list) and where.rpartition(".")[2] in GROWING:
        yield from (f"{where} no longer has {value!r}" for value in known if value not in found)
    elif known != found:
        yield f"{where} was {known!r} and is {found!r}"


def command_line() -> dict[str, Any]:
    """Every option of every verb."""
    verbs = {}
    for verb in VERBS:
        parser = argparse.ArgumentParser()
        import_module(f"wan_core.cli.{verb}").add_arguments(parser)
        actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
        verbs[verb] = {"/".join(action.option_strings) or action.dest: _option(action) for action in actions}
    return verbs


def _option(action: argparse.Action) -> dict[str, Any]:
    facts = {
        "type": "flag" if action.nargs == 0 else "value",
        "default": None if action.default is None else str(action.default),
        "nargs": None if action.nargs is None else str(action.nargs),
    }
    # As with inputs: what may be left out is a promise, what must be given is none.
    facts |= {} if action.required else {"optional": True}
    return facts | ({"choices": list(map(str, action.choices))} if action.choices else {})


def profiles() -> dict[str, Any]:
    """Presets by name (what they choose may become better, so that is no part of it), settings with their values."""
    auto = asdict(PRESETS["auto"])
    settings = {}
    for name in setting_names():
        part, _, leaf = name.partition(".")
        settings[name] = {"default": auto[part][leaf] if leaf else auto[part], "choices": list(setting_choices(name))}
    return {"presets": dict.fromkeys(PRESETS, "preset"), "settings": settings}


def recipes() -> dict[str, Any]:
    """Recipes are values: the same name always means the same video."""
    return {name: asdict(recipe) for name, recipe in RECIPES.items()}


def python_names() -> dict[str, str]:
    return dict.fromkeys(wan_core.__all__, "public")


def nodes(object_info: dict[str, Any]) -> dict[str, Any]:
    """Our nodes as ComfyUI describes them, without words and without the files of one machine."""
    ours = {name: info for name, info in object_info.items() if name.startswith("WanVelocity")}
    return {
        name: {
            "inputs": dict(_inputs(info["input"])),
            # By position: links in saved workflows count them.
            "outputs": {
                str(index): {"name": title, "type": kind}
                for index, (title, kind) in enumerate(zip(info["output_name"], info["output"], strict=True))
            },
        }
        for name, info in ours.items()
    }


def default_of(facts: dict[str, Any]) -> object:
    """An input's default; `None` also where it is one machine's file, and no promise."""
    default = facts.get("default")
    return None if _is_list_of_files(facts.get("options", [])) and not _is_word(default) else default


def _fixed(options: list[object]) -> list[object]:
    """The options that every machine has: all of a list without files, else the words that stand beside them."""
    return [option for option in options if _is_word(option)] if _is_list_of_files(options) else options


def _is_list_of_files(options: list[object]) -> bool:
    return any("safetensors" in str(option) for option in options)


def _is_word(value: object) -> bool:
    """Whether a value is one of ours ("found by name"); files and folders of models have other signs in their names."""
    return re.fullmatch("[a-z]+( [a-z]+)*", str(value)) is not None


def _inputs(groups: dict[str, dict[str, list[Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    position = 0
    for group in ("required", "optional"):
        for name, (kind, *rest) in groups.get(group, {}).items():
            facts = rest[0] if rest else {}
            kept = {key: facts[key] for key in ("min", "max", "step") if key in facts}
            options = facts.get("options", kind if isinstance(kind, list) else [])
            if options and isinstance(options[0], dict):
                kept["options"] = [option["key"] for option in options]
                kept["custom"] = {option["key"]: dict(_inputs(option["inputs"])) for option in options}
            elif fixed := _fixed(options):
                kept["options"] = fixed
            kept["default"] = default_of(facts)
            kept["type"] = "COMBO" if isinstance(kind, list) else kind
            if kept["type"] in (*WIDGET_TYPES, DYNAMIC_COMBO):
                kept["position"] = position
                position += 1
            # An input that becomes optional harms nobody, so only that is written down.
            yield name, kept | ({"optional": True} if group == "optional" else {})
