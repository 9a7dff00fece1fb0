"""What a plan says of LoRAs: their application with its reasons, their memory, and recipes that go ill with them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lora_files import write_lora
from tests.unit.checkpoint.synthetic import TRANSFORMER
from wan_core.checkpoint.lora_file import block_linears
from wan_core.checkpoint.lora_pair import LoraChoice, choose_lora
from wan_core.errors import UnsupportedError
from wan_core.lora_plan import LoraPlan, lora_disagreements, plan_loras
from wan_core.plan import ExecutionPlan, Workload, resolve
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.specs import T2V_A14B_TRANSFORMER, Expert, TransformerSpec

HD = VideoSize(width=1280, height=720, num_frames=81)


def lora(folder: Path, family: str = "kohya", name: str = "", **strengths: float) -> LoraChoice:
    for expert in Expert:
        path, _ = write_lora(folder / name, family, TRANSFORMER, expert)
    return choose_lora(path, TRANSFORMER, **strengths)


def planned(loras: Sequence[LoraChoice], **settings: str) -> LoraPlan:
    changes = {"lora.application" if name == "application" else name: value for name, value in settings.items()}
    return plan_loras(loras, TRANSFORMER, preset("auto").with_settings(changes), 2)


def real_size(folder: Path, spec: TransformerSpec = T2V_A14B_TRANSFORMER, rank: int = 64) -> LoraChoice:
    """A LoRA of real size for both experts: a true header, and a hole in place of its numbers."""
    header, at = {}, 0
    for name in block_linears(spec):
        out_features, in_features = (
            (spec.ffn_dim, spec.dim) if name.endswith("ffn.0") else (spec.dim, spec.ffn_dim)
            if name.endswith("ffn.2") else (spec.dim, spec.dim)
        )  # fmt: skip
        for end, shape in (("lora_down", (rank, in_features)), ("lora_up", (out_features, rank))):
            size = shape[0] * shape[1] * 2
            header[f"diffusion_model.{name}.{end}.weight"] = {
                "dtype": "BF16", "shape": shape, "data_offsets": (at, at + size)
            }  # fmt: skip
            at += size
    text = json.dumps(header).encode()
    path = folder / "style.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return choose_lora(path, spec)


def resolved(machine, loras: Sequence[LoraChoice], free_gib: float = 138.0) -> ExecutionPlan:
    workload = Workload(
        request=SampleRequest(recipe=recipe("official")), latent_size=HD.latent_size, loras=tuple(loras)
    )
    return resolve(preset("auto"), machine("h200", free_gib=free_gib), T2V_A14B_TRANSFORMER, workload)


def test_without_loras_nothing_is_said():
    plan = planned(())
    assert (plan.decisions, plan.files, plan.adapter_bytes) == ((), (), (0, 0))


def test_auto_is_beside_and_each_lora_has_its_line(tmp_path):
    plan = planned((lora(tmp_path, strength_low=0.5), lora(tmp_path, "bare")))
    application, *lines = map(str, plan.decisions)
    assert application == "LoRA application: beside (a change of strength reads nothing)"
    assert [line.split(": ", 1)[0] for line in lines] == [
        f"LoRA '{expert}_noise/style_{expert}_noise.safetensors' on {expert} noise" for expert in ("high", "low")
    ] * 2
    assert lines[1].endswith(": 20/20 modules, rank 4, alpha/rank 0.25, strength 0.5")
    assert lines[2].endswith(": 20/20 modules, rank 5, alpha/rank 1 (the file has no alpha), strength 1")
    assert not any(decision.degraded for decision in plan.decisions)


def test_merged_as_asked(tmp_path):
    plan = planned([lora(tmp_path)], application="merged")
    assert plan.application == "merged" and plan.adapter_bytes == (0, 0)
    assert str(plan.decisions[0]).startswith("LoRA application: merged (no cost in a step")


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        (
            "extracted",
            "14 tensors merged: only linear layers of the blocks can have a change beside them (each expert)",
        ),
        ("extracted", "1 tensor merged: a full difference is as large as its weight (each expert)"),
        ("dora", "20 tensors merged: DoRA rescales the weight itself (each expert)"),
    ],
)
def test_what_cannot_stand_beside_is_merged_with_its_reason(tmp_path, family, reason):
    assert reason in str(planned([lora(tmp_path, family)], application="beside").decisions[0])


def test_a_reason_of_one_expert_names_it(tmp_path):
    choice = replace(lora(tmp_path, "dora"), low=lora(tmp_path, "kohya").low)
    assert "20 tensors merged: DoRA rescales the weight itself (high noise)" in str(planned([choice]).decisions[0])


def test_all_merged_where_beside_was_asked_is_marked(tmp_path):
    (application, *_) = planned([lora(tmp_path, "dora")], application="beside").decisions
    assert application.degraded and application.chosen == "merged"


def test_a_strict_profile_stops_instead(tmp_path):
    strict = {"application": "beside", "on_unsupported": "error"}
    planned([lora(tmp_path)], **strict)
    with pytest.raises(UnsupportedError, match="20 tensors merged: DoRA rescales the weight itself.*use 'auto'"):
        planned([lora(tmp_path, "dora")], **strict)
    planned([lora(tmp_path, "dora")], application="merged", on_unsupported="error")


def test_memory_of_a_lora_of_real_size_is_counted(tmp_path, machine):
    without, plan = resolved(machine, ()), resolved(machine, [real_size(tmp_path)])
    # 64 * (in + out) numbers for each of 400 layers, 307 million: 614 MB for each expert in bfloat16.
    added = plan.weight_bytes - without.weight_bytes
    assert added == pytest.approx(2 * 2 * 64 * 40 * (8 * 2 * 5120 + 2 * (5120 + 13824)), rel=1e-3)
    assert "400/400 modules, rank 64" in plan.to_text()


def test_a_lora_can_tip_the_placement(tmp_path, machine):
    plan = resolved(machine, ())
    tight = (plan.weight_bytes + plan.activation_bytes) / 2**30 + 0.5
    assert resolved(machine, (), tight).binding.placement.policy == "resident"
    assert resolved(machine, [real_size(tmp_path)], tight).binding.placement.policy == "experts"


def test_notes_of_the_files_are_warnings_of_the_plan(tmp_path, machine):
    warnings = resolved(machine, [real_size(tmp_path)]).warnings
    assert any("nothing says which expert" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("name", "chosen", "strength", "expected"),
    [
        ("plain", "official", 1.0, []),
        ("lightning", "lightning-4", 1.0, []),
        ("lightning", "official", 1.0, ["guidance 4 on the high-noise expert with", "guidance 3 on the low-noise"]),
        ("lightning", "official", 0.0, []),
        ("plain", "lightning-4", 1.0, ["4 steps at guidance 1 without a distilled LoRA"]),
        ("lightning", "lightning-4", 0.0, ["4 steps at guidance 1 without a distilled LoRA"]),
    ],
)
def test_recipes_that_go_ill_with_loras(tmp_path, name, chosen, strength, expected):
    for expert in Expert:
        path, _ = write_lora(tmp_path / f"loras-{name}", "kohya", TRANSFORMER, expert)
    folder = path.parent.parent
    for expert in Expert:
        (folder / f"{expert.value}_noise").rename(folder / f"{name}_{expert.value}_noise")
    choice = choose_lora(folder / f"{name}_low_noise" / path.name, TRANSFORMER)
    choice = replace(choice, strength_high=strength, strength_low=strength)
    notes = lora_disagreements(recipe(chosen), [choice])
    assert len(notes) == len(expected)
    assert all(part in note for part, note in zip(expected, notes, strict=True))


def test_few_steps_without_any_lora_warn_in_the_plan(machine):
    request = SampleRequest(recipe=recipe("lightning-4"))
    plan = resolve(
        preset("auto"), machine("h200"), T2V_A14B_TRANSFORMER, Workload(request=request, latent_size=HD.latent_size)
    )
    assert any("without a distilled LoRA" in warning for warning in plan.warnings)
