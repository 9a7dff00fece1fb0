"""The front door: verbs, exit codes, one line for a user's mistake."""

import subprocess
import sys
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from wan_core import __main__ as front
from wan_core.cli import VERBS
from wan_core.errors import CheckpointError, InputError, Interrupted

ROOT = Path(__file__).parents[3]


def shell(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "wan_core", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def verb_that(action) -> SimpleNamespace:
    return SimpleNamespace(add_arguments=lambda parser: parser.add_argument("--seed", type=int), run=action)


def raising(error: BaseException):
    def run(arguments):
        raise error

    return run


def test_every_verb_has_a_module_that_declares_and_runs():
    for name in VERBS:
        module = import_module(f"wan_core.cli.{name}")
        module.add_arguments(ArgumentParser())
        assert callable(module.run), name


def test_help_lists_the_verbs_and_loads_no_torch():
    code = (
        "import sys; from wan_core.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert [verb for verb in VERBS if verb not in done.stdout] == []
    assert done.stdout.splitlines()[-1] == "False"


def test_arguments_reach_the_verb_and_its_result_is_the_exit_code(monkeypatch):
    monkeypatch.setattr(front, "_module", lambda verb: verb_that(lambda arguments: arguments.seed))
    assert front.main(["doctor", "--seed", "7"]) == 7


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("steps is 0"), 2, "error: steps is 0\n"),
        (CheckpointError("file is short"), 2, "error: file is short\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (Interrupted("between blocks"), 130, "stopped\n"),
    ],
)
def test_what_a_user_causes_is_one_line(monkeypatch, capsys, error, code, line):
    monkeypatch.setattr(front, "_module", lambda verb: verb_that(raising(error)))
    assert front.main(["doctor"]) == code
    assert capsys.readouterr() == ("", line)


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(front, "_module", lambda verb: verb_that(raising(KeyError("ours"))))
    with pytest.raises(KeyError, match="ours"):
        front.main(["doctor"])


@pytest.mark.parametrize("arguments", [[], ["doctr"], ["--seed", "3"]])
def test_without_a_known_verb_the_usage_is_shown(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        front.main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m wan_core" in capsys.readouterr().err


def test_a_mistake_in_the_shell_is_one_line_and_exit_code_2():
    done = shell("doctor", "--device", "cuda:77")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {done.stderr[7:].strip()}\n"
    assert "cuda:77" in done.stderr


def test_a_reader_that_goes_away_is_no_error():
    command = f'"{sys.executable}" -m wan_core doctor --json | head -c 1'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("{", "")
