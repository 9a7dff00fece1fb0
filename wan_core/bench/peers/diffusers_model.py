"""The transformer of the installed diffusers: bfloat16 but for what it keeps in float32, two passes, its own order.

Options: `cudnn` selects its cuDNN attention backend; `compile` compiles its repeated blocks, as its manual advises.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from ...checkpoint.keys import TRANSFORMER_DIFFUSERS
from ..breakdown import place
from ..operations import GUIDANCE
from ..random_weights import fill_module
from ..task import Facts, Part, Prepared, Task, dtype_name
from .checkout import importing

WHAT = "diffusers"
OPTIONS = ("cudnn", "compile")


class DiffusersCandidate:
    """diffusers as it is installed beside us."""

    is_peer = True
    parts: tuple[Part, ...] = ("step",)

    def __init__(self, name: str, root: Path | None, options: frozenset[str]) -> None:
        assert root is None, "the installed one is measured"
        self.name = name
        self._uses_cudnn = "cudnn" in options
        self._compiles = "compile" in options

    def prepare(self, part: Part, task: Task) -> Prepared:
        with importing(WHAT):
            diffusers = import_module("diffusers")
            model = self._model(task, diffusers)
        dtype = _dtype(task)
        latent, contexts = task.latent().to(dtype), task.padded_contexts().to(dtype)
        timestep = torch.tensor([int(task.timestep)], device=task.device)

        def run() -> Tensor:
            with torch.no_grad(), place(GUIDANCE):
                cond, uncond = (
                    model(latent, timestep, context[None], return_dict=False)[0].float() for context in contexts
                )
                return uncond + task.guidance * (cond - uncond)

        name = dtype_name(dtype)
        kernel = "its cuDNN backend" if self._uses_cudnn else "its default backend"
        mode = "blocks compiled" if self._compiles else "eager"
        return Prepared(
            run=run,
            module=model,
            facts=Facts(summary=f"{name}, {kernel}, two passes, {mode}; {diffusers.__version__}", dtype=name),
            is_compiled=self._compiles,
        )

    def _model(self, task: Task, diffusers: ModuleType) -> nn.Module:
        spec, dtype = task.transformer, _dtype(task)
        with torch.device(task.device):
            model = diffusers.WanTransformer3DModel(
                patch_size=spec.patch, num_attention_heads=spec.num_heads, attention_head_dim=spec.head_dim,
                in_channels=spec.in_dim, out_channels=spec.out_dim, text_dim=spec.text_dim, freq_dim=spec.freq_dim,
                ffn_dim=spec.ffn_dim, num_layers=spec.num_layers, eps=spec.eps,
            )  # fmt: skip
        # What it keeps in float32 when it loads a checkpoint in a narrower dtype.
        kept = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
        for name, parameter in model.named_parameters():
            if not any(part in name.split(".") for part in kept):
                parameter.data = parameter.data.to(dtype)
        fill_module(model, TRANSFORMER_DIFFUSERS.to_official)
        if self._uses_cudnn:
            model.set_attention_backend("_native_cudnn")
        if self._compiles:
            model.compile_repeated_blocks(fullgraph=True)
        return model


def _dtype(task: Task) -> torch.dtype:
    return torch.float32 if task.device == "cpu" else torch.bfloat16
