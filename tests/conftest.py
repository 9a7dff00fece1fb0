"""What all suites share: invented machines, the miniature, the switch for GPU tests, reproducible random examples."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from wan_core.allocator import let_segments_grow

# Until all tests are collected: what is imported for them is some hundred thousand objects, and all of them stay.
gc.disable()

# As on the command line, before torch is imported.
let_segments_grow()

import torch  # noqa: E402

from miniature.write import write_miniature  # noqa: E402
from tests.small_model import write_small_model  # noqa: E402
from wan_core.hardware import Hardware  # noqa: E402

# The same examples on every machine and no time limit per example: the suite times whole tests (pytest-timeout).
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None)
hypothesis.settings.load_profile("suite")

# Tests work on small tensors, where a second thread only waits for the first: on a busy machine ten times as long.
torch.set_num_threads(1)

_GIB = 2**30
_MACHINES = {
    "cpu": {"device": "cpu", "name": "a CPU", "capability": None, "total": 24, "rates": {"float32": 0.1}},
    "2080ti": {"device": "cuda:0", "name": "NVIDIA GeForce RTX 2080 Ti", "capability": (7, 5), "total": 11},
    "a100": {"device": "cuda:0", "name": "NVIDIA A100-SXM4-80GB", "capability": (8, 0), "total": 80},
    "h200": {
        "device": "cuda:0",
        "name": "NVIDIA H200",
        "capability": (9, 0),
        "total": 140,
        "rates": {"bfloat16": 788.0, "float16": 780.0, "float32": 50.0},
    },
}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Garbage is collected from here on, but never looked for among what was imported: 0.4 s each time otherwise."""
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA card"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One loud line for every suite that was left out as a whole; here, where also the parent of test processes is."""
    reports = terminalreporter.stats.get("skipped", ())
    skipped = {str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports}
    for reason in sorted(reason for reason in skipped if " SUITE SKIPPED" in reason):
        terminalreporter.write_line(f"!!! {reason}", red=True)


@pytest.fixture(autouse=True, scope="session")
def _no_history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that the suite runs is remembered in the user's own cache folder, nor read from there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAN_VELOCITY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model in ComfyUI's layout, random weights; whoever changes its files takes a copy."""
    folder = tmp_path_factory.mktemp("small_model")
    write_small_model(folder)
    return folder


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the miniature, whose steps take longer."""
    folder = tmp_path_factory.mktemp("miniature")
    write_miniature(folder)
    return folder


@pytest.fixture
def machine() -> Callable[..., Hardware]:
    """Invents a machine by name ("cpu", "2080ti", "a100", "h200"); `free_gib` and `libraries` may be given."""

    def invent(name: str, *, free_gib: float | None = None, libraries: tuple[tuple[str, str], ...] = ()) -> Hardware:
        facts = _MACHINES[name]
        is_cuda = facts["device"] != "cpu"
        return Hardware(
            device=facts["device"],
            name=facts["name"],
            capability=facts["capability"],
            total_memory=facts["total"] * _GIB,
            free_memory=int((facts["total"] if free_gib is None else free_gib) * _GIB),
            host_memory=64 * _GIB,
            host_free_memory=48 * _GIB,
            torch_version="2.13.0",
            cuda_version="13.0" if is_cuda else None,
            libraries=libraries,
            tflops=tuple(facts.get("rates", {}).items()),
        )

    return invent
