"""`compare` on the command line: two kinds of files, limits with exit codes, the rerun beside."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wan_core.__main__ import main
from wan_core.video import write_video


def clip(shift: int = 0) -> np.ndarray:
    t, y, x = np.mgrid[0:5, 0:32, 0:48]
    channels = (np.sin((x + 4 * t) / 30), np.cos((y + t) / 25), 0.6 * np.sin((x + y + t) / 20))
    return (127 + 90 * np.stack(channels, -1) + shift).round().astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder: Path = tmp_path_factory.mktemp("compared")
    write_video([clip()], folder / "a.mp4")
    write_video([clip(shift=10)], folder / "b.mp4")
    write_video([clip()[:, :16]], folder / "small.mp4")
    latent = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    save_file({"samples": latent}, folder / "a.safetensors")
    save_file({"samples": latent * 1.01}, folder / "b.safetensors")
    save_file({"samples": latent * 1.001}, folder / "rerun.safetensors")
    save_file({"other": latent}, folder / "other.safetensors")
    return {path.name: str(path) for path in folder.iterdir()}


def compare(files: dict[str, str], *arguments: str) -> int:
    return main(["compare", *(files.get(argument, argument) for argument in arguments)])


def test_videos(files, capsys):
    assert compare(files, "a.mp4", "b.mp4") == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == [
        "identical", "MSE", "PSNR", "SSIM", "relative", "greatest", "motion", "flicker"
    ]  # fmt: skip
    # 10 of 255 levels apart, within what H.264 changes.
    assert 27.5 < float(out.split("PSNR")[1].split()[0]) < 29
    assert err == ""


@pytest.mark.parametrize(
    ("limits", "failures"),
    [
        (("--floor-psnr", "25", "--floor-ssim", "0.9", "--ceiling-mse", "0.01", "--ceiling-relative-error", "1"), 0),
        (("--floor-psnr", "40"), 1),
        (("--ceiling-mse", "0"), 1),
        (("--floor-ssim", "1"), 1),
        (("--floor-psnr", "40", "--ceiling-relative-error", "0.001"), 2),
    ],
)
def test_past_a_limit_it_says_so_and_exits_with_1(files, capsys, limits, failures):
    assert compare(files, "a.mp4", "b.mp4", *limits) == (1 if failures else 0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["failed"] * failures
    assert all("the floor of" in line or "the ceiling of" in line for line in lines)


def test_identical_files_pass_every_limit(files, capsys):
    limits = ("--floor-psnr", "1000", "--floor-ssim", "1", "--ceiling-mse", "0", "--ceiling-relative-error", "0")
    assert compare(files, "a.mp4", "a.mp4", *limits, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["identical"], data["psnr"], data["failures"]) == (True, None, [])


def test_the_rerun_stands_beside(files, capsys):
    assert compare(files, "a.safetensors", "b.safetensors", "--noise-floor", "rerun.safetensors") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[-1].strip() == "rerun against A"
    (errors,) = (line for line in lines if line.startswith("relative error"))
    assert ("0.01," in errors, "0.001," in errors) == (True, True)


def test_json_holds_the_comparison_the_rerun_and_the_failures(files, capsys):
    arguments = ("--noise-floor", "rerun.safetensors", "--ceiling-relative-error", "0.005", "--json")
    assert compare(files, "a.safetensors", "b.safetensors", *arguments) == 1
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["relative_error"] == pytest.approx(0.01, rel=1e-4)
    assert data["noise_floor"]["relative_error"] == pytest.approx(0.001, rel=1e-3)
    assert data["failures"] == [err.removeprefix("failed: ").strip()]
    assert data["failures"][0].endswith("above the ceiling of 0.005")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("a.mp4", "small.mp4"), "has shape (5, 32, 48, 3) and the second (5, 16, 48, 3)"),
        (("a.mp4", "a.safetensors"), "expected two videos or two latents"),
        (("a.mp4", "b.mp4", "--noise-floor", "a.safetensors"), "expected two videos or two latents"),
        (("a.mp4", "nowhere.mp4"), "there is no file 'nowhere.mp4'"),
        (("a.safetensors", "other.safetensors"), "holds no tensor 'samples'"),
        (("a.safetensors", "b.safetensors", "--floor-psnr", "40"), "there is no PSNR: latents have no peak value"),
        (("a.safetensors", "b.safetensors", "--floor-ssim", "0.9"), "there is no SSIM: latents are no pictures"),
    ],
)
def test_a_mistake_is_one_sentence(files, capsys, arguments, sentence):
    assert compare(files, *arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert sentence in err


@pytest.mark.parametrize("limit", ["nan", "inf", "high"])
def test_a_limit_is_a_number(files, capsys, limit):
    with pytest.raises(SystemExit) as stopped:
        compare(files, "a.mp4", "b.mp4", "--floor-psnr", limit)
    assert stopped.value.code == 2
    assert limit in capsys.readouterr().err
