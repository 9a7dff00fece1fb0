"""Wan LoRA Pair: a LoRA on both experts, each with its own file and strength. Chains: one node after the other."""

from comfy_api.latest import io

from ..wan_core.checkpoint.lora import open_lora
from ..wan_core.checkpoint.lora_pair import Partner, choose_lora
from ..wan_core.checkpoint.partner import find_partner
from ..wan_core.errors import InputError
from . import host
from .handles import ExpertsHandle
from .io_types import WanExperts

BY_NAME = "found by name"
NONE = "none"


class LoraPair(io.ComfyNode):
    """Put a LoRA on the experts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = host.model_choices("loras")
        return io.Schema(
            node_id="WanVelocityLora",
            display_name="Wan LoRA Pair",
            category="Wan Velocity",
            description="Puts a LoRA on both experts: its high-noise and its low-noise file, or one file for both, in "
            "any of the usual formats. The sampler's report says what was applied and what was ignored. Another "
            "strength reloads nothing.",
            search_aliases=["lora loader", "load lora", "lightning lora", "high low lora", "wan lora"],
            inputs=[
                WanExperts.Input("experts", tooltip="Both experts, from Load Wan Experts or another Wan LoRA Pair."),
                io.Combo.Input(
                    "lora",
                    options=files,
                    tooltip="A safetensors file in loras, for either expert or for both.",
                ),
                io.Combo.Input(
                    "partner",
                    optional=True,
                    options=[BY_NAME, NONE, *files],
                    default=BY_NAME,
                    tooltip=f"The file for the other expert. {BY_NAME}: the one whose name differs in high and low "
                    f"only; a file that does not say which expert it is for goes on both. {NONE}: where the file says "
                    "which expert it is for, the other one runs without.",
                ),
                _strength("strength_high", "high-noise"),
                _strength("strength_low", "low-noise"),
            ],
            outputs=[WanExperts.Output(display_name="experts", tooltip="Both experts with this LoRA on them.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, lora: str | None = None, partner: str | None = None) -> bool | str:
        """Refuse before anything runs what is no LoRA; whether it fits the experts is known once they are."""
        try:
            files = [name for name in (lora, partner) if name not in (None, BY_NAME, NONE)]
            for name in files:
                open_lora(host.model_path("loras", name))
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, lora: str, partner: str = BY_NAME) -> str:
        if partner == BY_NAME:
            found = find_partner(host.model_path("loras", lora))
            return host.stamps("loras", [lora]) + (repr(found.stat().st_mtime_ns) if found else "")
        return host.stamps("loras", [lora] if partner == NONE else [lora, partner])

    @classmethod
    def execute(
        cls,
        experts: ExpertsHandle,
        lora: str,
        partner: str = BY_NAME,
        strength_high: float = 1.0,
        strength_low: float = 1.0,
    ) -> io.NodeOutput:
        choice = choose_lora(
            host.model_path("loras", lora),
            experts.pair.spec,
            partner=_partner(partner),
            strength_high=strength_high,
            strength_low=strength_low,
        )
        if choice.notes:
            host.say("\n".join(choice.notes), cls.hidden.unique_id)
        return io.NodeOutput(experts.with_lora(choice))


def _partner(choice: str) -> Partner:
    by_hand: dict[str, Partner] = {BY_NAME: "by name", NONE: "none"}
    return by_hand[choice] if choice in by_hand else host.model_path("loras", choice)


def _strength(name: str, expert: str) -> io.Float.Input:
    return io.Float.Input(
        name,
        optional=True,
        default=1.0,
        min=-100.0,
        max=100.0,
        step=0.05,
        round=0.001,
        tooltip=f"How much it counts on the {expert} expert; 1 is as trained, 0 as without.",
    )
