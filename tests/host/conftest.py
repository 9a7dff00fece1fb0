"""One ComfyUI for the whole host suite; skipped, and not in silence, where there is none."""

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.host.client import Client, Prompt, Run
from tests.host.graphs import miniature_graph
from tests.host.models import write_models
from tests.host.server import PACK_ROOT, ComfyInstall, ComfyServer, environment, lay_out


# First, since xdist reads the marks of groups at its own turn.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.host)
        # One process runs them all, so that there is one ComfyUI, whatever other processes do beside it.
        item.add_marker(pytest.mark.xdist_group("host"))
    if ours and isinstance(found := ComfyInstall.find(), str):
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=f"HOST SUITE SKIPPED, nothing was tried in ComfyUI: {found}"))


@pytest.fixture(scope="session")
def install() -> ComfyInstall:
    found = ComfyInstall.find()
    assert isinstance(found, ComfyInstall), found
    return found


@pytest.fixture(scope="session")
def server(
    install: ComfyInstall, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[ComfyServer]:
    """A running ComfyUI with both packs and the test models, in float32, in the pack's own models folder."""
    names = [item.nodeid for item in request.session.items if item.get_closest_marker("host")]
    in_one_process = "PYTEST_XDIST_WORKER" not in os.environ or all(name.endswith("@host") for name in names)
    assert in_one_process, "the host suite is spread over processes: run with --dist loadgroup, and pytest below 9.2"
    base = tmp_path_factory.mktemp("comfyui")
    pack = lay_out(base)
    write_models(pack / "models")
    with ComfyServer(install, base) as running:
        yield running
    # pytest keeps the folders of the last runs; the log is worth it, 200 MB of models are not.
    shutil.rmtree(pack / "models")


@pytest.fixture(scope="session")
def probed(install: ComfyInstall) -> dict[str, dict]:
    """What was seen in ComfyUI's Python without a server, by probe; see `probes.py`."""
    command = [install.python, PACK_ROOT / "tests/host/probes.py", install.root, PACK_ROOT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=install.root)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def client(server: ComfyServer) -> Client:
    return server.client


@pytest.fixture
def graph() -> Prompt:
    """The shipped miniature workflow in API format, made small; a copy to change at will."""
    return miniature_graph()


@pytest.fixture
def saved(server: ComfyServer) -> Callable[[Prompt, dict[str, tuple[str, int]]], dict[str, torch.Tensor]]:
    """Runs a graph and returns tensors from it: `saved(graph, {"latent": ("7", 0)})`."""

    def run(graph: Prompt, wanted: dict[str, tuple[str, int]]) -> dict[str, torch.Tensor]:
        # A name that was never used keeps the host from answering with a file of another run.
        files = {name: f"{name} {uuid.uuid4().hex}" for name in wanted}
        for name, (node_id, slot) in wanted.items():
            graph[f"save {name}"] = {
                "class_type": "HostTestSaveTensor",
                "inputs": {"value": [node_id, slot], "name": files[name]},
            }
        result: Run = server.client.run(graph)
        assert result.status == "execution_success", result.error
        return {name: load_file(server.output / f"{file}.safetensors")["tensor"] for name, file in files.items()}

    return run
