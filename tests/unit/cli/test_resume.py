"""`generate` that is stopped, killed, or finds no place to write: the same video in the end, and nothing lost."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from miniature.write import write_miniature
from wan_core.__main__ import main
from wan_core.cli.progress import TerminalProgress
from wan_core.hooks import StepEvent
from wan_core.models.vae21 import WanVae
from wan_core.video import read_video

ROOT = Path(__file__).parents[3]
SMALL = ["--width", "32", "--height", "48", "--frames", "5", "--steps", "6", "--shift", "5", "--device", "cpu"]


def command(model: Path, folder: Path) -> list[str]:
    outputs = ["--out", str(folder / "v.mp4"), "--latent-out", str(folder / "l.safetensors")]
    return ["generate", "--model", str(model), "--prompt", "two stars", *SMALL, *outputs]


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    folder = tmp_path_factory.mktemp("whole")
    assert main(command(model, folder)) == 0
    assert [path.name for path in folder.glob("v.*.unfinished.safetensors")] == []
    return load_file(folder / "l.safetensors")["samples"]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C as one step ends."""
    tell = TerminalProgress.on_step

    def on_step(self: TerminalProgress, event: StepEvent) -> None:
        tell(self, event)
        if event.index == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(TerminalProgress, "on_step", on_step)


def left(folder: Path) -> Path:
    (state,) = folder.glob("v.*.unfinished.safetensors")
    return state


@pytest.mark.parametrize("way", ["the same command", "--resume"])
def test_stopped_and_resumed(model, whole, tmp_path, monkeypatch, capsys, way) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert main(command(model, tmp_path)) == 130
    told = capsys.readouterr().err
    assert f"4 of 6 steps are saved; go on with the same command, or with: generate --resume {left(tmp_path)}" in told
    again = command(model, tmp_path) if way == "the same command" else ["generate", "--resume", str(left(tmp_path))]
    monkeypatch.chdir(tmp_path.parent)  # paths are kept whole
    report = tmp_path / "r.json"
    assert main([*again, "--report", str(report)]) == 0
    assert "4 of 6 steps done before" in report.read_text()
    captured = capsys.readouterr()
    assert "step 5/6" in captured.err and "step 4/6" not in captured.err
    assert torch.equal(load_file(tmp_path / "l.safetensors")["samples"], whole)
    assert read_video(tmp_path / "v.mp4").shape == (5, 48, 32, 3)
    assert not list(tmp_path.glob("v.*.unfinished.safetensors"))


def test_a_failed_decode_goes_straight_to_the_decode(model, whole, tmp_path, monkeypatch, capsys) -> None:
    def broken(self: WanVae, latent: torch.Tensor) -> Iterator[torch.Tensor]:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(WanVae, "decode_chunks", broken)
        with pytest.raises(ZeroDivisionError):
            main(command(model, tmp_path))
    (tmp_path / "l.safetensors").unlink()
    capsys.readouterr()
    assert main(["generate", "--resume", str(left(tmp_path))]) == 0
    told = capsys.readouterr()
    assert "all steps done" in told.err and "step 6/6" not in told.err and "text encoder" not in told.err
    assert torch.equal(load_file(tmp_path / "l.safetensors")["samples"], whole)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--seed", "9"], "another one: seed 0 there, 9 here"),
        (["--steps", "8"], "another one: num steps 6 there, 8 here"),
        (["--width", "64"], "another one: latent size 2x6x4 there, 2x6x8 here"),
        (["--prompt", "a square"], "another one: not the same prompts"),
    ],
)
def test_another_run_is_refused(model, tmp_path, monkeypatch, capsys, changes, sentence) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        main(command(model, tmp_path))
    capsys.readouterr()
    assert main(["generate", "--resume", str(left(tmp_path)), *changes]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in error
    assert left(tmp_path).exists()


def test_another_model_is_refused(model, tmp_path, monkeypatch, capsys) -> None:
    write_miniature(tmp_path / "other", seed=1)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        main(command(model, tmp_path))
    assert main(["generate", "--resume", str(left(tmp_path)), "--model", str(tmp_path / "other")]) == 2
    assert "another one: not the same model" in capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path, capsys) -> None:
    assert main(["generate"]) == 2
    assert "--prompt is missing" in capsys.readouterr().err
    assert main(["generate", "--resume", str(tmp_path / "none.safetensors")]) == 2
    assert "there is no saved run" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_a_killed_process_is_resumed(model, whole, tmp_path) -> None:
    again = [sys.executable, "-m", "wan_core", *command(model, tmp_path), "--save-every", "0"]
    process = subprocess.Popen(again, cwd=ROOT, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while not list(tmp_path.glob("v.*.unfinished.safetensors")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(["generate", "--resume", str(left(tmp_path))]) == 0
    assert torch.equal(load_file(tmp_path / "l.safetensors")["samples"], whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.safetensors", "v.mp4"]  # no half files


def test_a_full_disk_sends_the_video_elsewhere(model, whole, tmp_path, monkeypatch, capsys) -> None:
    asked, elsewhere = tmp_path / "full", tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    replace = os.replace

    def full(source: str, target: str) -> None:
        if Path(target).parent == asked:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert main(command(model, asked)) == 1
    told = capsys.readouterr().out
    (video,), (latent,) = elsewhere.glob("*/v.mp4"), elsewhere.glob("*/l.safetensors")
    assert f"video: {video}" in told and "! cannot write" in told
    assert read_video(video).shape == (5, 48, 32, 3)
    assert torch.equal(load_file(latent)["samples"], whole)
    assert not any(asked.iterdir())


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on the size of files")
def test_no_room_anywhere_is_one_sentence(model, tmp_path, capsys) -> None:
    # A real refusal, in the middle of writing.
    assert main(command(model, tmp_path)) == 0
    size = (tmp_path / "v.mp4").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    try:
        code = main([*command(model, tmp_path / "again")[:-2], "--save-every", "0"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert "cannot write" in capsys.readouterr().err
