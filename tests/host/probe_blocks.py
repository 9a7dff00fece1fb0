"""Runs in ComfyUI's own Python: our forward of its blocks against its own, on a small model with random weights.

Played by `probes.py` for `test_blocks.py`.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

ROOT, PACK = sys.argv[1:3]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, ROOT)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ldm.wan.model as wan  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

TOKENS = 12


def load_pack(name: str) -> object:
    """A module of the pack, imported as the host imports packs: by path, under a made-up name."""
    package = "wan_velocity_probe"
    spec = importlib.util.spec_from_file_location(package, Path(PACK, "__init__.py"))
    sys.modules[package] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.{name}")


blocks = load_pack("nodes.native_blocks")
TORCH = importlib.import_module("wan_velocity_probe.wan_core.kernels.block").TORCH


def model(kind: str = "t2v", dtype: torch.dtype = torch.float32, **changes: object) -> wan.WanModel:
    options = {"dim": 48, "ffn_dim": 96, "num_heads": 2, "num_layers": 2, "text_dim": 32} | changes
    found = wan.WanModel(
        model_type=kind, **options, cross_attn_norm=True, dtype=dtype, operations=comfy.ops.manual_cast
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.ndim == 1))
    return found.eval().requires_grad_(False)


def inputs(found: wan.WanModel, rows: int = 1, batch: int = 2, **options: object) -> dict[str, object]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(found.dtype)

    dim, freqs = found.dim, found.rope_encode(3, 4, 4, device=torch.device("cpu"), dtype=found.dtype)
    return {
        "x": draw(batch, TOKENS, dim), "e": draw(batch, rows, 6, dim), "freqs": freqs,
        "context": draw(batch, 7, dim), "context_img_len": 3, "transformer_options": options,
    }  # fmt: skip


def error(found: wan.WanModel, **what: object) -> float:
    given = inputs(found, **what)
    expected = found.blocks[0](**given)
    with blocks.fused(found, TORCH):
        ours = found.blocks[0](**given)
    return float((ours - expected).norm() / expected.norm())


def see_equal() -> dict[str, float]:
    return {
        "t2v": error(model()),
        "i2v": error(model("i2v")),
        "a time per token": error(model(), rows=TOKENS),
        "a time per frame": error(model(), rows=3),
        "patched": error(model(), patches={"attn1_patch": [lambda args: 2 * args["x"]]}),
        "patched after": error(model(), patches={"attn2_patch": [lambda args: 2 * args["x"]]}),
        "no norm of q and k": error(model(qk_norm=False)),
        "bfloat16": error(model(dtype=torch.bfloat16)),
    }


def see_weights() -> dict[str, object]:
    """A patched model whose weights are cast on the way (lowvram), and the same one loaded whole."""
    holder = torch.nn.Module()
    holder.diffusion_model = model()
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(holder, cpu, cpu)
    block = "diffusion_model.blocks.0"
    generator = torch.Generator().manual_seed(2)
    changed = ("self_attn.q.weight", "self_attn.norm_q.weight", "ffn.0.weight", "ffn.2.bias", "modulation")
    patcher.add_patches({
        f"{block}.{name}": (torch.randn(patcher.get_model_object(f"{block}.{name}").shape, generator=generator),)
        for name in changed
    })  # fmt: skip
    bare, outputs, functions = inputs(holder.diffusion_model), {}, {}
    outputs["bare"] = holder.diffusion_model.blocks[0](**bare)
    for state, memory in (("lowvram", 1.0), ("whole", 0)):
        patcher.patch_model(cpu, lowvram_model_memory=memory)
        functions[state] = len(patcher.get_model_object(f"{block}.self_attn.norm_q").weight_function)
        outputs[f"{state}, own"] = holder.diffusion_model.blocks[0](**bare)
        with blocks.fused(holder.diffusion_model, TORCH):
            outputs[f"{state}, ours"] = holder.diffusion_model.blocks[0](**bare)
        patcher.unpatch_model(cpu)
    expected = outputs["whole, own"]
    distances = {name: float((each - expected).norm() / expected.norm()) for name, each in outputs.items()}
    return {"functions": functions, "distances": distances}


def see_trial() -> dict[str, object]:
    """The trial on our side, and where the host's forward has come to mean something else."""

    def drifted(self, x, e, freqs, context, context_img_len=257, transformer_options={}):  # noqa: B006
        return own(self, x, e * 1.2, freqs, context, context_img_len, transformer_options)

    seen = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found, like = model(dtype=dtype), torch.zeros(1, dtype=dtype)
        good = blocks.trial_error(found, TORCH, like)
        own = wan.WanAttentionBlock.forward
        wan.WanAttentionBlock.forward = drifted
        bad = blocks.trial_error(found, TORCH, like)
        wan.WanAttentionBlock.forward = own
        seen[str(dtype)] = [blocks.is_same(good, dtype), blocks.is_same(bad, dtype)]
    seen["nan"] = blocks.is_same(float("nan"), torch.float32)
    return seen


def see_left_alone() -> dict[str, object]:
    found = model()
    block = found.blocks[0]
    seen = {
        "own": str(blocks.left_alone(block)),
        "no norm": blocks.left_alone(model(qk_norm=False).blocks[0].self_attn),
    }
    seen["no norm"] = seen["no norm"].reason
    block.forward = lambda x, **kwargs: x
    seen["replaced"] = blocks.left_alone(block).reason
    # What the host leaves behind when it takes an object patch off again.
    block.forward = wan.WanAttentionBlock.forward.__get__(block)
    seen["put back"] = str(blocks.left_alone(block))
    before = block.forward
    try:
        with blocks.fused(found, TORCH):
            seen["during"] = [type(each.forward).__name__ for each in found.blocks]
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        seen["after"] = [block.forward is before, "forward" in vars(found.blocks[1])]

    class Other(wan.WanAttentionBlock):
        pass

    block.__class__ = Other
    seen["other kind"] = blocks.left_alone(block).reason
    return seen


@torch.inference_mode()
def play() -> dict[str, dict]:
    """What was seen, by scene."""
    return {name: scene() for name, scene in list(globals().items()) if name.startswith("see_")}
