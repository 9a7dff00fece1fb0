/** Wan Plan: the expert split, predicted time and memory, warnings, and every choice with its reason. */

import { decisionList, warningList } from "./decisions.js";
import { el, say } from "./dom.js";
import { duration, gib } from "./format.js";
import { label, splitText } from "./labels.js";
import { copyButton, rows } from "./report_view.js";
import { SigmaCurve } from "./sigma_curve.js";

export class PlanPanel {
  #curve = new SigmaCurve();
  #split = el("div", { class: "wv-split" });
  #body = el("div");

  constructor() {
    this.element = el("section", { class: "wv-panel wv-plan" }, this.#curve.element, this.#split, this.#body);
    this.#curve.element.hidden = true;
    say(this.#split, label("plan.empty"));
  }

  restore(plan) {
    this.#curve.element.hidden = false;
    this.#curve.draw(plan);
    say(this.#split, splitText(plan));
    const decisions = [...plan.parts.flatMap((part) => part.decisions), ...plan.decisions];
    this.#body.replaceChildren(
      el("div", { class: "wv-facts" }, facts(plan)),
      warningList(plan.warnings),
      el("h4", {}, label("time")),
      rows(plan.estimate.parts.filter((part) => matters(part, plan.estimate)).map(timeRow)),
      el("h4", {}, label("peak")),
      rows(phases(plan).map(memoryRow)),
      el(
        "details",
        { class: "wv-report" },
        el("summary", {}, el("span", {}, label("choices.here")), copyButton(plan.text)),
        decisionList(decisions),
      ),
    );
  }
}

function facts(plan) {
  const { estimate } = plan;
  const basis = estimate.runs ? label("estimate.learned", { runs: estimate.runs }) : label("estimate");
  const peak = Math.max(...phases(plan).map((phase) => phase.peak_bytes));
  return [
    el("span", { class: "wv-fact" }, label("estimate.all", { time: duration(estimate.seconds) })),
    el("span", { class: "wv-fact" }, label("estimate.memory", { bytes: gib(peak) })),
    el("span", { class: "wv-dim" }, basis),
  ];
}

function phases(plan) {
  return [...plan.parts.flatMap((part) => part.phases), ...plan.phases];
}

/** Parts that take less than a hundredth of the time are left out. */
function matters({ seconds, count }, estimate) {
  return seconds * count >= 0.01 * estimate.seconds;
}

function timeRow({ name, seconds, count }) {
  return [name, count === 1 ? duration(seconds) : `${count} \u00d7 ${duration(seconds)}`];
}

function memoryRow({ name, peak_bytes: peak, host_bytes: host }) {
  return [name, host ? `${gib(peak)}, ${label("on.host", { bytes: gib(host) })}` : gib(peak)];
}
