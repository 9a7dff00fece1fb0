/**
 * The sampler's live view. Before a run: the noise levels of the chosen recipe and which expert runs which part. During
 * it: phase, step, expert, pace, time left, memory, kernels, warnings. After it: the report.
 *
 * Everything shown is a function of the last state that the server sent, so a page that was loaded again in the middle
 * of a run is complete with the next event. Between events only the clock goes on.
 */

import { warningList } from "./decisions.js";
import { el, say } from "./dom.js";
import { countdown, duration, gib, megabytes, pace } from "./format.js";
import { label, splitText } from "./labels.js";
import { recipeOf } from "./recipe.js";
import { reportView } from "./report_view.js";
import { SigmaCurve } from "./sigma_curve.js";

const EVENT = "wan_velocity.live";
const ROUTE = "/wan_velocity/recipe";
// Of all that was decided, what an artist may want to know while it runs; the report has the rest.
const SHOWN_KERNELS = ["self attention", "precision", "compile", "placement"];
const RANGE = ["denoise", "start_step", "end_step"];
const OVER = ["done", "stopped", "failed"];
// A step that takes longer than expected stays just short of done.
const ALMOST = 0.97;

export class SamplerPanel {
  #curve = new SigmaCurve();
  #phase = el("span", { class: "wv-phase", role: "status" });
  #step = el("span", { class: "wv-step" });
  #left = el("span", { class: "wv-left", title: label("left.means") });
  #bar = el("div", { class: "wv-bar", role: "progressbar", "aria-valuemin": "0" });
  #split = el("div", { class: "wv-split" });
  #facts = el("div", { class: "wv-facts" });
  #warnings = el("div");
  #report = el("div");
  #stopClock = () => {};
  #state = null;
  #received = 0;
  // Of the last step that was timed: an expert that has only begun has none of its own.
  #pace = null;

