/** The pack's door into ComfyUI's editor: which node gets which panel. Every panel has a file of its own. */

import { registerExtension } from "./comfy.js";
import { PlanPanel } from "./plan_panel.js";
import { ProfilePanel } from "./profile_panel.js";
import { SamplerPanel } from "./sampler_panel.js";

const PANELS = {
  WanVelocityPlan: PlanPanel,
  WanVelocityProfile: ProfilePanel,
  WanVelocitySampler: SamplerPanel,
};

registerExtension("wan_velocity.panels", PANELS);
