"""ComfyUI's own Wan model as a contestant of `bench`: imported from its checkout, by the Python that runs it."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.host.server import PACK_ROOT, ComfyInstall, environment

ARGUMENTS = (
    "-m", "wan_core", "bench", "--tiny", "--device", "cpu", "--profile", "cpu", "--steps", "1",
    "--what", "step,vae,text",
)  # fmt: skip


@pytest.fixture(scope="module")
def parts(install: ComfyInstall, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict]]:
    """Rows by part and contestant."""
    out: Path = tmp_path_factory.mktemp("bench") / "bench.json"
    against = [f"--against=comfyui={install.root}", f"--against=comfyui+cudnn={install.root}"]
    done = subprocess.run(
        [install.python, *ARGUMENTS, *against, "--out", out],
        cwd=PACK_ROOT, env=environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))["parts"]
    return {part: {row["name"]: row for row in found[part]["contestants"]} for part in found}


@pytest.mark.parametrize("part", ["step", "vae", "text"])
def test_it_computes_what_we_compute(parts, part):
    row = parts[part]["ComfyUI"]
    assert row["problem"] is None
    assert row["median_seconds"] > 0
    assert row["difference"] < 1e-4


def test_its_step_is_divided_by_operation(parts):
    seconds = parts["step"]["ComfyUI"]["breakdown"]["seconds"]
    assert {"self attention", "cross attention", "linear", "norm and modulation", "RoPE"} <= seconds.keys()
    assert "other" not in seconds


def test_an_option_that_this_machine_lacks_is_a_row_with_the_reason(parts):
    assert "no order of attention kernels" in parts["step"]["ComfyUI+cudnn"]["problem"]
    assert "ComfyUI+cudnn" not in parts["vae"]
