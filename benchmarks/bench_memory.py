"""Predicted against measured device memory: twelve cases and more of sampling, and text and decode by themselves.

    python -m benchmarks.bench_memory [--presets 80gb 40gb 24gb 16gb --sizes 720p 480p --batches 1 2 --json FILE]

Each case is planned for the real model and run with four of its forty blocks, two steps, one by each expert: the
weights and the text's keys and values of the other blocks are the same bytes on both sides and are added to both. What
is left is what a prediction can get wrong: activations, buffers, workspaces, rounding. Every case runs under a real
limit of the process (`torch.cuda.set_per_process_memory_fraction`) that leaves what the preset leaves. "over" is how
far predicted is above measured, of the whole peak; "reserved" is what the allocator held beyond it, for which a plan
keeps slack. Ends with 1 where a prediction is below what was measured or more than 5% above.
"""

import argparse
import gc
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from time import perf_counter

import torch
from torch import Tensor

from benchmarks.card import add_card, parsed_on_a_card, say_versions
from wan_core.bench.ours import RandomTextEncoder
from wan_core.bench.prompts import prompts
from wan_core.bench.random_weights import RandomCheckpoint, RandomReader, random_checkpoint
from wan_core.build import build_experts, build_text_encoder, build_vae, measure_kernels
from wan_core.checkpoint.experts import ExpertPair
from wan_core.checkpoint.header import TensorInfo
from wan_core.checkpoint.inventory import Shapes, text_encoder_shapes, transformer_shapes, vae_shapes
from wan_core.checkpoint.vae import VaeSource
from wan_core.component_plan import ComponentPlan, resolve_decode, resolve_text
from wan_core.components import Experts
from wan_core.demand import choose
from wan_core.errors import OutOfMemoryError
from wan_core.frames import levels, on_host
from wan_core.hardware import Hardware
from wan_core.hooks import Silent
from wan_core.models.vae_tiling import Tile
from wan_core.placing import Split
from wan_core.plan import ExecutionPlan, resolve
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, recipe
from wan_core.report import Report
from wan_core.sample import Conditioning, sample
from wan_core.specs import T2V_A14B_TRANSFORMER, UMT5_XXL, WAN21_VAE
from wan_core.workload import Workload

from .bench_attention import SIZES

