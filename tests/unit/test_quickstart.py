"""The two commands of the README: what they install, and one sentence where they cannot."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import quickstart

ROOT = Path(__file__).parents[2]


@pytest.fixture
def calls(monkeypatch, tmp_path) -> list[tuple[str, ...]]:
    """An empty checkout in which every program that would be started is only written down."""
    made: list[tuple[str, ...]] = []
    environment = tmp_path / ".venv"

    def make() -> None:
        made.append(("venv",))
        (environment / "bin").mkdir(parents=True)
        (environment / "bin" / "python").touch()

    def pip(*arguments: str, is_question: bool = False) -> bool:
        made.append(("pip", *arguments))
        return True

    monkeypatch.setattr(quickstart, "VENV", environment)
    monkeypatch.setattr(quickstart, "PYTHON", environment / "bin" / "python")
    monkeypatch.setattr(quickstart, "MARKER", environment / "marker")
    monkeypatch.setattr(quickstart, "make_environment", make)
    monkeypatch.setattr(quickstart, "pip", pip)
    monkeypatch.setattr(quickstart, "has_nvidia_card", lambda: False)
    return made


def test_it_stands_on_the_standard_library():
    tree = ast.parse((ROOT / "quickstart.py").read_text(encoding="utf-8"))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert names <= sys.stdlib_module_names


def test_an_old_python_can_read_it_and_gets_a_sentence(monkeypatch):
    ast.parse((ROOT / "quickstart.py").read_text(encoding="utf-8"), feature_version=(3, 7))
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    with pytest.raises(quickstart.SetupError, match=r"this is Python .*, the pinned tools need 3\.11 or newer"):
        quickstart.set_up()


def test_a_second_run_installs_nothing(calls):
    quickstart.set_up()
    assert [call[:2] for call in calls] == [("venv",), ("pip", "install"), ("pip", "install"), ("pip", "install")]
    calls.clear()
    quickstart.set_up()
    assert calls == []


def test_changed_pins_are_installed_into_the_same_environment(calls, monkeypatch, tmp_path):
    quickstart.set_up()
    calls.clear()
    (tmp_path / "pins.txt").write_text("einops==0.8.2\n")
    monkeypatch.setattr(quickstart, "PINS", tmp_path / "pins.txt")
    quickstart.set_up()
    assert calls[-1] == ("pip", "install", "--requirement", str(tmp_path / "pins.txt"))
    assert ("venv",) not in calls


def test_a_failed_installation_is_not_taken_for_a_finished_one(calls, monkeypatch):
    def refuse(*arguments: str, is_question: bool = False) -> bool:
        raise quickstart.SetupError("no line")

    monkeypatch.setattr(quickstart, "pip", refuse)
    with pytest.raises(quickstart.SetupError):
        quickstart.set_up()
    assert not quickstart.MARKER.exists()


@pytest.mark.parametrize(
    ("has_card", "offers_cpu_build", "expected"),
    [(True, True, "torch==="), (False, True, "+cpu"), (False, False, "torch==")],
)
def test_torch_suits_the_machine(monkeypatch, has_card, offers_cpu_build, expected):
    monkeypatch.setattr(quickstart, "has_nvidia_card", lambda: has_card)
    monkeypatch.setattr(quickstart, "pip", lambda *arguments, is_question: offers_cpu_build)
    chosen = quickstart.choose_torch()
    assert expected in chosen
    assert ("+cpu" in chosen) is (offers_cpu_build and not has_card)


def test_pip_that_fails_is_one_sentence(monkeypatch, capfd):
    monkeypatch.setattr(quickstart, "PYTHON", Path(sys.executable))
    with pytest.raises(quickstart.SetupError, match="pip could not do 'install ./no-such-folder'"):
        quickstart.pip("install", "./no-such-folder")
    assert quickstart.pip("install", "./no-such-folder", is_question=True) is False


def test_tests_fail_when_the_linter_does_and_pytest_runs_last(monkeypatch):
    ran = []

    def run(*arguments: object) -> int:
        ran.append(arguments[1:])
        return 1 if "format" in arguments else 0

    monkeypatch.setattr(quickstart, "run", run)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert quickstart.test() == 1
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ
    assert [arguments[:2] for arguments in ran[:2]] == [("ruff", "check"), ("ruff", "format")]
    # What shares one ComfyUI must stay in one process: xdist's other ways of dealing tests out would part it.
    assert len(ran) == 3 and ran[2][0] == "pytest" and ran[2][-2:] == ("--dist", "loadgroup")


def test_the_demo_makes_a_video_of_each_prompt_and_stops_at_a_failure(monkeypatch, capsys):
    ran = []

    def run(*arguments: object) -> int:
        ran.append(dict(zip(arguments[3::2], arguments[4::2], strict=True)))
        return 1 if len(ran) == 5 else 0

    monkeypatch.setattr(quickstart, "run", run)
    assert quickstart.demo() == 0
    assert tuple(options["--prompt"] for options in ran) == quickstart.PROMPTS
    assert all(str(options["--out"]) in capsys.readouterr().out for options in ran[:1])
    assert len({options["--out"] for options in ran}) == len(ran)
    assert quickstart.demo() == 1
    assert len(ran) == 5


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["deom"], 2), (["--help"], 0)])
def test_anything_else_explains_itself(arguments, code):
    done = subprocess.run(
        [sys.executable, str(ROOT / "quickstart.py"), *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    assert "demo    makes videos" in done.stdout
