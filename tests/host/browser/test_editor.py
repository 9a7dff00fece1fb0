"""The shipped workflows and our panels as a person sees them, in the classic canvas and in Nodes 2.0."""

import re

import pytest
from playwright.sync_api import expect

from tests.host.browser.editor import Editor
from tests.workflows.ui_format import SHIPPED, ui_workflow

MINIATURE = "wan_velocity_mini_t2v"
OFFICIAL = "wan_velocity_t2v_a14b_official"
WAIT = 60_000

_UNKNOWN = "() => app.rootGraph.nodes.filter((n) => !(n.type in LiteGraph.registered_node_types)).map((n) => n.type)"
_WATCH = """() => {
    const panel = document.querySelector('.wv-sampler');
    window.seen = [];
    new MutationObserver(() => {
        const { phase, expert } = panel.dataset;
        const bar = panel.querySelector('.wv-bar').getAttribute('aria-valuenow');
        const now = [phase, expert, bar, panel.querySelector('.wv-left').innerText].join(' ');
        if (window.seen.at(-1) !== now) window.seen.push(now);
    }).observe(panel, { subtree: true, childList: true, attributes: true, characterData: true });
}"""
_PLAYS = """async () => {
    const video = document.querySelector('video');
    if (!video || video.readyState < 2) return false;
    video.muted = true;
    await video.play();
    return video.videoWidth > 0 && video.currentTime > 0;
}"""
_ADD = """(type) => {
    const node = LiteGraph.createNode(type);
    node.pos = [0, 700];
    app.rootGraph.add(node);
}"""
_SET = """([type, widget, value]) => {
    app.rootGraph.nodes.find((n) => n.type === type).widgets.find((w) => w.name === widget).value = value;
}"""

# What the server tells while an expert is loaded: the miniature's are there in no time.
_LOADING = """(rate) => {
    const node = String(app.rootGraph.nodes.find((n) => n.type === 'WanVelocitySampler').id);
    const loading = { what: 'high noise expert', done: 2 ** 31, total: 2 ** 33, bytes_per_second: rate };
    const state = { phase: 'load', num_done: 0, loading, seconds: 1, warnings: [] };
    app.api.dispatchEvent(new CustomEvent('wan_velocity.live', { detail: { node, ...state } }));
}"""
_LOCALE = "(locale) => app.extensionManager.setting.set('Comfy.Locale', locale)"

# A plan of the same run, and nothing else to be queued.
_PLAN = """() => {
    const the = (type) => app.rootGraph.nodes.find((n) => n.type === type);
    const plan = LiteGraph.createNode('WanVelocityPlan');
    plan.pos = [900, 700];
    app.rootGraph.add(plan);
    the('WanVelocityLoadExperts').connect(0, plan, 'experts');
    the('WanVelocityEmptyLatent').connect(0, plan, 'latent');
    the('WanVelocityLoadVAE').connect(0, plan, 'vae');
    ['SaveVideo', 'PreviewAny'].map(the).forEach((node) => app.rootGraph.remove(node));
}"""
_SAVED_AND_QUEUED = """async () => {
    const ours = app.rootGraph.serialize().nodes.filter((node) => node.type.startsWith('WanVelocity'));
    const saved = Object.fromEntries(ours.map((node) => [node.id, node.widgets_values ?? []]));
    return [saved, (await app.graphToPrompt()).output];
}"""
_INTO_SUBGRAPH = """() => {
    const sampler = app.rootGraph.nodes.find((n) => n.type === 'WanVelocitySampler');
    app.rootGraph.convertToSubgraph(new Set([sampler]));
}"""
# The panel of the sampler in the only subgraph, whether it is shown or not.
_INSIDE = """() => {
    const graph = app.rootGraph.nodes.find((n) => n.subgraph).subgraph;
    const inner = graph.nodes.find((n) => n.type === 'WanVelocitySampler');
    return inner.widgets.find((w) => w.name === 'wan_velocity').element.querySelector('.wv-sampler');
}"""


@pytest.mark.parametrize("workflow", SHIPPED)
def test_opens_whole_and_is_saved_as_it_was(editor: Editor, mode: str, workflow: str) -> None:
    editor.load(workflow)
    assert editor.page.evaluate(_UNKNOWN) == []
    for sampler in editor.panel("sampler").all():
        expect(sampler).to_contain_text(re.compile(r"\d+ high \+ \d+ low, switch at timestep 875"))
    editor.picture(f"{workflow} {mode}")
    # Panels are no part of what is saved or queued.
    saved, queued = editor.page.evaluate(_SAVED_AND_QUEUED)
    ours = [node for node in ui_workflow(workflow)["nodes"] if node["type"].startswith("WanVelocity")]
    assert {str(node["id"]): node["widgets_values"] for node in ours} == saved
    assert "wan_velocity" not in {name for node in queued.values() for name in node["inputs"]}


