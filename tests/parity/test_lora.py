"""A LoRA of each family changes an expert's velocity exactly as merging it by hand does, beside the layers and merged.

The hand is `tests/lora_files.py`: other names, other code, float64. Miniature experts, float32 on the CPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from miniature.architecture import TRANSFORMER
from miniature.weights import draw_table, transformer_table
from miniature.write import write_safetensors
from tests.lora_files import FAMILIES, Writer, diffusers, loha, write_lora
from wan_core.attention.backends.sdpa import BACKENDS
from wan_core.build import build_experts
from wan_core.checkpoint.experts import ExpertPair, open_experts
from wan_core.checkpoint.lora_pair import LoraChoice, choose_lora, lora_for
from wan_core.components import Experts
from wan_core.hardware import Hardware
from wan_core.models.transformer import WanTransformer
from wan_core.plan import ExecutionPlan, Workload, resolve
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, recipe
from wan_core.specs import Expert

# Two blocks say as much as seven.
SPEC = replace(TRANSFORMER, num_layers=2)
STRENGTHS = {Expert.HIGH: 0.8, Expert.LOW: -0.6}
TOLERANCE = 1e-5
GRID = (2, 4, 6)
APPLICATIONS = ("beside", "merged")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    for expert in Expert:
        tensors = draw_table(transformer_table(SPEC), f"lora {expert.value}", torch.float32)
        write_safetensors(
            folder / f"{expert.value}_noise.safetensors",
            tensors,
            {"config": '{"transformer": {"num_heads": 2, "text_dim": 256}}'},
        )
    return folder


def expert_file(folder: Path, expert: Expert) -> Path:
    return folder / f"{expert.value}_noise.safetensors"


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    latent = torch.randn(1, 16, *GRID, generator=generator)
    return latent, torch.tensor([870.0]), torch.randn(1, 12, SPEC.text_dim, generator=generator)


@torch.inference_mode()
def velocity(transformer: WanTransformer) -> Tensor:
    latent, timestep, context = inputs()
    return transformer(latent, timestep, transformer.prepare_text(context))


def by_hand(tensors: Mapping[str, Tensor]) -> Tensor:
    """The velocity of an expert with these weights, loaded by torch itself."""
    attend = BACKENDS[-1].load()
    with torch.device("meta"):
        transformer = WanTransformer(SPEC, attend=attend, cross_attend=attend)
    transformer.load_state_dict(dict(tensors), assign=True)
    return velocity(transformer)


def plan_for(pair: ExpertPair, application: str) -> ExecutionPlan:
    profile = preset("reference").with_settings({"lora.application": application, "on_unsupported": "fallback"})
    request = SampleRequest(recipe=recipe("official"))
    workload = Workload(request=request, latent_size=GRID, loras=pair.loras)
    return resolve(profile, Hardware.detect("cpu"), pair.spec, workload)


def built(pair: ExpertPair, application: str) -> Experts:
    return build_experts(plan_for(pair, application).binding, pair, Hardware.detect("cpu"))


def velocity_of(experts: Experts, expert: Expert) -> Tensor:
    experts.residency.activate(expert, lambda what, done, total: None)
    return velocity(experts.transformers[expert])


def error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def check(
    folder: Path, loras: Sequence[LoraChoice], writers: Mapping[Expert, Sequence[Writer]], application: str
) -> None:
    """Both experts with these LoRAs against what was merged by hand, which has to differ from the bare experts."""
    pair = open_experts(expert_file(folder, Expert.HIGH), expert_file(folder, Expert.LOW))
    experts = built(replace(pair, loras=tuple(loras)), application)
    for expert in Expert:
        bare = load_file(expert_file(folder, expert))
        merged = dict(bare)
        for choice, writer in zip(loras, writers[expert], strict=True):
            merged = writer.merged(merged, choice.strength(expert))
        expected = by_hand(merged)
        assert error(velocity_of(experts, expert), expected) <= TOLERANCE
        assert error(by_hand(bare), expected) > 0.02, "the LoRA changes nothing to speak of"


def chosen(folder: Path, family: str) -> tuple[LoraChoice, dict[Expert, Writer]]:
    written = {expert: write_lora(folder, family, SPEC, expert) for expert in Expert}
    choice = choose_lora(
        written[Expert.LOW][0], SPEC, strength_high=STRENGTHS[Expert.HIGH], strength_low=STRENGTHS[Expert.LOW]
    )
    return choice, {expert: writer for expert, (_, writer) in written.items()}


@pytest.mark.parametrize("application", APPLICATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_equals_merging_by_hand(folder: Path, tmp_path: Path, family: str, application: str) -> None:
    choice, writers = chosen(tmp_path, family)
    check(folder, [choice], {expert: [writers[expert]] for expert in Expert}, application)


@pytest.mark.parametrize("application", APPLICATIONS)
@pytest.mark.parametrize(
    "families", [("comfyui", "kohya"), ("extracted", "lokr"), ("kohya", "dora"), ("loha", "diffusers")]
)
def test_a_chain_of_two_equals_merging_one_after_the_other(
    folder: Path, tmp_path: Path, families: tuple[str, str], application: str
) -> None:
    choices, writers = zip(*(chosen(tmp_path, family) for family in families), strict=True)
    check(folder, choices, {expert: [each[expert] for each in writers] for expert in Expert}, application)


@pytest.mark.parametrize("application", APPLICATIONS)
def test_one_file_with_the_keys_of_both_experts(folder: Path, tmp_path: Path, application: str) -> None:
    writers = {Expert.HIGH: Writer(SPEC, 1), Expert.LOW: Writer(SPEC, 2)}
    for expert, prefix in ((Expert.HIGH, "transformer"), (Expert.LOW, "transformer_2")):
        diffusers(writers[expert], prefix)
    writers[Expert.HIGH].tensors |= writers[Expert.LOW].tensors
    choice = choose_lora(writers[Expert.HIGH].save(tmp_path / "both.safetensors"), SPEC)
    assert choice.high is choice.low and choice.notes == ()
    check(folder, [choice], {expert: [writers[expert]] for expert in Expert}, application)


def test_a_loha_that_would_be_larger_than_its_weight_is_merged(folder: Path, tmp_path: Path) -> None:
    writer = Writer(SPEC, 1)
    loha(writer, rank=16)
    choice = choose_lora(writer.save(tmp_path / "style.safetensors"), SPEC)
    check(folder, [choice], {expert: [writer] for expert in Expert}, "beside")


@pytest.mark.parametrize("application", APPLICATIONS)
def test_on_weights_that_are_stored_in_fp8(folder: Path, tmp_path: Path, application: str) -> None:
    """The values of an fp8 file are decoded when they are loaded, and the LoRA is added to those."""
    for expert in Expert:
        tensors = load_file(expert_file(folder, expert))
        stored = {
            name: tensor.to(torch.float8_e4m3fn) if tensor.ndim == 2 and name.startswith("blocks.") else tensor
            for name, tensor in tensors.items()
        }
        config = {"config": '{"transformer": {"num_heads": 2, "text_dim": 256}}'}
        save_file(stored, expert_file(tmp_path, expert), metadata=config)
    path, writer = write_lora(tmp_path / "lora", "kohya", SPEC, Expert.HIGH)
    pair = open_experts(expert_file(tmp_path, Expert.HIGH), expert_file(tmp_path, Expert.LOW))
    experts = built(pair.with_lora(lora_for(Expert.HIGH, path, SPEC)), application)
    decoded = {name: tensor.float() for name, tensor in load_file(expert_file(tmp_path, Expert.HIGH)).items()}
    assert error(velocity_of(experts, Expert.HIGH), by_hand(writer.merged(decoded, 1.0))) <= TOLERANCE


def test_one_expert_alone_leaves_the_other_as_it_is(folder: Path, tmp_path: Path) -> None:
    path, writer = write_lora(tmp_path, "kohya", SPEC, Expert.HIGH)
    pair = open_experts(expert_file(folder, Expert.HIGH), expert_file(folder, Expert.LOW))
    experts = built(pair.with_lora(lora_for(Expert.HIGH, path, SPEC)), "beside")
    tensors = {expert: load_file(expert_file(folder, expert)) for expert in Expert}
    assert torch.equal(velocity_of(experts, Expert.LOW), velocity_of(built(pair, "beside"), Expert.LOW))
    assert error(velocity_of(experts, Expert.HIGH), by_hand(writer.merged(tensors[Expert.HIGH], 1.0))) <= TOLERANCE
