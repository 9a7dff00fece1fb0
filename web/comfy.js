/**
 * Everything that the panels ask of ComfyUI's editor; no other file here imports from it.
 *
 * A panel is a class whose instances have an `element`, and where they need it `restore(output)`, called with what the
 * node's last run returned, and `dispose()`, called when the node goes. It is given a `Node`, never the editor.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const OUTPUT = "wan_velocity";
// How often a panel looks at the values it depends on. Classic widgets and those of Nodes 2.0 announce changes in
// different ways, and widgets of a recipe come and go; looking is what works for all of them.
const LOOK_MS = 400;
// Space that the classic canvas leaves around a widget's element.
const CANVAS_MARGIN = 10;

export function registerExtension(name, panels) {
  const stylesheet = document.createElement("link");
  stylesheet.rel = "stylesheet";
  stylesheet.href = new URL("./panels.css", import.meta.url).href;
  document.head.append(stylesheet);
  app.registerExtension({
    name,
    nodeCreated(litegraphNode) {
      const Panel = panels[litegraphNode.comfyClass];
      if (Panel) attach(litegraphNode, (node) => new Panel(node));
    },
    // Outputs come back here when a workflow's tab is shown again or a job is opened from the history.
    onNodeOutputsUpdated(outputs) {
      for (const [id, output] of Object.entries(outputs)) {
        const shown = output?.[OUTPUT]?.[0];
        if (shown) nodeAt(id)?.widgets?.find((widget) => widget.name === OUTPUT)?.panel?.restore?.(shown);
      }
    },
  });
}

export function locale() {
  return app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
}

/** A node of the graph as a panel sees it. All that is listened to or repeated here ends with the node. */
class Node {
  #node;
  #ends = new AbortController();

  constructor(litegraphNode) {
    this.#node = litegraphNode;
    chain(litegraphNode, "onRemoved", () => this.#ends.abort());
  }

  get isGone() {
    return this.#ends.signal.aborted;
  }

  /** Values of the node's own widgets by name. */
  values() {
    return widgetValues(this.#node);
  }

  isConnected(input) {
    return this.#node.inputs?.some((slot) => slot.name === input && slot.link != null) ?? false;
  }

  /** What `pick(widget values)` gives for the nodes of a class beside this one, where they agree; else null. */
  shared(comfyClass, pick) {
    const found = (this.#node.graph?.nodes ?? []).filter((other) => other.comfyClass === comfyClass);
    const picked = new Map(found.map((other) => pick(widgetValues(other))).map((each) => [JSON.stringify(each), each]));
    return picked.size === 1 ? [...picked.values()][0] : null;
  }

  /** Call `act(event data)` for an event of the server that names this node. */
  on(event, act) {
    const listener = ({ detail }) => nodeAt(detail.node) === this.#node && act(detail);
    api.addEventListener(event, listener, { signal: this.#ends.signal });
  }

  /** Call `act()` every so often while the page is looked at. */
  every(milliseconds, act) {
    const timer = setInterval(() => document.hidden || act(), milliseconds);
    this.#ends.signal.addEventListener("abort", () => clearInterval(timer));
    return () => clearInterval(timer);
  }

  /** Ask `route` whenever what `question()` gives has changed, and `show` the answer; null asks nothing. */
  ask(route, question, show) {
    let asked, pending;
    const look = async () => {
      const now = JSON.stringify(question());
      if (now === asked) return;
      asked = now;
      pending?.abort();
      pending = new AbortController();
      const answer = now === "null" ? null : await post(route, now, pending.signal);
      if (asked === now && !this.isGone) show(answer);
    };
    this.every(LOOK_MS, look);
  }
}

/** A server without this route, or one that is gone, has no answer; neither is worth an alarm in the editor. */
async function post(route, body, signal) {
  try {
    const answer = await api.fetchApi(route, {
      method: "POST",
      body,
      headers: { "Content-Type": "application/json" },
      signal,
    });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

function attach(litegraphNode, makePanel) {
  const panel = makePanel(new Node(litegraphNode));
  const root = document.createElement("div");
  root.className = "wan-velocity";
  root.append(panel.element);
  const height = () => panel.element.offsetHeight + 2 * CANVAS_MARGIN;
  const widget = litegraphNode.addDOMWidget(OUTPUT, "wan_velocity_panel", root, {
    serialize: false,
    hideOnZoom: false,
    margin: CANVAS_MARGIN,
    getMinHeight: height,
    getMaxHeight: height,
  });
  widget.serialize = false; // the option keeps it out of the prompt, this one out of the saved workflow
  widget.panel = panel;
  const stopFitting = keepFitting(litegraphNode, panel.element);
  chain(litegraphNode, "onExecuted", (output) => {
    const shown = output?.[OUTPUT]?.[0];
    if (shown) panel.restore?.(shown);
  });
  chain(litegraphNode, "onRemoved", () => {
    stopFitting();
    panel.dispose?.();
  });
}

/**
 * Size the node anew whenever its panel has another height: the classic canvas does not by itself, Nodes 2.0 does. A node
 * that somebody made taller keeps its height.
 */
function keepFitting(litegraphNode, element) {
  let fitted = 0;
  const observer = new ResizeObserver(() => {
    if (window.LiteGraph?.vueNodesMode || !litegraphNode.graph || litegraphNode.flags?.collapsed) return;
    const [width, height] = litegraphNode.size;
    const needed = litegraphNode.computeSize()[1];
    if (height < needed || Math.abs(height - fitted) < 1) {
      litegraphNode.setSize([width, needed]);
      fitted = litegraphNode.size[1];
    }
    litegraphNode.graph.setDirtyCanvas?.(true, true);
  });
  observer.observe(element);
  return () => observer.disconnect();
}

function chain(object, name, act) {
  const before = object[name];
  object[name] = function (...given) {
    const result = before?.apply(this, given);
    act.apply(this, given);
    return result;
  };
}

function widgetValues(litegraphNode) {
  const kept = (litegraphNode.widgets ?? []).filter((widget) => widget.serialize !== false && widget.name !== OUTPUT);
  return Object.fromEntries(kept.map((widget) => [widget.name, widget.value]));
}

/** The node of an execution id: "5", or "12:7:5" for node 5 in subgraph node 7 in subgraph node 12. */
function nodeAt(executionId) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const id of String(executionId).split(":")) {
    node = graph?.getNodeById(Number(id)) ?? graph?.getNodeById(id);
    graph = node?.subgraph;
  }
  return node ?? null;
}