def test_runs_from_the_page_and_leaves_its_report(editor: Editor, mode: str) -> None:
    editor.load(MINIATURE)
    editor.look_at("WanVelocitySampler")
    panel = editor.panel("sampler")
    editor.page.evaluate(_WATCH)
    editor.queue()
    editor.page.wait_for_function("() => window.seen.some((now) => /^sample high [1-3]/.test(now))", timeout=WAIT)
    editor.picture(f"running {mode}")
    expect(panel).to_have_attribute("data-phase", "done", timeout=WAIT)
    seen = "\n".join(editor.page.evaluate("() => window.seen"))
    for what in (
        r"^load .*",
        r"^sample high [1-3] about \d+ s left",
        r"^sample low [4-7] about \d+ s left",
        r"^done .*",
    ):
        assert re.search(what, seen, re.MULTILINE), f"{what} in {seen}"
    editor.page.wait_for_function(_PLAYS, timeout=WAIT)
    panel.locator("summary").press("Enter")
    expect(panel).to_contain_text("TFLOP/s")
    expect(panel).to_contain_text("on a CPU float32 is as fast as bfloat16")
    editor.look_at("WanVelocitySampler")
    editor.picture(f"report {mode}")
    editor.load(OFFICIAL)
    expect(panel).to_have_attribute("data-phase", "idle")
    editor.page.locator(".workflow-tab").nth(-2).click()
    expect(panel).to_have_attribute("data-phase", "done")
    expect(panel).to_contain_text("Report")


def test_loading_has_its_speed(editor: Editor, mode: str) -> None:
    editor.load(MINIATURE)
    left = editor.panel("sampler").locator(".wv-left")
    editor.page.evaluate(_LOADING, None)
    expect(left).to_have_text("high noise expert: 2.0 GiB of 8.0 GiB")
    editor.page.evaluate(_LOADING, 2.3456e9)
    expect(left).to_have_text("high noise expert: 2.0 GiB of 8.0 GiB, 2,346 MB/s")
    editor.look_at("WanVelocitySampler")
    editor.picture(f"loading {mode}")
    editor.page.evaluate(_LOCALE, "zh")
    try:
        editor.page.evaluate(_LOADING, 2.3456e9)
        expect(left).to_have_text("high noise expert\uff1a2.0 GiB / 8.0 GiB\uff0c2,346 MB/s")
    finally:
        editor.page.evaluate(_LOCALE, "en")


def test_profile_says_at_once_what_it_means_here(editor: Editor, mode: str) -> None:
    editor.load(MINIATURE)
    editor.page.evaluate(_ADD, "WanVelocityProfile")
    panel = editor.panel("profile")
    expect(panel).to_contain_text("128x128x17, wan_velocity_mini_high_noise.safetensors")
    editor.page.evaluate(_SET, ["WanVelocityProfile", "compile", "default"])
    expect(panel).to_contain_text("compile: off instead of default (compiling pays on an NVIDIA GPU only)")
    editor.look_at("WanVelocityProfile")
    editor.picture(f"profile {mode}")
    editor.page.evaluate(_SET, ["WanVelocityProfile", "on_unsupported", "error"])
    expect(panel).to_contain_text("compile 'default' cannot run here")


def test_plan_shows_split_time_and_memory(editor: Editor, mode: str) -> None:
    editor.load(MINIATURE)
    editor.page.evaluate(_PLAN)
    editor.queue()
    panel = editor.panel("plan")
    expect(panel).to_contain_text("26 high + 14 low, switch at timestep 875", timeout=WAIT)
    for words in ("in all", "26 \u00d7", "Memory peak", "Choices and reasons"):
        expect(panel).to_contain_text(words)
    editor.look_at("WanVelocityPlan")
    editor.picture(f"plan {mode}")


def test_in_a_subgraph(editor: Editor) -> None:
    editor.load(MINIATURE)
    for widget, value in (("width", 64), ("height", 64), ("frames", 5)):
        editor.page.evaluate(_SET, ["WanVelocityEmptyLatent", widget, value])
    editor.page.evaluate(_INTO_SUBGRAPH)
    editor.queue()
    editor.page.wait_for_function(f"() => ({_INSIDE})()?.querySelector('.wv-copy')", timeout=WAIT)
    assert editor.page.evaluate(f"() => ({_INSIDE})().dataset.phase") == "done"


def test_recipe_shows_its_split_as_it_is_chosen(editor: Editor) -> None:
    editor.load(MINIATURE)
    panel = editor.panel("sampler")
    editor.page.evaluate(_SET, ["WanVelocitySampler", "recipe", "official"])
    expect(panel).to_contain_text("26 high + 14 low")
    editor.page.evaluate(_SET, ["WanVelocitySampler", "end_step", 10])
    expect(panel).to_contain_text("runs 10 of 40 steps")


def test_a_node_that_goes_takes_its_panel_along(editor: Editor) -> None:
    editor.load(MINIATURE)
    expect(editor.panel("sampler")).to_have_count(1)
    editor.page.evaluate("() => app.rootGraph.remove(app.rootGraph.nodes.find((n) => n.type === 'WanVelocitySampler'))")
    expect(editor.panel("sampler")).to_have_count(0)
