"""`generate` and `plan` on the miniature: what they write, and one line per mistake before any weights are read."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wan_core.__main__ import main
from wan_core.video import read_video

SMALL = ["--width", "32", "--height", "48", "--frames", "5", "--steps", "4", "--shift", "5", "--device", "cpu"]


def test_writes_the_video_the_latent_the_report_and_the_contact_sheet(model: Path, tmp_path: Path, capsys) -> None:
    out, latent, report, sheet = (tmp_path / name for name in ("v.mp4", "l.safetensors", "r.json", "c.png"))
    outputs = ["--out", out, "--latent-out", latent, "--report", report, "--contact-sheet", sheet]
    assert main(["generate", "--model", str(model), "--prompt", "a red circle", *SMALL, *map(str, outputs)]) == 0
    assert read_video(out).shape == (5, 48, 32, 3)
    assert sheet.stat().st_size > 0
    samples = load_file(latent)["samples"]
    assert samples.shape == (1, 16, 2, 6, 4) and samples.dtype is torch.float32
    data = json.loads(report.read_text(encoding="utf-8"))
    assert {"text", "load", "sample", "decode"} <= data["seconds"].keys() & data["peak_bytes"].keys()
    assert len(data["steps"]) == 4 and data["settings"]["prompt"] == "a red circle"
    assert data["environment"]["torch"] == torch.__version__
    assert str(tmp_path) not in report.read_text(encoding="utf-8")  # reports are shared; paths stay at home
    assert str(out) in capsys.readouterr().out


def test_the_same_command_gives_the_same_latent(model: Path, tmp_path: Path) -> None:
    latents = []
    for name in ("a", "b"):
        latent = tmp_path / f"{name}.safetensors"
        command = ["generate", "--model", str(model), "--prompt", "two stars", "--seed", "3", *SMALL]
        assert main([*command, "--out", str(tmp_path / f"{name}.mp4"), "--latent-out", str(latent)]) == 0
        latents.append(load_file(latent)["samples"])
    assert torch.equal(*latents)


def test_every_prompt_with_every_seed_as_if_each_were_alone(model: Path, tmp_path: Path, capsys) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n\n two stars \n", encoding="utf-8")
    outputs = ["--out", str(tmp_path / "v.mp4"), "--latent-out", str(tmp_path / "l.safetensors")]
    command = ["generate", "--model", str(model), *SMALL]
    assert main([*command, "--prompts", str(prompts), "--seeds", "3", "8", *outputs]) == 0
    assert sorted(path.name for path in tmp_path.glob("v*")) == ["v-1.mp4", "v-2.mp4", "v-3.mp4", "v-4.mp4"]
    assert capsys.readouterr().err.count("text encoder:") == 1  # read once for all prompts
    alone = tmp_path / "alone.safetensors"
    again = ["--prompt", "two stars", "--seed", "3", "--out", str(tmp_path / "w.mp4"), "--latent-out", str(alone)]
    assert main([*command, *again]) == 0
    assert torch.equal(load_file(alone)["samples"], load_file(tmp_path / "l-3.safetensors")["samples"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "--prompt is missing, expected --prompt TEXT, --prompts FILE"),
        (["--prompt", "a", "--prompts", "b.txt"], "--prompt and --prompts were both given"),
        (["--prompts", "nowhere.txt"], "--prompts 'nowhere.txt' cannot be read as text"),
    ],
)
def test_prompts_that_are_not_there_are_one_line(model: Path, options: list[str], sentence: str, capsys) -> None:
    assert main(["generate", "--model", str(model), *options, *SMALL]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--width", "100"], "width is 100, expected a multiple of 16 up to 8192; the nearest is 96"),
        (["--frames", "6"], "frames is 6, expected 4n + 1; the nearest is 5"),
        (["--steps", "0"], "steps is 0, expected at least 1"),
        (["--boundary", "1.5"], "boundary is 1.5, expected a fraction from 0 to 1"),
        (["--recipe", "offical"], "did you mean 'official'?"),
        (["--profile", "fastest"], "profile is 'fastest'"),
        (["--set", "attention.backend"], "has no value, expected KEY=VALUE"),
        (["--set", "attention.kernel=flash"], "setting is 'attention.kernel'"),
        (["--set", "attention.backend=cudnn", "--set", "on_unsupported=error"], "needs an NVIDIA GPU"),
        (["--out", "video.avi"], "expected a name ending in .mp4"),
        (["--latent-out", "latent.pt"], "expected a name ending in .safetensors"),
        (["--high", "other.safetensors"], "--model and --high were both given"),
    ],
)
def test_mistakes_are_one_line(model: Path, tmp_path: Path, capsys, changes: list[str], sentence: str) -> None:
    command = ["generate", "--model", str(model), "--prompt", "x", *SMALL, "--out", str(tmp_path / "v.mp4"), *changes]
    assert main(command) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error and len(error.splitlines()) == 1
    assert not (tmp_path / "v.mp4").exists()


def test_a_model_in_single_files_must_be_whole(capsys) -> None:
    assert main(["plan", "--high", "high.safetensors"]) == 2
    assert "--low is missing, expected --model DIR or all of" in capsys.readouterr().err


def test_plan_says_the_split_and_the_reasons(model: Path, capsys) -> None:
    assert main(["plan", "--model", str(model), "--device", "cpu", "--width", "64", "--height", "64"]) == 0
    text = capsys.readouterr().out
    assert "26 high + 14 low, switch below timestep 875 (step 27 of 40)" in text
    assert "self attention: " in text and "GiB" in text
