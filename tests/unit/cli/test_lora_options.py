"""The LoRA options: their order, their strengths, and file names with colons."""

import json
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch

from miniature.architecture import TRANSFORMER
from miniature.write import write_miniature
from tests.lora_files import write_lora
from wan_core.__main__ import main
from wan_core.checkpoint.lora_pair import LoraChoice
from wan_core.cli import options
from wan_core.errors import CheckpointError
from wan_core.specs import Expert


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    for expert in Expert:
        write_lora(folder, "kohya", TRANSFORMER, expert)
    return folder


@pytest.fixture(scope="module")
def high(folder: Path) -> Path:
    return folder / "kohya" / "high_noise" / "style_high_noise.safetensors"


@pytest.fixture(scope="module")
def low(folder: Path) -> Path:
    return folder / "kohya" / "low_noise" / "style_low_noise.safetensors"


def chosen(*given: str) -> tuple[LoraChoice, ...]:
    parser = ArgumentParser()
    options.add_lora_options(parser)
    return options.loras(parser.parse_args(given), TRANSFORMER)


def test_none_without_options():
    assert chosen() == ()


def test_order_partners_and_strengths(high, low):
    first, second, third = chosen("--lora-low", f"{low}:0.25", "--lora", f"{high}:-2", "--lora-high", str(high))
    assert (first.high, first.low.path, first.strength_low) == (None, low, 0.25)
    assert (second.high.path, second.low.path) == (high, low)
    assert (second.strength_high, second.strength_low) == (-2.0, -2.0)
    assert (third.high.path, third.low, third.strength_high) == (high, None, 1.0)


def test_a_colon_may_belong_to_the_name(high, tmp_path):
    odd = tmp_path / "style:v2"
    odd.mkdir()
    (odd / "style.safetensors").write_bytes(high.read_bytes())
    (choice,) = chosen("--lora", str(odd / "style.safetensors"))
    assert choice.high.path.parent == odd
    (choice,) = chosen("--lora", f"{odd / 'style.safetensors'}:0.5")
    assert choice.strength_high == 0.5


def test_a_mistake_is_told_as_a_missing_file():
    with pytest.raises(CheckpointError, match="does not exist"):
        chosen("--lora", "style.safetensors:strong")


def test_generate_and_plan_take_loras_and_report_them(folder, high, tmp_path, capsys):
    write_miniature(tmp_path / "model", dtype=torch.float32)
    given = ["--model", str(tmp_path / "model"), "--lora", f"{high}:0.5", "--width", "32", "--height", "32",
             "--frames", "1", "--steps", "2", "--device", "cpu"]  # fmt: skip
    assert main(["plan", *given]) == 0
    assert "70/70 modules, rank 4, alpha/rank 0.25, strength 0.5" in capsys.readouterr().out
    report = tmp_path / "report.json"
    assert main(["generate", *given, "--prompt", "a", "--out", str(tmp_path / "v.mp4"), "--report", str(report)]) == 0
    written = json.loads(report.read_text())
    assert written["settings"]["loras"] == ["--lora style_high_noise.safetensors:0.5"]
    assert any("70/70 modules" in decision["chosen"] for decision in written["decisions"])
    assert str(folder) not in report.read_text()
