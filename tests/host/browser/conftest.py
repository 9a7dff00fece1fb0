"""A headless Chromium at the host suite's ComfyUI; skipped, and not in silence, where there is none.

The pictures that the tests take are kept in `output/browser/`, to be looked at by people.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.host.browser.editor import Editor, find_chromium
from tests.host.server import PACK_ROOT, ComfyServer

PICTURES = PACK_ROOT / "output" / "browser"
_REASON = "BROWSER SUITE SKIPPED, nobody looked at the editor: no Chromium on the PATH and none in CHROMIUM_PATH"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    if ours and find_chromium() is None:
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=_REASON))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    shutil.rmtree(PICTURES, ignore_errors=True)
    with sync_playwright() as driver:
        # A container's root may not open a sandbox; the only page is the test's own server.
        browser = driver.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_editor(chromium: Browser, server: ComfyServer) -> Iterator[Callable[[bool], Editor]]:
    """Opens the editor with the classic canvas (`False`) or with Nodes 2.0 (`True`), each once."""
    editors: dict[bool, Editor] = {}

    def opened(nodes_2: bool) -> Editor:
        if nodes_2 not in editors:
            page = chromium.new_context(viewport={"width": 1700, "height": 1000}).new_page()
            editors[nodes_2] = Editor(page, server.client, f"127.0.0.1:{server.port}", PICTURES)
            editors[nodes_2].open(nodes_2=nodes_2)
        return editors[nodes_2]

    yield opened
    for editor in editors.values():
        editor.page.context.close()


@pytest.fixture(params=[False, True], ids=["classic", "nodes_2"], scope="module")
def editor(request: pytest.FixtureRequest, open_editor: Callable[[bool], Editor]) -> Editor:
    """The editor in either mode."""
    return open_editor(request.param)


@pytest.fixture
def mode(editor: Editor) -> str:
    return "nodes_2" if editor.nodes_2 else "classic"


@pytest.fixture(autouse=True)
def nothing_alarming(editor: Editor) -> Iterator[None]:
    """Whatever a test does, the console has no error to tell."""
    editor.complaints.clear()
    yield
    assert editor.complaints == []
