"""The README's tables say what the code says."""

import re
from pathlib import Path

import pytest

from wan_core.attention.backends import BACKENDS
from wan_core.cli import VERBS
from wan_core.profiles import PRESETS
from wan_core.recipes import RECIPES, SampleRequest
from wan_core.sampling.experts import split
from wan_core.sampling.schedule import for_request
from wan_core.specs import Expert

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, list[str]]:
    """Cells of the table whose header starts with `heading`, by the name in code style in their first cell."""
    table = README.split(f"\n| {heading} |", 1)[1].split("\n\n", 1)[0]
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]
    return {row[0].strip("`"): row[1:] for row in cells}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_recipes(recipe):
    experts = split(for_request(SampleRequest(recipe=recipe)), recipe.boundary)
    num_high = experts.count(Expert.HIGH)
    assert rows("recipe")[recipe.name][:5] == [
        str(recipe.num_steps),
        f"{num_high} + {len(experts) - num_high}",
        f"{recipe.shift:g}",
        recipe.solver,
        f"{recipe.guidance_high:g} / {recipe.guidance_low:g}",
    ]


def test_no_recipe_or_profile_is_missing_or_invented():
    assert list(rows("recipe")) == list(RECIPES)
    assert list(rows("profile")) == list(PRESETS)


def test_every_backend_stands_under_its_label():
    labels = {name.strip("*"): cells[-1] for name, cells in rows("label").items()}
    assert [backend.name for backend in BACKENDS if f"`{backend.name}`" not in labels[backend.quality]] == []


def test_every_verb_is_shown():
    assert [verb for verb in VERBS if f"python -m wan_core {verb} " not in README] == []


def test_every_file_of_the_core_and_the_nodes_is_in_the_tree():
    tree = README.split("## The house")[1]
    units = {path.stem for folder in ("wan_core", "nodes") for path in (ROOT / folder).glob("[!_]*") if path.is_file()}
    assert sorted(unit for unit in units if not re.search(rf"\b{unit}\b", tree)) == []
