/** The profile node: what the chosen preset and settings mean on this machine, and what it refuses, before any run. */

import { decisionList, warningList } from "./decisions.js";
import { el, say } from "./dom.js";
import { duration, gib } from "./format.js";
import { label } from "./labels.js";
import { recipeOf } from "./recipe.js";

const ROUTE = "/wan_velocity/profile";

export class ProfilePanel {
  #machine = el("div", { class: "wv-machine" });
  #problem = el("p", { class: "wv-problem", role: "status" });
  #estimate = el("div", { class: "wv-facts" });
  #warnings = el("div");
  #choices = el("div");

  constructor(node) {
    this.node = node;
    this.element = el(
      "section",
      { class: "wv-panel wv-profile" },
      this.#problem,
      this.#estimate,
      this.#warnings,
      this.#choices,
      this.#machine,
    );
    this.#show(null);
    node.ask(ROUTE, () => this.#question(), (outlook) => this.#show(outlook));
  }

  /** The profile, and what of its graph it depends on: the model, the size and the recipe, where there is one of each. */
  #question() {
    return {
      widgets: this.node.values(),
      experts: this.node.shared("WanVelocityLoadExperts", (values) => values),
      size: this.node.shared("WanVelocityEmptyLatent", sizeOf) ?? this.node.shared("EmptyHunyuanLatentVideo", sizeOf),
      recipe: this.node.shared("WanVelocitySampler", recipeOf),
    };
  }

  #show(outlook) {
    this.element.hidden = outlook === null;
    if (outlook === null) return;
    const { machine, plan } = outlook;
    say(this.#problem, outlook.problem ?? "");
    if (!machine) return;
    const name = { name: machine.name, free: gib(machine.free_bytes), total: gib(machine.total_bytes) };
    const subject = { size: outlook.size, model: outlook.model };
    say(this.#machine, `${label("machine", name)}; ${label("for", subject)}`);
    this.#estimate.replaceChildren(...(plan && !outlook.problem ? estimates(outlook) : []));
    const decisions = plan?.decisions ?? [];
    const refused = decisions.filter((each) => each.degraded);
    this.#warnings.replaceChildren(warningList(refused.map(refusal)));
    this.#choices.replaceChildren(
      ...(plan
        ? [el("details", { class: "wv-report" }, el("summary", {}, label("choices.here")), decisionList(decisions))]
        : []),
    );
  }
}

function refusal({ topic, asked, chosen, reason, rejected }) {
  const why = reason || rejected.find((each) => each.name === asked)?.reason || "";
  return `${topic}: ${chosen} ${label("instead", { asked })}${why ? ` (${why})` : ""}`;
}

/** Our empty latent counts `frames`, the native one calls them `length`. */
function sizeOf(latent) {
  return { width: latent.width, height: latent.height, num_frames: latent.frames ?? latent.length };
}

/** Predicted time and memory. */
function estimates({ plan, estimate }) {
  const found = [label("estimate.memory", { bytes: gib(plan.peak_bytes) })];
  if (estimate) found.unshift(label("estimate.time", { time: duration(estimate.seconds) }));
  return found.map((text) => el("span", { class: "wv-fact", title: label("estimate") }, text));
}
