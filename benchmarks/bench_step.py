"""A guided step of one A14B expert in several variants side by side: seconds, TFLOP/s, and error against float32.

    python -m benchmarks.bench_step [--sizes 720p 480p --variants compiled fused ... --wan22 DIR --json FILE]

Real width, random weights, few blocks: a step is the time with one block plus 39 times what each further block adds, so
what happens once per forward is not multiplied. Variants take turns and share their weights. The error is that of the
velocity, relative to float32, at some 4,000 tokens and the same number of blocks, beside the reference's own bfloat16
arithmetic where its checkout is given. A variant that fails is a line with its reason.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from benchmarks.card import add_card, parsed_on_a_card, say_versions
from wan_core.attention.backends import BACKENDS
from wan_core.attention.interface import Attend, first_line
from wan_core.bench.random_weights import fill
from wan_core.compilation import compile_blocks
from wan_core.hardware import Hardware
from wan_core.kernels.block import TORCH, BlockKernels
from wan_core.models.transformer import WanTransformer, wants_float32
from wan_core.precision import tf32
from wan_core.sampling.guidance import GuidedVelocity
from wan_core.specs import T2V_A14B_TRANSFORMER, TransformerSpec

from . import bench_attention, precision
from .turns import take_turns, warmed_up

LAYERS = T2V_A14B_TRANSFORMER.num_layers
# Beside the usual ones 480x272x33, where one pass does not fill the card.
SIZES = {**bench_attention.SIZES, "272p33": (9, 34, 60)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to run the same step. kernels: of the block's elementwise work. compile: a mode, or "off"."""

    attention: str = "flash-attn-4"
    cross: str = "flash-attn-4"
    kernels: str = "torch"
    compile: str = "off"
    residual: str = "float32"
    guidance: str = "sequential"


VARIANTS: dict[str, Variant] = {
    "eager": Variant(),
    "compiled": Variant(compile="default"),
    "max-autotune": Variant(compile="max-autotune-no-cudagraphs"),
    "reduce-overhead": Variant(compile="reduce-overhead"),
    "fused": Variant(kernels="triton"),
    "fused, cross cudnn": Variant(kernels="triton", cross="cudnn"),
    "fused, cross sdpa": Variant(kernels="triton", cross="sdpa"),
    "fused, wide": Variant(kernels="triton", attention="flash-attn-4-wide"),
    "fused, wide, cross sdpa": Variant(kernels="triton", attention="flash-attn-4-wide", cross="sdpa"),
    "fused, bfloat16 residual": Variant(kernels="triton", residual="bfloat16"),
    "fused, batched": Variant(kernels="triton", guidance="batched"),
    "fused, two-stream": Variant(kernels="triton", guidance="two-stream"),
    "compiled, wide": Variant(compile="default", attention="flash-attn-4-wide"),
}
DEFAULT = ["compiled", "fused", "fused, wide", "fused, wide, cross sdpa"]


def block_kernels(name: str) -> BlockKernels:
    if name == "torch":
        return TORCH
    from wan_core.kernels.triton_block import TRITON

    return TRITON


def backend(name: str) -> Attend:
    return next(each for each in BACKENDS if each.name == name).load()


def build(spec: TransformerSpec, variant: Variant, weights: Mapping[str, Tensor]) -> WanTransformer:
    """A transformer of this variant around weights that others hold too."""
    with torch.device("meta"):
        model = WanTransformer(
            spec,
            attend=backend(variant.attention),
            cross_attend=backend(variant.cross),
            residual=getattr(torch, variant.residual),
            kernels=block_kernels(variant.kernels),
        )
    model.load_state_dict({name: weights[name] for name in model.state_dict()}, assign=True)
    if variant.compile != "off":
        compile_blocks(model.blocks, variant.compile)
    return model


