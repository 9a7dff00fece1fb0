"""The pack as people really have it: an archive unpacked somewhere, linked under a name of their own, alone among packs
that are switched off, beside libraries that are installed and broken.

One server for all of it: whatever breaks is named by the log.
"""

import fnmatch
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.client import Client
from tests.host.graphs import miniature_graph, node_id
from tests.host.server import PACK_ROOT, ComfyInstall, ComfyServer
from tests.surface import surface

NAME = "Wan Velocity (copy) v0.1-beta"
# Distribution -> package, error on import; of what ComfyUI tries itself, it survives ImportError alone. It needs av,
# Pillow, sentencepiece and kornia: those are broken in tests/unit/test_broken_libraries.py.
BROKEN = {
    "flash-attn": ("flash_attn", "ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E')"),
    "flash-attn-3": ("flash_attn_interface", "OSError('libcudart.so.12: cannot open shared object file')"),
    "xformers": ("xformers", "ImportError('built for another torch')"),
    "sageattention": ("sageattention", "ImportError('no CUDA')"),
    "gguf": ("gguf", "AttributeError('module numpy has no attribute bool')"),
    "ftfy": ("ftfy", "ImportError('No module named wcwidth')"),
}


@pytest.fixture(scope="module")
def installed(install: ComfyInstall, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("installed")
    unpacked = base / "downloads" / "wan-velocity-main"
    _unpack(unpacked)
    for folder in ("custom_nodes", "input", "output", "temp", "user"):
        (base / folder).mkdir()
    (base / "custom_nodes" / NAME).symlink_to(unpacked, target_is_directory=True)
    (base / "custom_nodes" / "another_pack.py").write_text("raise SystemExit('this pack is switched off')\n")
    flags = ("--disable-all-custom-nodes", "--whitelist-custom-nodes", NAME)
    with ComfyServer(install, base, flags, {"PYTHONPATH": str(_broken_libraries(base / "broken"))}) as running:
        yield running
    shutil.rmtree(unpacked)


def _unpack(target: Path) -> None:
    """What the registry's archive of this commit holds."""
    target.mkdir(parents=True)
    archive = target.parent / "archive.tar"
    done = subprocess.run(["git", "-C", PACK_ROOT, "archive", "--output", archive, "HEAD"], capture_output=True)
    if done.returncode:
        pytest.skip("this checkout has no git history to make an archive of")
    left_out = [
        line.rstrip("/")
        for line in (PACK_ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    with tarfile.open(archive) as tar:
        kept = [each for each in tar.getmembers() if not any(_below(each.name, pattern) for pattern in left_out)]
        tar.extractall(target, kept, filter="data")
    assert not (target / "tests").exists() and (target / "README.md").exists()


def _below(name: str, pattern: str) -> bool:
    return fnmatch.fnmatch(name, pattern) or name.startswith(f"{pattern}/")


def _broken_libraries(folder: Path) -> Path:
    for distribution, (package, error) in BROKEN.items():
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text(f"raise {error}\n")
        metadata = folder / f"{distribution.replace('-', '_')}-9.9.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 9.9\n")
    return folder


def test_every_node_is_there_and_no_other_pack(installed: ComfyServer) -> None:
    info = installed.client.get("/object_info")
    assert surface.nodes(info).keys() == surface.shipped("nodes").keys()
    assert "switched off" not in installed.log


def test_it_loads_without_a_warning_but_that_of_its_folder(installed: ComfyServer) -> None:
    ours = [line for line in installed.log.splitlines() if NAME in line or "wan_core" in line]
    of_its_folder = [line for line in ours if "serves no panels from a folder with a space in its name" in line]
    assert len(of_its_folder) == 1
    ours.remove(of_its_folder[0])
    assert ours, "the pack was not tried"
    assert not [line for line in ours if any(word in line for word in ("WARNING", "ERROR", "FAILED", "Traceback"))]


def test_it_makes_a_video_and_the_report_says_what_is_missing(installed: ComfyServer) -> None:
    client: Client = installed.client
    graph = miniature_graph()
    run = client.run(graph)
    assert run.status == "execution_success", run.error
    report = run.text(node_id(graph, "PreviewAny"))
    assert "high noise: " in report and "self attention: " in report


def test_it_ships_its_words_and_its_templates(installed: ComfyServer) -> None:
    templates = installed.client.get("/workflow_templates")
    assert "wan_velocity_mini_t2v" in templates[NAME]
    assert "WanVelocitySampler" in installed.client.get("/i18n")["zh"]["nodeDefs"]


def test_doctor_runs_in_the_hosts_python(install: ComfyInstall, installed: ComfyServer) -> None:
    """From the pack's folder, whatever it is called; one line for each library that is broken."""
    done = subprocess.run(
        [install.python, "-m", "wan_core", "doctor", "--device", "cpu"],
        cwd=installed.base / "custom_nodes" / NAME,
        env={**os.environ, "PYTHONPATH": str(installed.base / "broken")},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for distribution in BROKEN:
        lines = [line for line in done.stdout.splitlines() if line.strip().startswith(f"{distribution} ")]
        assert any("9.9 cannot be imported" in line for line in lines), (distribution, done.stdout)
