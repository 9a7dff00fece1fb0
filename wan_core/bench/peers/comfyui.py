"""ComfyUI's native Wan model as it ships: both passes of guidance as one batch, weights in bfloat16.

Its modules are imported from the checkout, without its server and its nodes, and each for the part that it is in (its
text encoder needs packages that the transformer does without). The checkout's folder goes to the front of the module
path for that and stays there, since modules import more when they run. There can be one checkout in a process.

Options, which are what a user can do by hand: `cudnn` puts cuDNN before PyTorch's flash kernel in its order of
attention kernels; `compile` compiles the whole model, as its TorchCompileModel node does.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from ...checkpoint.keys import TEXT_ENCODER_TRANSFORMERS, TRANSFORMER_OFFICIAL, VAE_OFFICIAL
from ...errors import UnsupportedError
from ..breakdown import place
from ..operations import GUIDANCE
from ..prompts import prompt_ids
from ..random_weights import fill_module
from ..task import PARTS, Facts, Part, Prepared, Task, dtype_name
from ..torch_settings import TorchSettings
from .checkout import check_checkout, commit_of, importing

WHAT = "ComfyUI"
MARKER = "comfy/ldm/wan/model.py"
OPTIONS = ("cudnn", "compile")

# What its UMT5 tokenizer pads to.
_TEXT_LENGTH = 512


class ComfyUiCandidate:
    """ComfyUI from the checkout `root`; raises `InputError` for a folder that is none."""

    is_peer = True

    def __init__(self, name: str, root: Path, options: frozenset[str]) -> None:
        self.name = name
        self._root = check_checkout(root, MARKER, WHAT)
        self._cudnn_first = "cudnn" in options
        self._compiles = "compile" in options
        # The options concern the transformer alone.
        self.parts: tuple[Part, ...] = ("step",) if options else PARTS

    def prepare(self, part: Part, task: Task) -> Prepared:
        with importing(WHAT):
            code = _import_checkout(self._root, is_cpu=task.device == "cpu")
            return {"step": self._step, "vae": self._vae, "text": self._text}[part](task, code)

    def _step(self, task: Task, code: "_Code") -> Prepared:
        spec, dtype, mode = task.transformer, _dtype(task), "whole model compiled" if self._compiles else "eager"
        attention = code.describe_attention(cudnn_first=self._cudnn_first)
        model = import_module("comfy.ldm.wan.model").WanModel(
            model_type="t2v", patch_size=spec.patch, text_len=spec.text_len, in_dim=spec.in_dim, dim=spec.dim,
            ffn_dim=spec.ffn_dim, freq_dim=spec.freq_dim, text_dim=spec.text_dim, out_dim=spec.out_dim,
            num_heads=spec.num_heads, num_layers=spec.num_layers, eps=spec.eps, device=task.device, dtype=dtype,
            operations=code.ops.disable_weight_init,
        )  # fmt: skip
        fill_module(model, TRANSFORMER_OFFICIAL.to_official)
        velocity = torch.compile(model) if self._compiles else model
        latent = torch.cat([task.latent().to(dtype)] * 2)
        timestep = torch.full((2,), task.timestep, device=task.device)
        contexts = task.padded_contexts().to(dtype)

        def run() -> Tensor:
            with torch.inference_mode(), code.attention_order(cudnn_first=self._cudnn_first), place(GUIDANCE):
                cond, uncond = velocity(latent, timestep, contexts).float().chunk(2)
                return uncond + task.guidance * (cond - uncond)

        name = dtype_name(dtype)
        return Prepared(
            run=run,
            module=model,
            facts=code.facts(f"{name}, {attention}, guidance in one batch, {mode}", name),
            is_compiled=self._compiles,
            settings=code.settings,
        )

    def _vae(self, task: Task, code: "_Code") -> Prepared:
        spec, dtype = task.vae, _dtype(task)
        vae = import_module("comfy.ldm.wan.vae").WanVAE(
            dim=spec.dim, z_dim=spec.latent_channels, dim_mult=list(spec.dim_multipliers),
            num_res_blocks=spec.num_res_blocks, attn_scales=[], temperal_downsample=list(spec.temporal_downsample),
            dropout=0.0,
        )  # fmt: skip
        vae.to(task.device, dtype)
        fill_module(vae, VAE_OFFICIAL.to_official)
        latent = task.latent().to(dtype)

        def run() -> Tensor:
            with torch.inference_mode():
                return vae.decode(latent).clamp(-1, 1)

        name = dtype_name(dtype)
        return Prepared(run=run, module=vae, facts=code.facts(f"{name}, whole frames", name), settings=code.settings)

    def _text(self, task: Task, code: "_Code") -> Prepared:
        spec, dtype = task.text, _dtype(task)
        config = {
            "d_ff": spec.ffn_dim, "d_kv": spec.attention_dim // spec.num_heads, "d_model": spec.dim,
            "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "layer_norm_epsilon": spec.eps,
            "model_type": "umt5", "num_heads": spec.num_heads, "num_layers": spec.num_layers,
            "vocab_size": spec.vocab_size,
        }  # fmt: skip
        encoder = import_module("comfy.sd1_clip").SDClipModel(
            device=task.device, textmodel_json_config=config, dtype=dtype, special_tokens={"end": 1, "pad": 0},
            model_class=import_module("comfy.text_encoders.t5").T5, enable_attention_masks=True, zero_out_masked=True,
        )  # fmt: skip
        fill_module(encoder.transformer, TEXT_ENCODER_TRANSFORMERS.to_official)
        padded = [list(ids) + [0] * (_TEXT_LENGTH - len(ids)) for ids in prompt_ids()]

        def run() -> Tensor:
            with torch.inference_mode():
                return torch.cat([encoder([row])[0] for row in padded])

        name = dtype_name(dtype)
        return Prepared(
            run=run,
            module=encoder,
            facts=code.facts(f"{name} weights, float32 products, prompts one by one, padded to {_TEXT_LENGTH}", name),
            settings=code.settings,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Code:
    """What every part needs of it: modules, what it calls itself, and the switches of PyTorch that importing it set."""

    ops: ModuleType
    attention: ModuleType
    version: str
    settings: TorchSettings

    @property
    def order(self) -> list[SDPBackend]:
        """Its order of attention kernels; empty where it leaves that to PyTorch."""
        return getattr(self.ops, "SDPA_BACKEND_PRIORITY", [])

    @contextmanager
    def attention_order(self, *, cudnn_first: bool) -> Iterator[None]:
        """Its own order inside the block, or one with cuDNN before all others."""
        own = list(self.order)
        if cudnn_first:
            if SDPBackend.CUDNN_ATTENTION not in own:
                raise UnsupportedError(f"{self.version} has no order of attention kernels on this device")
            self.order.sort(key=lambda backend: backend != SDPBackend.CUDNN_ATTENTION)
        try:
            yield
        finally:
            self.order[:] = own

    def describe_attention(self, *, cudnn_first: bool) -> str:
        """Its attention function, and the kernels behind it in the order of a run."""
        with self.attention_order(cudnn_first=cudnn_first):
            kernels = [backend.name.removesuffix("_ATTENTION").lower() for backend in self.order]
        order = f" ({', '.join(kernels)})" if kernels else ""
        return f"{self.attention.optimized_attention.__name__}{order}"

    def facts(self, summary: str, dtype: str) -> Facts:
        return Facts(summary=f"{summary}; {self.version}", dtype=dtype)


@cache
def _import_checkout(root: Path, *, is_cpu: bool) -> _Code:
    if (already := sys.modules.get("comfy")) and not any(Path(path).parent == root for path in already.__path__):
        raise UnsupportedError("two ComfyUI checkouts cannot be imported into one process; measure them one by one")
    before = TorchSettings.current()
    sys.path.insert(0, str(root))
    if is_cpu:
        import_module("comfy.cli_args").args.cpu = True
    ops, attention = import_module("comfy.ops"), import_module("comfy.ldm.modules.attention")
    version = import_module("comfyui_version").__version__
    settings = TorchSettings.current()
    before.apply()
    return _Code(ops=ops, attention=attention, version=f"ComfyUI {version}, {commit_of(root)}", settings=settings)


def _dtype(task: Task) -> torch.dtype:
    return torch.float32 if task.device == "cpu" else torch.bfloat16
