"""`doctor`: every backend gets a verdict, every library a version or a word."""

import json
import sys
from argparse import ArgumentParser
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from wan_core.attention import calibrate
from wan_core.attention.backends import BACKEND_NAMES, BACKENDS
from wan_core.attention.interface import AttentionBackend, AttentionProblem, KernelChoice
from wan_core.attention.verdicts import Timing, Verdict
from wan_core.cli import doctor
from wan_core.report import Decision

PROBLEM = AttentionProblem(batch=1, q_len=64, kv_len=64, num_heads=2, head_dim=8, dtype="float32")


@pytest.fixture(scope="module")
def diagnosis() -> doctor.Diagnosis:
    return doctor.examine("cpu")


def run(*arguments: str) -> int:
    parser = ArgumentParser()
    doctor.add_arguments(parser)
    return doctor.run(parser.parse_args(arguments))


def test_every_backend_has_a_verdict(diagnosis):
    verdicts = {item.name: item.problem for item in diagnosis.attention}
    assert tuple(verdicts) == BACKEND_NAMES
    assert verdicts["sdpa"] is None
    assert verdicts["cudnn"] == "needs an NVIDIA GPU"


def test_text_says_what_is_usable_and_why_not(diagnosis):
    text = doctor.to_text(diagnosis)
    assert "\n  sdpa               usable (exact)\n" in text
    assert "\n  cudnn              needs an NVIDIA GPU\n" in text
    assert "\n  flash-attn-4-wide  needs an NVIDIA GPU\n" in text
    assert "without CUDA" in text or "CUDA 1" in text
    assert "float32 matmul" in text
    assert all(name in text for name in doctor.LIBRARIES)


def test_missing_libraries_say_what_is_lost(diagnosis):
    text = doctor.to_text(
        doctor.Diagnosis(
            system="",
            python="",
            hardware=diagnosis.hardware,
            attention_shape="",
            attention=(),
            libraries={"av": None, "triton": None, "ftfy": "6.3.1"},
        )  # fmt: skip
    )
    assert [line.split(maxsplit=1)[1] for line in text.splitlines()[-3:]] == [
        "not installed: no MP4 files",
        "not installed",
        "6.3.1",
    ]


def test_json_holds_the_same(capsys, diagnosis):
    assert run("--device", "cpu", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert [item["name"] for item in data["attention"]] == list(BACKEND_NAMES)
    assert data["hardware"]["torch_version"] == diagnosis.hardware.torch_version
    assert set(data["libraries"]) == set(doctor.LIBRARIES)


def test_a_broken_vendor_costs_one_line(machine):
    def load():
        raise ImportError("undefined symbol\nand a page of dump")

    broken = AttentionBackend(name="broken", quality="near", rejects=lambda problem, hardware: None, load=load)
    verdict = doctor.judge(broken, (broken, *BACKENDS), PROBLEM, machine("cpu"))
    assert verdict == doctor.BackendVerdict(name="broken", quality="near", problem="ImportError: undefined symbol")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("h200", "1x75600x40x128 bfloat16"), ("2080ti", "1x75600x40x128 float16"), ("cpu", "1x320x40x128 float32")],
)
def test_backends_are_asked_about_the_real_problem(machine, name, shape):
    problem = doctor._attention_problem(machine(name))
    assert f"{problem.batch}x{problem.q_len}x{problem.num_heads}x{problem.head_dim} {problem.dtype}" == shape


def test_on_a_cpu_there_is_nothing_to_time(diagnosis):
    assert (diagnosis.auto, diagnosis.notes) == (
        (),
        (*doctor.folder_notes(doctor._PACK), *doctor.bytecode_notes(torch)),
    )


def test_a_folder_that_comfyui_serves_no_panels_from_is_told():
    (note,) = doctor.folder_notes(Path("custom nodes", "wan velocity"))
    assert "a space in its name" in note and "rename" in note
    assert doctor.folder_notes(Path("custom nodes", "wan-velocity")) == ()


def test_sources_that_every_process_compiles_anew_are_named(tmp_path, monkeypatch):
    library = ModuleType("torch")
    library.__spec__ = ModuleSpec("torch", None, origin=str(tmp_path / "torch.py"))
    library.__spec__.cached = str(tmp_path / "torch.pyc")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert doctor.bytecode_notes(library) == ()  # the first process keeps it
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (note,) = doctor.bytecode_notes(library)
    assert "PYTHONDONTWRITEBYTECODE" in note and "compileall" in note
    Path(library.__spec__.cached).touch()
    assert doctor.bytecode_notes(library) == ()  # whoever installed it has compiled it


def test_it_tells_what_auto_takes_and_times_it_when_asked(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("WAN_VELOCITY_CACHE", str(tmp_path))
    measured = []

    def measure(choice: KernelChoice, hardware, *, seconds: float) -> Verdict:
        measured.append(choice.topic)
        timings = [Timing(name=name, tflops=rate, error=2e-3) for name, rate in (("flash", 363.0), ("cudnn", 561.0))]
        others = tuple(name for name in choice.names if name not in ("flash", "cudnn"))
        return Verdict(date="2026-11-21", timings=tuple(timings), untimed=others)

    monkeypatch.setattr(calibrate, "measure", measure)
    hardware = machine("h200", libraries=(("flash-attn-4", "4.0"),))
    problem = doctor._attention_problem(hardware)
    before, _ = doctor._auto(problem, hardware, measure=False)
    assert [item.topic for item in before] == ["self attention", "cross attention"]
    assert all(item.chosen.startswith("flash-attn-4") and item.reason == doctor.NOT_TIMED for item in before)
    for measure_again in (True, False, True):
        after, notes = doctor._auto(problem, hardware, measure=measure_again)
        assert str(after[0]) == "self attention: flash (flash 363, cudnn 561 TFLOP/s, measured 2026-11-21)"
        assert notes == ()
    assert measured == ["self attention", "cross attention"] * 2


def test_text_tells_what_auto_takes(diagnosis):
    auto = (Decision(topic="self attention", asked="auto", chosen="flash", reason="flash 363 TFLOP/s"),)
    text = doctor.to_text(replace(diagnosis, auto=auto, notes=("not kept",)))
    assert "\n  auto, self attention: flash (flash 363 TFLOP/s)\n! not kept\n" in text


def test_an_issue_report_has_all_that_is_needed_and_nothing_private(capsys, diagnosis, monkeypatch):
    private = "OSError: /home/alice/my projects/env/lib/python3.12/site-packages/flash_attn/x.so: undefined symbol"
    monkeypatch.setattr(doctor, "examine", lambda *arguments, **options: replace(
        diagnosis,
        attention=(doctor.BackendVerdict(name="flash-attn-2", quality="exact", problem=private),),
        broken={"kornia": r"ImportError: C:\Users\Alice\env\kornia.dll is missing"},
        notes=("/home/bob/.cache/wan-velocity/attention.json cannot be read and is ignored",),
    ))  # fmt: skip
    assert run("--report") == 0
    text = capsys.readouterr().out
    assert text.startswith("### Wan Velocity 0.")
    assert "What I did, what I expected, what happened" in text and diagnosis.hardware.torch_version in text
    assert ".../x.so: undefined symbol" in text and ".../kornia.dll is missing" in text
    assert ".../attention.json cannot be read" in text
    assert not [word for word in ("alice", "Alice", "bob", "my projects", "site-packages") if word in text]


def test_one_form_at_a_time():
    with pytest.raises(SystemExit):
        run("--report", "--json")
