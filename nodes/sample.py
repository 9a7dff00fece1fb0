"""Wan MoE Sampler: both experts, one solver running through the switch, native LATENT in and out."""

from collections.abc import Mapping

from comfy_api.latest import io
from torch import Tensor

from ..wan_core.errors import InputError
from ..wan_core.plan import Workload, resolve
from ..wan_core.profiles import OptimizationProfile, preset
from ..wan_core.recipes import RECIPES, SOLVERS, Recipe, SampleRequest, recipe
from ..wan_core.report import Report
from ..wan_core.sample import Conditioning
from ..wan_core.storage import storable
from . import host, live, native, saved_runs
from .handles import ExpertsHandle
from .io_types import WanExperts, WanProfile
from .run import SamplerRun

CUSTOM = "custom"
_OFFICIAL = recipe("official")

# Widget id (permanent) of the custom recipe -> field of `Recipe`.
_CUSTOM_FIELDS = {
    "steps": "num_steps",
    "shift": "shift",
    "solver": "solver",
    "guidance_high": "guidance_high",
    "guidance_low": "guidance_low",
    "boundary": "boundary",
}


class MoeSampler(io.ComfyNode):
    """Sample a Wan 2.2 mixture-of-experts model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanVelocitySampler",
            display_name="Wan MoE Sampler",
            category="Wan Velocity",
            description="Samples with both experts. The high-noise expert runs while timestep >= boundary * 1000, then "
            "the low-noise one; the solver keeps its history through the switch.",
            search_aliases=["wan sampler", "ksampler wan", "wan 2.2 sampler", "moe ksampler", "high low noise"],
            inputs=[
                WanExperts.Input("experts", tooltip="Both experts, from Load Wan Experts."),
                io.Conditioning.Input("positive", tooltip=_CONDITIONING_TOOLTIP),
                io.Conditioning.Input("negative", tooltip=f"{_CONDITIONING_TOOLTIP} Not used where guidance is 1."),
                io.Latent.Input(
                    "latent",
                    tooltip="Video latent (batch, 16, frames, height / 8, width / 8) in raw VAE space, from Wan Empty "
                    "Latent, a native empty Hunyuan latent or a VAE encode.",
                ),
                WanProfile.Input("profile", optional=True, tooltip="How to run. Not connected: the preset auto."),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Noise levels that replace the recipe's steps and shift: strictly descending within 1 to "
                    "0. Solver, guidance and boundary stay the recipe's.",
                ),
                recipe_input(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Seed of the noise. The same seed, machine, profile and recipe give the same video.",
                ),
                io.Float.Input(
                    "denoise",
                    optional=True,
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the schedule that is run on the given latent, above 0 and up to 1; below 1 for "
                    "video to video. An empty latent wants 1.",
                ),
                *_expert_inputs(),
                *_resume_inputs(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="In raw VAE space, float32."),
                io.String.Output(
                    "report", tooltip="What ran and why: choices, fallbacks, seconds per step, TFLOP/s, memory peaks."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls,
        recipe: Mapping[str, object] | None = None,
        denoise: float | None = None,
        start_step: int | None = None,
        end_step: int | None = None,
        saved_run: str | None = None,
    ) -> bool | str:
        """Refuse before anything runs what makes no sense whatever is connected; `None` is a connected value."""
        given = {"denoise": denoise, "start_step": start_step, "end_step": end_step}
        try:
            if recipe is None or recipe["recipe"] not in (*RECIPES, CUSTOM):
                raise InputError(f"recipe is missing or unknown, expected one of {', '.join((*RECIPES, CUSTOM))}")
            SampleRequest(recipe=_OFFICIAL, **{name: value for name, value in given.items() if value is not None})
        except InputError as error:
            return str(error)
        return saved_runs.problem(saved_run) or True

    @classmethod
    def execute(
        cls,
        experts: ExpertsHandle,
        positive: list,
        negative: list,
        latent: dict[str, Tensor],
        recipe: Mapping[str, object],
        profile: OptimizationProfile | None = None,
        sigmas: Tensor | None = None,
        resume: str = saved_runs.AUTOMATIC,
        saved_run: str = "",
        **request: int | float | str,
    ) -> io.NodeOutput:
        """`request` holds the widgets that are fields of `SampleRequest` under the same names, which checks them."""
        samples = native.latent_samples(latent)
        native.refuse_noise_mask(latent)
        conditioning = Conditioning(
            positive=native.embeddings("positive", positive), negative=native.embeddings("negative", negative)
        )
        levels = None if sigmas is None else tuple(sigmas.tolist())
        workload = Workload(
            request=SampleRequest(recipe=chosen_recipe(recipe), sigmas=levels, **request),
            latent_size=tuple(samples.shape[2:]),
            batch=samples.shape[0],
            loras=experts.pair.loras,
            stored=storable(experts.pair),
        )
        hardware, report = host.hardware(copies=experts.bytes_on_host), Report()
        profile = profile or preset("auto")
        choice = saved_runs.Choice(resume=resume, saved_run=saved_run)
        with host.interruptible(), live.SamplerHooks(cls.hidden.unique_id, hardware) as hooks:
            plan = resolve(profile, hardware, experts.pair.spec, workload, current=experts.placement)
            result, journal = SamplerRun(experts, conditioning, samples, hooks, report).sample(profile, plan, choice)
        shown = {"state": hooks.state.to_dict(), "report": {**report.to_dict(), "text": report.to_text()}}
        marked = saved_runs.marked(result.latent.to(host.result_device()), journal)
        return io.NodeOutput(marked, report.to_text(), ui={"wan_velocity": [shown]})


_CONDITIONING_TOOLTIP = (
    "One text embedding (1, 512, width of the experts' text input), from Wan Text Encode or a native text encode whose "
    'CLIPLoader has the type "wan".'
)


def recipe_input() -> io.DynamicCombo.Input:
    """The recipe widget: a named recipe, or "custom" with every value shown; the official recipe comes first."""
    named = [io.DynamicCombo.Option(name, []) for name in RECIPES]
    return io.DynamicCombo.Input(
        "recipe",
        options=[*named, io.DynamicCombo.Option(CUSTOM, _custom_inputs())],
        tooltip="What to make. " + " ".join(f"{each.name}: {_summary(each)}." for each in RECIPES.values()),
    )


def chosen_recipe(widgets: Mapping[str, object]) -> Recipe:
    """The recipe that the widgets of `recipe_input` stand for."""
    if widgets["recipe"] != CUSTOM:
        return recipe(widgets["recipe"])
    return _OFFICIAL.with_changes(**{field: widgets[widget] for widget, field in _CUSTOM_FIELDS.items()})


def _summary(each: Recipe) -> str:
    return (
        f"{each.num_steps} steps, shift {each.shift:g}, {each.solver}, guidance "
        f"{each.guidance_high:g}/{each.guidance_low:g}"
    )


def _custom_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "steps", default=_OFFICIAL.num_steps, min=1, max=1000, tooltip="Solver steps, both experts together."
        ),
        io.Float.Input(
            "shift",
            default=_OFFICIAL.shift,
            min=0.01,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Moves steps to high noise: sigma' = shift * sigma / (1 + (shift - 1) * sigma). Official: 12.",
        ),
        io.Combo.Input(
            "solver", options=list(SOLVERS), default=_OFFICIAL.solver, tooltip="unipc is the reference's default."
        ),
        io.Float.Input(
            "guidance_high",
            default=_OFFICIAL.guidance_high,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Guidance of the high-noise expert; 1 skips the negative pass. Official: 4.",
        ),
        io.Float.Input(
            "guidance_low",
            default=_OFFICIAL.guidance_low,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Guidance of the low-noise expert; 1 skips the negative pass. Official: 3.",
        ),
        io.Float.Input(
            "boundary",
            default=_OFFICIAL.boundary,
            min=0.0,
            max=1.0,
            step=0.005,
            round=0.001,
            tooltip="The high-noise expert runs while timestep >= boundary * 1000. Official: 0.875.",
            advanced=True,
        ),
    ]


def _resume_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "resume",
            options=[saved_runs.AUTOMATIC, saved_runs.NEVER],
            optional=True,
            default=saved_runs.AUTOMATIC,
            tooltip="automatic goes on with an earlier run of the same inputs that did not end: interrupted, out of "
            "memory, crashed. never starts anew.",
            advanced=True,
        ),
        io.String.Input(
            "saved_run",
            optional=True,
            default="",
            tooltip="Name of one saved run to go on with, for instance from another machine; it must be one of these "
            "inputs. Empty: the one that belongs to them.",
            advanced=True,
        ),
    ]


def _expert_inputs() -> list[io.Input]:
    """Fields of `SampleRequest` for chained graphs and exact comparisons; graphs written by hand may leave them out."""
    return [
        io.Combo.Input(
            "noise_device",
            options=["device", "cpu"],
            default="device",
            tooltip="Where the noise is drawn: on the computing device as the reference does, or on the CPU as native "
            "samplers do. The numbers differ.",
            optional=True,
            advanced=True,
        ),
        io.Int.Input(
            "start_step",
            default=0,
            min=0,
            max=10000,
            tooltip="First step that is run, counted from 0.",
            optional=True,
            advanced=True,
        ),
        io.Int.Input(
            "end_step",
            default=10000,
            min=1,
            max=10000,
            tooltip="Step before which to stop; past the end means all steps.",
            optional=True,
            advanced=True,
        ),
        io.Combo.Input(
            "add_noise",
            options=["on", "off"],
            default="on",
            tooltip="off where the latent comes from another sampler that left its noise in.",
            optional=True,
            advanced=True,
        ),
        io.Combo.Input(
            "leftover_noise",
            options=["remove", "keep"],
            default="remove",
            tooltip="keep hands the noise of end_step on to another sampler, ours or native.",
            optional=True,
            advanced=True,
        ),
    ]
