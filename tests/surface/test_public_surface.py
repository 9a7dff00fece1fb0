"""Nothing that people refer to by name is taken away or changed, and what is new is written down."""

from tests.surface import surface


def test_command_line() -> None:
    assert surface.check("command line", surface.command_line()) == []


def test_presets_and_settings() -> None:
    assert surface.check("profiles", surface.profiles()) == []


def test_recipes() -> None:
    assert surface.check("recipes", surface.recipes()) == []


def test_python_names() -> None:
    assert surface.check("python", surface.python_names()) == []


def test_the_comparison_finds_what_breaks_people_and_nothing_else() -> None:
    known = {"A": {"inputs": {"x": {"type": "INT", "default": 1, "options": ["a", "b"]}}}}
    grown = {"A": {"inputs": {"x": {"type": "INT", "default": 1, "options": ["a", "c", "b"]}, "y": {}}}, "B": {}}
    assert list(surface.broken_promises(known, grown)) == []
    assert list(surface.broken_promises(known, {"A": {"inputs": {}}})) == ["A.inputs.x is gone"]
    changed = {"A": {"inputs": {"x": {"type": "INT", "default": 2, "options": ["a"]}}}}
    assert list(surface.broken_promises(known, changed)) == [
        "A.inputs.x.default was 1 and is 2",
        "A.inputs.x.options no longer has 'b'",
    ]
