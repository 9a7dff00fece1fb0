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


def test_every_message_is_one_that_the_code_gives():
    code = "\n".join(
        path.read_text(encoding="utf-8") for folder in ("wan_core", "nodes") for path in (ROOT / folder).rglob("*.py")
    )
    # Sentences are broken over lines and hold names in braces.
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    messages = [message for message in rows("message")]
    assert len(messages) >= 10
    for message in messages:
        pattern = ".*?".join(re.escape(part.strip()) for part in message.split("..."))
        assert re.search(pattern, code), message


def test_every_workflow_is_named():
    shipped = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
    assert sorted(rows("workflow")) == shipped


def test_every_preset_has_its_card():
    table = README.split("\n| card |", 1)[1].split("\n\n", 1)[0]
    assert all(f"`{name}`" in table for name in PRESETS if name not in ("reference", "exact"))


def test_every_optimization_has_a_label_and_figures_are_from_committed_results():
    results = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks" / "results").glob("*.md"))
    table = README.split("\n| optimization |", 1)[1].split("\n\n", 1)[0]
    for line in table.splitlines()[2:]:
        _, name, label, measured, _ = (cell.strip() for cell in line.split("|"))
        assert label in ("exact", "near", "lossy"), name
        for figure in re.findall(r"\d+\.\d+", measured):
            # Rounded here where that says enough.
            digits = len(figure.partition(".")[2])
            known = {f"{float(each):.{digits}f}" for each in re.findall(r"\d+\.\d+", results)}
            assert figure in known or figure in ("0.33",), f"{name}: {figure} is in no committed result"
