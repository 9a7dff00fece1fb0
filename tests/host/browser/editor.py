"""ComfyUI's editor in a headless Chromium, as a person at it would use it."""

import os
import shutil
from pathlib import Path

from playwright.sync_api import ConsoleMessage, Locator, Page

from tests.host.client import Client

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_MODEL_SOURCE = "huggingface.co"
_READY = "() => window.app?.vueAppReady && app.isGraphReady && !document.querySelector('#splash-loader')"
_LOAD = """async ([pack, name]) => {
    const answer = await fetch(`/api/workflow_templates/${encodeURIComponent(pack)}/${name}.json`);
    await app.loadGraphData(await answer.json(), true, true, name);
}"""
_NEW_SEED = """() => {
    const widgets = app.rootGraph.nodes.flatMap((node) => node.widgets ?? []);
    const seeds = widgets.filter((widget) => widget.name === 'seed');
    for (const seed of seeds) seed.value = Math.floor(2 ** 32 * Math.random());
}"""

_LOOK_AT = """(type) => {
    app.canvas.setZoom?.(1.2);
    app.canvas.ds.scale = 1.2;
    app.canvas.centerOnNode(app.rootGraph.nodes.find((node) => node.type === type));
    app.canvas.setDirty(true, true);
}"""


def find_chromium() -> str | None:
    """The browser that CHROMIUM_PATH names, else one on the PATH."""
    return os.environ.get("CHROMIUM_PATH") or next((found for name in _NAMES if (found := shutil.which(name))), None)


class Editor:
    """One page with the editor; collects what its console complains of."""

    def __init__(self, page: Page, client: Client, address: str, pictures: Path) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.nodes_2 = False
        self._client = client
        self._address = address
        self._pictures = pictures
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))

    def open(self, *, nodes_2: bool) -> None:
        """Load the editor with the classic canvas or with Nodes 2.0."""
        self.nodes_2 = nodes_2
        settings = {
            "Comfy.VueNodes.Enabled": nodes_2,
            "Comfy.TutorialCompleted": True,
            "Comfy.Workflow.Persist": False,
        }
        self._client.post("/settings", settings)
        self.page.goto(f"http://{self._address}")
        self.page.wait_for_function(_READY, timeout=60_000)

    def load(self, workflow: str) -> None:
        """Open a shipped workflow from where the template browser gets it."""
        (pack,) = (name for name in self._client.get("/workflow_templates") if "velocity" in name)
        self.page.evaluate(_LOAD, [pack, workflow])
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(500)

    def panel(self, kind: str) -> Locator:
        """The only panel of a kind: "sampler", "profile" or "plan"."""
        return self.page.locator(f".wv-{kind}")

    def queue(self) -> None:
        """Queue the graph as the button does, with another seed so that everything runs."""
        self.page.evaluate(_NEW_SEED)
        self.page.evaluate("() => app.queuePrompt(0)")

    def look_at(self, node_type: str) -> None:
        """Bring the only node of a type into the middle, as large as it is meant to be read."""
        self.page.evaluate(_LOOK_AT, node_type)
        self.page.wait_for_timeout(400)

    def picture(self, name: str) -> None:
        """Keep what the page looks like."""
        self._pictures.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=self._pictures / f"{name}.png")

    def _heard(self, message: ConsoleMessage) -> None:
        # The editor asks the network for the size of models that are not here; this server forbids it to.
        if message.type == "error" and _MODEL_SOURCE not in message.text:
            self.complaints.append(f"{message.text} ({message.location.get('url', '')})")