def random_weights(spec: TransformerSpec, device: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = WanTransformer(spec, attend=backend("sdpa"), cross_attend=backend("sdpa")).state_dict()
    weights = {}
    for name, like in shapes.items():
        dtype = torch.float32 if wants_float32(name) else torch.bfloat16
        weights[name] = torch.empty(like.shape, device=device, dtype=dtype)
        fill(name, weights[name])
    return weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Latent, timestep and the embeddings of both prompts."""

    latent: Tensor
    timestep: Tensor
    contexts: tuple[Tensor, Tensor]

    @classmethod
    def draw(cls, size: tuple[int, int, int], device: str) -> "Inputs":
        generator = torch.Generator(device).manual_seed(0)
        spec = T2V_A14B_TRANSFORMER
        texts = torch.randn(2, 1, spec.text_len, spec.text_dim, device=device, generator=generator)
        return cls(
            latent=torch.randn(1, spec.in_dim, *size, device=device, generator=generator),
            timestep=torch.full((1,), 900.0, device=device),
            contexts=(texts[0], texts[1]),
        )


def step(model: WanTransformer, variant: Variant, inputs: Inputs) -> Callable[[], Tensor]:
    """A guided step: both passes, and what joins them."""
    positive, negative = (model.prepare_text(context) for context in inputs.contexts)
    velocity = GuidedVelocity(model, positive, negative, execution=variant.guidance)
    return partial(velocity, inputs.latent, inputs.timestep, 4.0)


def measure(
    size: str,
    variants: Mapping[str, Variant],
    weights: Mapping[str, Tensor],
    layers: int,
    arguments: argparse.Namespace,
) -> list["Row"]:
    """All variants at one size, in turns."""
    spec, inputs = replace(T2V_A14B_TRANSFORMER, num_layers=layers), Inputs.draw(SIZES[size], arguments.device)
    reasons: dict[str, str] = {}
    contestants: dict[str, Callable[[], Tensor]] = {}
    cold: dict[str, float] = {}
    for name, variant in variants.items():
        begin = perf_counter()
        found = warmed_up(_pair(name, spec, variant, weights, inputs, reasons), reasons.__setitem__)
        torch.cuda.synchronize()
        cold[name] = perf_counter() - begin
        if len(found) == 2:
            contestants |= found
    taken = take_turns(contestants, rounds=arguments.rounds, stretch=arguments.stretch)
    flops = 2 * T2V_A14B_TRANSFORMER.forward_flops(SIZES[size]).total
    rows = []
    for name in variants:
        if name not in contestants:
            rows.append(Row(size=size, variant=name, problem=reasons.get(name) or reasons.get(_one(name), "")))
            continue
        one, several = taken[_one(name)], taken[name]
        seconds = one + (several - one) / (layers - 1) * (LAYERS - 1)
        rows.append(Row(size=size, variant=name, seconds=seconds, tflops=flops / seconds / 1e12, cold=cold[name]))
    return rows


def _one(name: str) -> str:
    return f"{name}, one block"


def _pair(
    name: str, spec: TransformerSpec, variant: Variant, weights: Mapping[str, Tensor], inputs: Inputs,
    reasons: dict[str, str],
) -> dict[str, Callable[[], Tensor]]:  # fmt: skip
    """The step with all blocks and with one, or nothing and a reason."""
    try:
        return {
            label: step(build(replace(spec, num_layers=layers), variant, weights), variant, inputs)
            for label, layers in ((name, spec.num_layers), (_one(name), 1))
        }
    except Exception as error:  # noqa: BLE001 (whatever a variant fails with is its result)
        reasons[name] = f"{type(error).__name__}: {first_line(error)}"
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A variant at a size: seconds of a step of 40 blocks, its rate, seconds until its first results, or a reason."""

    size: str
    variant: str
    seconds: float | None = None
    tflops: float | None = None
    cold: float | None = None
    problem: str | None = None

    def __str__(self) -> str:
        if self.seconds is None:
            return f"  {self.variant:<28}{self.problem}"
        return f"  {self.variant:<28}{self.seconds:>8.3f} s{self.tflops:>7.0f} TFLOP/s   cold {self.cold:.1f} s"


def errors(variants: Mapping[str, Variant], layers: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Relative error of the velocity against float32 by variant, and of the reference in bfloat16."""
    spec = replace(T2V_A14B_TRANSFORMER, num_layers=layers)
    case = precision.make_case(spec, arguments.error_tokens, 0, torch.device(arguments.device))
    exact = precision.run_ours(case, torch.float32, torch.float32)
    found = {}
    if arguments.wan22:
        reference = precision.run_reference(case, arguments.wan22, torch.bfloat16, autocast=True)
        found["reference, bfloat16"] = precision.relative_error(reference, exact)
        del reference
    weights = {name: w if wants_float32(name) else w.bfloat16() for name, w in case.weights.items()}
    for name, variant in variants.items():
        try:
            model = build(spec, variant, weights)
            found[name] = precision.relative_error(
                model(case.latent, case.timestep, model.prepare_text(case.context)), exact
            )
        except Exception as error:  # noqa: BLE001 (its reason stands in the table of times)
            print(f"  {name}: {type(error).__name__}: {first_line(error)}")
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_card(parser)
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=list(bench_attention.SIZES))
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=DEFAULT, metavar="NAME")
    parser.add_argument("--layers", type=int, default=4, help="blocks, at least 2 (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--stretch", type=float, default=0.5, help="seconds of each turn, at least (default %(default)s)"
    )
    parser.add_argument("--error-tokens", type=int, default=4096, help="0 leaves the errors out")
    parser.add_argument("--wan22", type=Path, metavar="DIR", help="checkout of the reference, for its error")
    return parsed_on_a_card(parser)


@torch.inference_mode()
def main() -> int:
    arguments = parse_arguments()
    hardware = Hardware.detect(arguments.device)
    variants = {name: VARIANTS[name] for name in arguments.variants}
    say_versions(hardware)
    print(f"bfloat16 products {hardware.rate('bfloat16'):.0f} TFLOP/s; {arguments.layers} of {LAYERS} blocks")
    rows, found = [], {}
    weights = random_weights(replace(T2V_A14B_TRANSFORMER, num_layers=arguments.layers), arguments.device)
    for size in arguments.sizes:
        with tf32(enabled=True):
            rows += (at_size := measure(size, variants, weights, arguments.layers, arguments))
        print(f"{size}:", *at_size, sep="\n", flush=True)
    del weights
    if arguments.error_tokens:
        with tf32(enabled=False):
            found = errors(variants, arguments.layers, arguments)
        print(
            "relative error of the velocity:", *(f"  {name:<28}{value:.2e}" for name, value in found.items()), sep="\n"
        )
    if arguments.json:
        data = {"environment": hardware.environment(), "rows": [asdict(row) for row in rows], "errors": found}
        arguments.json.write_text(json.dumps(data, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
