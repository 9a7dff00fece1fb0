"""Wan 2.2 mixture-of-experts video models: plan, build, sample, decode. Knows nothing of ComfyUI.

    from wan_core import open_pipeline

The public names below are imported when they are first used, so that `python -m wan_core --help` loads no torch.
"""

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoint.lora_pair import LoraChoice, choose_lora
    from .pipeline import RunPlan, WanPipeline, open_pipeline
    from .profiles import PRESETS, OptimizationProfile, preset
    from .recipes import RECIPES, Recipe, SampleRequest, VideoSize, recipe
    from .report import Report
    from .sample import Conditioning, SampleResult

__all__ = [
    "PRESETS",
    "RECIPES",
    "Conditioning",
    "LoraChoice",
    "OptimizationProfile",
    "Recipe",
    "Report",
    "RunPlan",
    "SampleRequest",
    "SampleResult",
    "VideoSize",
    "WanPipeline",
    "choose_lora",
    "open_pipeline",
    "preset",
    "recipe",
]

_HOMES = MappingProxyType(
    {
        "checkpoint.lora_pair": ("LoraChoice", "choose_lora"),
        "pipeline": ("RunPlan", "WanPipeline", "open_pipeline"),
        "profiles": ("PRESETS", "OptimizationProfile", "preset"),
        "recipes": ("RECIPES", "Recipe", "SampleRequest", "VideoSize", "recipe"),
        "report": ("Report",),
        "sample": ("Conditioning", "SampleResult"),
    }
)


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
