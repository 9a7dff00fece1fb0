/** Choices with their reasons, and what was not chosen; what is not as asked for stands out. */

import { el } from "./dom.js";
import { label } from "./labels.js";

export function decisionList(decisions) {
  return el("dl", { class: "wv-decisions" }, decisions.flatMap(decisionRow));
}

function decisionRow(decision) {
  return [
    el("dt", {}, decision.topic),
    el(
      "dd",
      { class: decision.degraded && "wv-degraded" },
      el("b", {}, decision.chosen),
      decision.degraded && ` ${label("instead", { asked: decision.asked })}`,
      decision.quality !== "exact" && el("span", { class: "wv-quality" }, decision.quality),
      decision.reason && el("span", { class: "wv-reason" }, decision.reason),
      rejections(decision.rejected),
    ),
  ];
}

/** What was not chosen, grouped by the reason. */
function rejections(rejected = []) {
  const byReason = Map.groupBy ? Map.groupBy(rejected, (each) => each.reason) : grouped(rejected);
  return [...byReason].map(([reason, all]) =>
    el(
      "span",
      { class: "wv-rejected" },
      `${label("not.chosen")}: ${all.map((each) => each.name).join(", ")} (${reason})`,
    ),
  );
}

/** `Map.groupBy` for browsers of before 2024. */
function grouped(rejected) {
  const groups = new Map();
  for (const each of rejected) groups.set(each.reason, [...(groups.get(each.reason) ?? []), each]);
  return groups;
}

export function warningList(warnings) {
  return el(
    "ul",
    { class: "wv-warnings", role: "status" },
    warnings.map((text) => el("li", {}, text)),
  );
}