  constructor(node) {
    this.node = node;
    this.element = el(
      "section",
      { class: "wv-panel wv-sampler" },
      el("header", {}, this.#phase, this.#step, this.#left),
      this.#curve.element,
      this.#bar,
      this.#split,
      this.#facts,
      this.#warnings,
      this.#report,
    );
    this.#idle(null);
    node.on(EVENT, (state) => this.show(state));
    node.ask(ROUTE, () => this.#question(), (outlook) => this.#preview(outlook));
  }

  dispose() {
    this.#stopClock();
  }

  /** What a finished run left: also of a node whose result is still good and was not run again. */
  restore({ state, report }) {
    this.show(state);
    this.#report.replaceChildren(reportView(report));
    this.#warnings.replaceChildren(warningList([...new Set([...state.warnings, ...report.warnings])]));
  }

  show(state) {
    const begins = this.#state === null || isOver(this.#state);
    this.#state = state;
    this.#received = performance.now();
    this.#pace = state.seconds_per_step ?? this.#pace;
    if (begins && !isOver(state)) this.#begin();
    this.element.dataset.phase = state.phase;
    this.element.dataset.expert = state.expert ?? "";
    if (state.plan) this.#plan(state.plan);
    say(this.#phase, state.phase === "sample" ? label(`expert.${state.expert}`) : label(`phase.${state.phase}`));
    this.#facts.replaceChildren(...facts(state));
    this.#warnings.replaceChildren(warningList(state.warnings));
    this.#tick();
    if (isOver(state)) this.#stopClock();
  }

  #begin() {
    this.#pace = null;
    this.#report.replaceChildren();
    this.#stopClock();
    this.#stopClock = this.node.every(500, () => this.#tick());
  }

  #plan(plan) {
    this.#curve.draw(plan);
    say(this.#split, splitText(plan));
    this.#bar.hidden = this.#curve.element.hidden = false;
  }

  /** All that changes with the clock alone. */
  #tick() {
    const state = this.#state;
    const waited = isOver(state) ? 0 : (performance.now() - this.#received) / 1000;
    const all = state.plan?.split.length ?? 0;
    const sampling = ["sample", "compile"].includes(state.phase);
    const within = sampling && this.#pace ? Math.min(waited / this.#pace, ALMOST) : 0;
    const steps = Math.min(state.num_done + within, all);
    if (all) {
      this.#curve.mark(state.phase === "done" ? all : steps);
      fillBar(this.#bar, state.plan.split, steps);
      say(this.#step, isOver(state) ? "" : label("step", { n: Math.min(state.num_done + 1, all), m: all }));
    }
    if (isOver(state)) say(this.#left, label("took", { time: duration(state.seconds) }));
    else if (state.loading && state.loading.done < state.loading.total) say(this.#left, loadingText(state.loading));
    else if (state.seconds_left == null) say(this.#left, duration(state.seconds + waited));
    else say(this.#left, label("left", { time: countdown(state.seconds_left - waited) }));
  }

  /** What the server is asked before a run; null where the recipe does not say what will run. */
  #question() {
    if (this.node.isConnected("sigmas")) return null;
    const values = this.node.values();
    const recipe = recipeOf(values);
    if (!recipe) return null;
    return { recipe, request: Object.fromEntries(RANGE.map((name) => [name, values[name]])) };
  }

  /** What is chosen now, unless that is what runs or what the report is about. */
  #preview(outlook) {
    if (this.#state && (!isOver(this.#state) || !outlook || isSameSchedule(outlook, this.#state.plan))) return;
    this.#idle(outlook);
  }

  #idle(outlook) {
    this.#state = null;
    this.element.dataset.phase = "idle";
    this.element.dataset.expert = "";
    for (const each of [this.#phase, this.#step, this.#left]) say(each, "");
    this.#bar.hidden = true;
    this.#facts.replaceChildren();
    this.#report.replaceChildren();
    this.#curve.element.hidden = !outlook?.sigmas;
    say(this.#split, outlook?.sigmas ? splitText(outlook) : "");
    if (outlook?.sigmas) this.#curve.draw(outlook);
    this.#curve.mark(null);
    this.#warnings.replaceChildren(warningList(outlook?.problem ? [outlook.problem] : (outlook?.warnings ?? [])));
  }
}

function isOver(state) {
  return OVER.includes(state.phase);
}

function isSameSchedule(one, other) {
  const key = (schedule) => JSON.stringify([schedule?.sigmas, schedule?.split]);
  return key(one) === key(other);
}

function loadingText({ what, done, total, bytes_per_second: rate }) {
  const values = { what, done: gib(done), total: gib(total) };
  return rate == null ? label("loading", values) : label("loading.rate", { ...values, rate: megabytes(rate) });
}

function facts(state) {
  const found = [];
  if (state.seconds_per_step && state.num_done) found.push(fact(label("pace", { pace: pace(state.seconds_per_step) })));
  if (state.memory) {
    const { used, peak, total } = state.memory;
    found.push(fact(label("memory", { used: gib(used), total: gib(total), peak: gib(peak) })));
  }
  for (const { topic, chosen, quality, degraded } of state.plan?.kernels ?? []) {
    if (!SHOWN_KERNELS.includes(topic) || chosen === "off") continue;
    const name = label(`kernel.${topic}`, { chosen });
    found.push(fact(quality === "exact" ? name : `${name} (${quality})`, topic, degraded));
  }
  return found;
}

function fact(text, title, degraded = false) {
  return el("span", { class: `wv-fact${degraded ? " wv-degraded" : ""}`, title }, text);
}

/** One segment per expert, as wide as its steps are many. */
function fillBar(bar, split, steps) {
  const high = split.filter((expert) => expert === "high").length;
  const segments = [["high", high, 0], ["low", split.length - high, high]].filter(([, count]) => count);
  if (bar.childElementCount !== segments.length) {
    bar.replaceChildren(...segments.map(([expert]) => el("span", { "data-expert": expert }, el("span"))));
  }
  segments.forEach(([, count, from], index) => {
    const share = Math.min(Math.max((steps - from) / count, 0), 1);
    bar.children[index].style.flexGrow = count;
    bar.children[index].firstChild.style.width = `${100 * share}%`;
  });
  bar.setAttribute("aria-valuemax", split.length);
  bar.setAttribute("aria-valuenow", Math.floor(steps));
}