NUM_BLOCKS, NUM_STREAMED = 4, 3
FEW = replace(T2V_A14B_TRANSFORMER, num_layers=NUM_BLOCKS)
# The second step of the high-noise expert and the first one of the other.
REQUEST = SampleRequest(recipe=recipe("draft").with_changes(num_steps=4), start_step=1, end_step=3)
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement; bytes of the real model. measured is 0 where memory ran out."""

    case: str
    plan: str
    predicted: int
    measured: int
    reserved: int
    seconds: float

    @property
    def over(self) -> float:
        return self.predicted / self.measured - 1 if self.measured else float("nan")

    def __str__(self) -> str:
        figures = f"{self.predicted / GIB:8.2f}{self.measured / GIB:10.2f}{self.over:9.2%}{self.reserved / GIB:10.2f}"
        return f"{self.case:<22}{figures}{self.seconds:8.1f} s  {self.plan}"


class BlankReader(RandomReader):
    """Zeros: nothing here depends on the numbers, and drawing them on the host would take most of the time."""

    def fill(self, info: TensorInfo, target: Tensor) -> None:
        target.zero_()


class BlankCheckpoint(RandomCheckpoint):
    """A checkpoint without a file and without numbers."""

    __slots__ = ()

    def reader(self) -> BlankReader:
        return BlankReader()


def blank(shapes: Shapes) -> BlankCheckpoint:
    """A checkpoint of these tensors."""
    given = random_checkpoint(shapes)
    return BlankCheckpoint(**{field.name: getattr(given, field.name) for field in fields(given)})


class Cases:
    """Sampling, case by case; what is built stays for the next case of the same binding."""

    def __init__(self, device: str) -> None:
        self._hardware = Hardware.detect(device)
        source = blank(transformer_shapes(FEW))
        self._pair = ExpertPair(high=source, low=source, spec=FEW)
        self._built: Experts | None = None

    def run(self, name: str, size: str, batch: int) -> Row:
        """One preset at one size, planned whole and run with few blocks."""
        start = perf_counter()
        workload = Workload(request=REQUEST, latent_size=SIZES[size], batch=batch)
        whole = resolve(preset(name), self._hardware, T2V_A14B_TRANSFORMER, workload)
        few = self._with_few_blocks(name, whole)
        elsewhere = whole.peak_bytes - few.peak_bytes
        measured, reserved = self._measure(few, preset(name).offload.budget_bytes - elsewhere)
        placement = whole.binding.placement
        streamed = f" {placement.streamed_blocks}" if placement.streamed_blocks else ""
        kernels = "compiled" if whole.binding.compile_mode != "off" else f"kernels {whole.binding.block_kernels}"
        return Row(
            case=f"{name} {size} batch {batch}",
            plan=f"{placement.policy}{streamed}, {whole.guidance}, {whole.videos_at_once} at once, {kernels}",
            predicted=whole.peak_bytes,
            measured=measured and measured + elsewhere,
            reserved=reserved,
            seconds=perf_counter() - start,
        )

    def _with_few_blocks(self, name: str, whole: ExecutionPlan) -> ExecutionPlan:
        """The same choices for a model of few blocks, with what is predicted for it."""
        settings = {"offload.policy": whole.binding.placement.policy, "offload.budget": "auto"}
        if whole.binding.placement.streamed_blocks:
            settings["offload.streamed_blocks"] = str(NUM_STREAMED)
        profile = preset(name).with_settings(settings)
        plan = measure_kernels(resolve(profile, self._hardware, FEW, whole.workload), self._hardware, Report())
        cut = Split(guidance=whole.guidance, batch=whole.videos_at_once)
        sampling = choose(profile, self._hardware, FEW, whole.workload).sampling(cut)
        phases = sampling.phases(plan.binding.placement, plan.split)
        return replace(plan, guidance=cut.guidance, videos_at_once=cut.batch, phases=phases)

    def _measure(self, plan: ExecutionPlan, limit: int) -> tuple[int, int]:
        """Peak of what was allocated, and what was reserved beyond it, under a limit for the whole process."""
        if self._built is None or self._built.key != plan.key:
            self._built = None
            give_back()
            self._built = build_experts(plan.binding, self._pair, self._hardware)
        give_back()
        latent = torch.zeros(plan.workload.batch, FEW.out_dim, *plan.workload.latent_size)
        context = torch.randn(1, FEW.text_len, FEW.text_dim)
        device = torch.device(plan.binding.device)
        torch.cuda.set_per_process_memory_fraction(min(limit / self._hardware.total_memory, 1.0), device)
        torch.cuda.reset_peak_memory_stats(device)
        report = Report()
        try:
            sample(self._built, plan, Conditioning(positive=context, negative=context), latent, report=report)
        except torch.OutOfMemoryError as error:
            print(f"! {str(error).splitlines()[0]}")
            return 0, 0
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        measured = max(report.peak_bytes[phase] for phase in ("load", "sample"))
        return measured, torch.cuda.max_memory_reserved(device) - measured


def text_row(hardware: Hardware) -> Row:
    """The text encoder at its real size, with prompts of 128 tokens."""
    start = perf_counter()
    plan = resolve_text(preset("auto"), hardware, UMT5_XXL)
    source = RandomTextEncoder(checkpoint=blank(text_encoder_shapes(UMT5_XXL)), spec=UMT5_XXL)
    give_back()
    encoder = build_text_encoder(plan, source)
    # A word model of a few hundred pieces stands in for the real vocabulary, which the encoder would refuse.
    with torch.inference_mode():
        encoder.weights.to_device()
        module = encoder.weights.module
        for prompt in prompts():
            ids = torch.tensor([encoder.tokenizer.encode(prompt).ids], device=plan.device)
            module(ids, torch.ones_like(ids, dtype=torch.bool))
    return _component_row("text", plan, start)


def decode_rows(hardware: Hardware, sizes: list[str]) -> Iterator[Row]:
    """The VAE at its real size: whole frames, and tiles of cards that are nearly full."""
    for size in sizes:
        seen: set[Tile | None] = set()
        for free in (hardware.free_memory, 5 * GIB, 3 * GIB):
            start = perf_counter()
            plan = resolve_decode(preset("auto"), replace(hardware, free_memory=free), WAN21_VAE, SIZES[size])
            if plan.tile in seen:
                continue
            seen.add(plan.tile)
            vae = build_vae(plan, VaeSource(checkpoint=blank(vae_shapes(WAN21_VAE)), spec=WAN21_VAE))
            give_back()
            latent = torch.randn(1, WAN21_VAE.latent_channels, *SIZES[size])
            for _ in on_host(vae.decode_chunks(latent, plan.tile, Silent()), levels):
                pass
            yield _component_row(f"decode {size}", plan, start)


def _component_row(case: str, plan: ComponentPlan, start: float) -> Row:
    torch.cuda.synchronize()
    measured = torch.cuda.max_memory_allocated(plan.device)
    return Row(
        case=case,
        plan=f"{plan.dtype}, {plan.tile or 'whole'}",
        predicted=plan.phase.peak_bytes,
        measured=measured,
        reserved=torch.cuda.max_memory_reserved(plan.device) - measured,
        seconds=perf_counter() - start,
    )


def give_back() -> None:
    """Leave the device as a new process finds it, but for what is built."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    cases = Cases(arguments.device)
    # In the order of the placements, so that few builds are made.
    for name in arguments.presets:
        for size in arguments.sizes:
            if (name, size) == ("16gb", "720p"):
                continue  # it fits, but nobody promised it
            for batch in arguments.batches:
                try:
                    yield cases.run(name, size, batch)
                except OutOfMemoryError as error:
                    print(f"! {name} {size} batch {batch}: {error}")
    del cases
    give_back()
    hardware = Hardware.detect(arguments.device)
    yield text_row(hardware)
    yield from decode_rows(hardware, arguments.sizes)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_card(parser)
    parser.add_argument("--presets", nargs="+", default=["80gb", "40gb", "24gb", "16gb"])
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=["720p", "480p"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2])
    return parsed_on_a_card(parser)


def main() -> int:
    arguments = parse_arguments()
    hardware = Hardware.detect(arguments.device)
    say_versions(hardware)
    print(f"from page-locked host memory {hardware.host_bandwidth / 1e9:.1f} GB/s")
    print(f"{'':<22}{'GiB predicted':>8}  measured     over  reserved")
    rows = []
    for row in measure(arguments):
        rows.append(row)
        print(row, flush=True)
    if arguments.json:
        data = {"environment": hardware.environment(), "rows": [asdict(row) | {"over": row.over} for row in rows]}
        arguments.json.write_text(json.dumps(data, indent=2), encoding="utf-8")
    return 0 if all(0 <= row.over <= 0.05 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
