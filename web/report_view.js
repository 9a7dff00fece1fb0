/** The report of a finished run: where the time went, how fast each expert was, memory, what ran and why. */

import { decisionList } from "./decisions.js";
import { el } from "./dom.js";
import { duration, gib, pace } from "./format.js";
import { label } from "./labels.js";

// Phases that are counted within another one have this in their names.
const WITHIN = "(within ";

/** A closed `<details>`; `report` is what the node returned. */
export function reportView(report) {
  return el(
    "details",
    { class: "wv-report" },
    el("summary", {}, el("span", {}, label("report")), copyButton(report.text)),
    el("h4", {}, label("time")),
    timeBar(report),
    rows(times(report)),
    el("h4", {}, label("speed")),
    rows(Object.entries(report.speed).map(([expert, speed]) => [label(`expert.${expert}`), speedText(report, expert, speed)])),
    el("h4", {}, label("peak")),
    rows(Object.entries(report.peak_bytes).map(([name, bytes]) => [name, memoryText(report, name, bytes)])),
    el("h4", {}, label("choices")),
    decisionList(report.decisions),
  );
}

/** Where the time went, as one bar; sampling in the colors of the experts. */
function timeBar({ seconds, steps }) {
  const total = (expert) =>
    steps.filter((step) => step.expert === expert).reduce((sum, step) => sum + step.seconds, 0);
  const parts = Object.entries(seconds)
    .filter(([name]) => !name.includes(WITHIN))
    .flatMap(([name, value]) => {
      if (name !== "sample") return [[name, value, name]];
      return ["high", "low"].map((expert) => [label(`expert.${expert}`), total(expert), expert]);
    })
    .filter(([, value]) => value > 0);
  const bars = parts.map(([name, value, kind]) =>
    el("span", { "data-kind": kind, style: `flex-grow: ${value}`, title: `${name}: ${duration(value)}` }),
  );
  const text = parts.map(([name, value]) => `${name} ${duration(value)}`).join(", ");
  return el("div", { class: "wv-times", role: "img", "aria-label": text }, bars);
}

function times({ seconds, switch_cost: beyond }) {
  const phases = Object.entries(seconds).map(([name, value]) => [name, duration(value)]);
  return beyond == null ? phases : [...phases, [label("switch"), label("beyond", { time: signed(beyond) })]];
}

function speedText({ steps }, expert, speed) {
  const count = steps.filter((step) => step.expert === expert).length;
  return label("speed.line", {
    steps: count,
    pace: pace(speed.seconds_per_step),
    tflops: speed.tflops.toPrecision(3),
  });
}

function memoryText({ predicted_bytes: predicted }, name, bytes) {
  const planned = predicted?.[name];
  return planned == null ? gib(bytes) : `${gib(bytes)}, ${label("predicted", { bytes: gib(planned) })}`;
}

function signed(seconds) {
  return `${seconds < 0 ? "\u2212" : "+"}${duration(Math.abs(seconds))}`;
}

export function rows(pairs) {
  return el(
    "dl",
    { class: "wv-rows" },
    pairs.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]).flat(),
  );
}

/** Copies `text` and says so; it stands in a summary, which it must not open. */
export function copyButton(text) {
  const button = el("button", { type: "button", class: "wv-copy" }, label("copy"));
  button.addEventListener("click", async (event) => {
    event.preventDefault();
    event.stopPropagation();
    await copy(text);
    button.textContent = label("copied");
    setTimeout(() => (button.textContent = label("copy")), 1500);
  });
  return button;
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Without HTTPS, as on another machine of the studio, there is no clipboard but this one.
  const area = el("textarea", { class: "wv-offscreen" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
