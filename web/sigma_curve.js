/**
 * The noise levels of a run as a curve over its steps: which expert runs which part, where they switch, what is done.
 *
 * Drawn once for a schedule; progress only moves a clip and a dot. The drawing is stretched to the node's width, so all
 * that must keep its shape (dot, words) is laid over it.
 */

import { el, svg } from "./dom.js";
import { label, splitText } from "./labels.js";

const WIDTH = 1000;
const HEIGHT = 100;
// Parts narrower than this share of the width have no room for a word.
const ROOM_FOR_WORDS = 0.22;

export class SigmaCurve {
  element = el("div", { class: "wv-curve", role: "img" });
  #drawn = "";
  #done = null;
  #dot = null;
  #schedule = null;

  /** schedule: `sigmas` (one more than the steps), `split` (expert of each step), `boundary`. */
  draw(schedule) {
    const key = JSON.stringify([schedule.sigmas, schedule.split, schedule.boundary, schedule.num_steps]);
    if (key === this.#drawn) return;
    this.#drawn = key;
    this.#schedule = schedule;
    this.#done = parts(schedule, "wv-done");
    this.#dot = el("span", { class: "wv-dot" });
    this.element.replaceChildren(parts(schedule, "wv-ahead"), this.#done, ...words(schedule), this.#dot);
    const text = label("curve", { steps: schedule.split.length, split: splitText(schedule) });
    this.element.setAttribute("aria-label", text);
    this.element.title = splitText(schedule);
    this.mark(null);
  }

  /** steps: how many are done, with the part of the running one; null where nothing runs. */
  mark(steps) {
    if (!this.#schedule) return;
    const { sigmas, split } = this.#schedule;
    const share = (steps ?? 0) / split.length;
    this.#done.style.clipPath = `inset(0 ${100 * (1 - share)}% 0 0)`;
    this.#dot.hidden = steps == null;
    if (steps == null) return;
    const before = Math.min(Math.floor(steps), split.length - 1);
    const sigma = sigmas[before] + (sigmas[before + 1] - sigmas[before]) * (steps - before);
    this.#dot.dataset.expert = split[before];
    this.#dot.style.left = `${100 * share}%`;
    this.#dot.style.top = `${100 * (1 - sigma / sigmas[0])}%`;
  }
}

/** Area and line of each expert's part. */
function parts({ sigmas, split }, className) {
  const point = (index) => `${(WIDTH * index) / split.length},${HEIGHT * (1 - sigmas[index] / sigmas[0])}`;
  const drawn = spans(split).map(({ expert, from, to }) => {
    const points = Array.from({ length: to - from + 1 }, (_, offset) => point(from + offset));
    const x = (index) => (WIDTH * index) / split.length;
    return svg(
      "g",
      { "data-expert": expert },
      svg("polygon", { points: `${x(from)},${HEIGHT} ${points.join(" ")} ${x(to)},${HEIGHT}` }),
      svg("polyline", { points: points.join(" ") }),
    );
  });
  return svg(
    "svg",
    { class: className, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    drawn,
  );
}

/** Each expert's name in its part, and the switch between them. */
function words({ split, boundary }) {
  return spans(split).flatMap(({ expert, from, to }) => {
    const [left, width] = [from / split.length, (to - from) / split.length];
    const at = `left: ${100 * left}%; width: ${100 * width}%`;
    const name = el("span", { class: "wv-part", "data-expert": expert, style: at }, label(`expert.${expert}`));
    const line = el("span", { class: "wv-switch", style: `left: ${100 * left}%` });
    const timestep = el("span", { class: "wv-switch-at" }, String(Number((boundary * 1000).toFixed(1))));
    line.append(timestep);
    return [width >= ROOM_FOR_WORDS && name, from > 0 && line].filter(Boolean);
  });
}

/** The runs of equal experts: `{ expert, from, to }`, half open. */
export function spans(split) {
  const found = [];
  split.forEach((expert, index) => {
    const last = found.at(-1);
    if (last?.expert === expert) last.to = index + 1;
    else found.push({ expert, from: index, to: index + 1 });
  });
  return found;
}
