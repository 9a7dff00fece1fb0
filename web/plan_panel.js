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
      rows(plan.estimate.parts.map(partRow)),
      el(
        "details",
        { class: "wv-report" },
        el("summary", {}, el("span", {}, label("choices.here")), copyButton(plan.text)),
        decisionList(decisions),
      ),
    );
  }
}

function facts({ estimate, parts, peak_bytes: sampling }) {
  const basis = estimate.runs ? label("estimate.learned", { runs: estimate.runs }) : label("estimate");
  const peak = Math.max(sampling, ...parts.map((part) => part.peak_bytes));
  return [
    el("span", { class: "wv-fact", title: basis }, label("estimate.all", { time: duration(estimate.seconds) })),
    el("span", { class: "wv-fact", title: label("estimate") }, label("estimate.memory", { bytes: gib(peak) })),
    el("span", { class: "wv-dim" }, basis),
  ];
}

function partRow({ name, seconds, count }) {
  return [name, count === 1 ? duration(seconds) : `${count} \u00d7 ${duration(seconds)}`];
}
