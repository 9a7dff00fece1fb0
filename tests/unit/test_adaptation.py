"""LoRAs on built experts: what a change of strength and a change of LoRA read, and what is left after a failure."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.lora_files import write_lora
from tests.unit.checkpoint.synthetic import TRANSFORMER, write_expert
from wan_core.adaptation import arrange
from wan_core.build import build_experts
from wan_core.checkpoint.experts import ExpertPair, open_experts
from wan_core.checkpoint.header import TensorInfo
from wan_core.checkpoint.lora_pair import LoraChoice, choose_lora
from wan_core.checkpoint.stream import Reader
from wan_core.components import Experts
from wan_core.errors import CheckpointError, Interrupted
from wan_core.hardware import Hardware
from wan_core.offload.weights import Place
from wan_core.plan import ExecutionPlan, Workload, resolve
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, recipe
from wan_core.specs import Expert

GRID = (1, 4, 4)
NUM_PARAMETERS = 69
HIGH = "high_noise.safetensors"


@pytest.fixture
def pair(tmp_path: Path) -> ExpertPair:
    for seed, expert in enumerate(Expert):
        write_expert(tmp_path / f"{expert.value}_noise.safetensors", seed)
    return open_experts(tmp_path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How many tensors have been read: of each expert by its file's name, of all LoRAs together as "lora"."""
    counts: Counter = Counter()
    fill = Reader.fill

    def counted(self: Reader, info: TensorInfo, target: Tensor) -> None:
        counts["lora" if "loras" in info.file.parts else info.file.name] += 1
        fill(self, info, target)

    monkeypatch.setattr(Reader, "fill", counted)
    return counts


def lora(folder: Path, family: str, strength: float = 1.0) -> LoraChoice:
    path, _ = write_lora(folder / "loras", family, TRANSFORMER, Expert.HIGH)
    write_lora(folder / "loras", family, TRANSFORMER, Expert.LOW)
    return choose_lora(path, TRANSFORMER, strength_high=strength, strength_low=strength)


def with_strength(choice: LoraChoice, strength: float) -> LoraChoice:
    return replace(choice, strength_high=strength, strength_low=strength)


def planned(pair: ExpertPair, application: str) -> ExecutionPlan:
    profile = preset("cpu").with_settings({"lora.application": application})
    workload = Workload(request=SampleRequest(recipe=recipe("official")), latent_size=GRID, loras=pair.loras)
    return resolve(profile, Hardware.detect("cpu"), pair.spec, workload)


class Session:
    """What a pipeline does with experts: builds where the plan binds something else, sets strengths, activates."""

    def __init__(self, pair: ExpertPair, application: str = "auto") -> None:
        self.pair = pair
        self.application = application
        self.experts: Experts | None = None

    def run(self, *loras: LoraChoice, expert: Expert = Expert.HIGH) -> Tensor:
        pair = replace(self.pair, loras=loras)
        plan = planned(pair, self.application)
        if self.experts is None or self.experts.key != plan.key:
            self.experts = build_experts(plan.binding, pair, Hardware.detect("cpu"), previous=self.experts)
        for each in Expert:
            self.experts.loras[each].wanted = tuple(choice.strength(each) for choice in loras)
        self.experts.residency.activate(expert, lambda what, done, total: None)
        self.experts.loras[expert].settle(self.experts.weights[expert])
        return self.velocity(expert)

    @torch.inference_mode()
    def velocity(self, expert: Expert) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        transformer = self.experts.transformers[expert]
        text = transformer.prepare_text(torch.randn(1, 4, TRANSFORMER.text_dim, generator=generator))
        return transformer(torch.randn(1, 16, *GRID, generator=generator), torch.tensor([900.0]), text)


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= 1e-5 * b.norm())


def test_a_change_of_strength_beside_the_layers_reads_nothing(tmp_path, pair, reads):
    session, choice = Session(pair), lora(tmp_path, "kohya")
    first = session.run(choice)
    assert reads[HIGH] == NUM_PARAMETERS and reads["lora"] > 0
    reads.clear()
    built = session.experts
    second = session.run(with_strength(choice, -0.5))
    assert session.experts is built and not reads
    assert not close(first, second)
    assert close(second, Session(pair).run(with_strength(choice, -0.5)))
    assert torch.equal(session.run(choice), first)


def test_a_change_of_a_merged_strength_reads_the_touched_parameters(tmp_path, pair, reads):
    session, choice = Session(pair, "merged"), lora(tmp_path, "kohya")
    first = session.run(choice)
    reads.clear()
    second = session.run(with_strength(choice, -0.5))
    assert reads[HIGH] == 20, "the linear layers of two blocks"
    assert close(second, Session(pair).run(with_strength(choice, -0.5)))
    assert torch.equal(session.run(choice), first), "what was added must not stay"


def test_dora_takes_what_is_before_it_with_it(tmp_path, pair, reads):
    """It depends on the weight with all changes before it, so that none of these can stand beside."""
    session, choices = Session(pair), (lora(tmp_path, "kohya"), lora(tmp_path, "dora"))
    session.run(choices[0])
    assert session.experts.transformers[Expert.HIGH].blocks[0].ffn[0].adapter is not None
    reads.clear()
    session.run(*choices)
    assert reads[HIGH] == 20
    assert all(arrange(choices, expert, "beside").beside == {} for expert in Expert)


def test_a_lora_more_or_less_does_not_read_the_experts_again(tmp_path, pair, reads):
    session, one, other = Session(pair), lora(tmp_path, "kohya"), lora(tmp_path, "bare", 0.5)
    bare = session.run()
    reads.clear()
    results = [session.run(one), session.run(one, other), session.run(other)]
    assert reads.keys() == {"lora"}
    assert torch.equal(session.run(), bare)
    for result, loras in zip(results, ((one,), (one, other), (other,)), strict=True):
        assert close(result, Session(pair).run(*loras)) and not close(result, bare)


def test_merged_loras_leave_nothing_behind_when_they_go(tmp_path, pair, reads):
    session, choice = Session(pair, "merged"), lora(tmp_path, "kohya")
    bare = session.run()
    session.run(choice)
    reads.clear()
    assert torch.equal(session.run(), bare)
    assert reads[HIGH] == 20


def test_the_other_expert_follows_when_its_turn_comes(tmp_path, pair):
    session, choice = Session(pair), lora(tmp_path, "kohya")
    session.run(choice)
    session.run(with_strength(choice, 0.25))
    low = session.run(with_strength(choice, 0.25), expert=Expert.LOW)
    assert close(low, Session(pair).run(with_strength(choice, 0.25), expert=Expert.LOW))


def test_adapters_move_and_are_dropped_with_the_weights(tmp_path, pair):
    session, choice = Session(pair), lora(tmp_path, "comfyui")
    before = session.run(choice)
    weights = session.experts.weights[Expert.HIGH]
    held = [*weights.module.parameters(), *weights.module.buffers()]
    assert 0 <= weights.nbytes - sum(tensor.nbytes for tensor in held) < 256 * len(held), "each starts at 256 bytes"
    weights.to_host()
    weights.to_device()
    assert torch.equal(session.velocity(Expert.HIGH), before)
    weights.drop()
    assert all(tensor.is_meta for tensor in (*weights.module.parameters(), *weights.module.buffers()))
    assert torch.equal(session.run(choice), before)


def test_an_interrupted_load_leaves_nothing_half_loaded(tmp_path, pair):
    session, choice = Session(pair), lora(tmp_path, "kohya")
    expected = Session(pair).run(choice)
    plan_pair = replace(pair, loras=(choice,))
    experts = build_experts(planned(plan_pair, "auto").binding, plan_pair, Hardware.detect("cpu"))
    weights = experts.weights[Expert.HIGH]

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise Interrupted("stopped while loading")

    with pytest.raises(Interrupted):
        weights.to_device(stop)
    assert weights.place is Place.FILE
    assert all(tensor.is_meta for tensor in (*weights.module.parameters(), *weights.module.buffers()))
    session.experts = experts
    assert torch.equal(session.run(choice), expected)


@pytest.mark.parametrize("application", ["beside", "merged"])
def test_a_lora_file_that_changes_under_a_run_is_refused_and_leaves_no_mixture(tmp_path, pair, application):
    session, choice = Session(pair, application), lora(tmp_path, "kohya")
    session.run(choice)
    path = choice.high.path
    path.write_bytes(path.read_bytes() + b" ")
    if application == "beside":
        # What is in memory is all that is needed; the file matters when it is opened again.
        session.run(with_strength(choice, 0.3))
        return
    with pytest.raises(CheckpointError, match="has changed since it was opened"):
        session.run(with_strength(choice, 0.3))
    assert session.experts.weights[Expert.HIGH].place is Place.FILE


def test_the_key_knows_the_files_and_the_application_and_no_strength(tmp_path, pair):
    choice = lora(tmp_path, "kohya")
    keys = {
        "none": planned(pair, "auto").key,
        "lora": planned(pair.with_lora(choice), "auto").key,
        "twice": planned(pair.with_lora(choice).with_lora(choice), "auto").key,
        "merged": planned(pair.with_lora(choice), "merged").key,
        "swapped": planned(pair.with_lora(replace(choice, high=choice.low, low=choice.high)), "auto").key,
        "one": planned(pair.with_lora(replace(choice, low=None)), "auto").key,
    }
    assert len(set(keys.values())) == len(keys)
    assert planned(pair.with_lora(with_strength(choice, 0.1)), "auto").key == keys["lora"]
    assert planned(pair, "merged").key == keys["none"], "without LoRAs there is nothing to apply"


def test_in_bfloat16_merging_rounds_once(tmp_path, pair):
    choice = lora(tmp_path, "kohya", 0.1)
    plan_pair = replace(pair, loras=(choice,))
    profile = preset("cpu").with_settings({"lora.application": "merged", "precision.weights": "bfloat16"})
    workload = Workload(request=SampleRequest(recipe=recipe("official")), latent_size=GRID, loras=(choice,))
    plan = resolve(profile, Hardware.detect("cpu"), pair.spec, workload)
    experts = build_experts(plan.binding, plan_pair, Hardware.detect("cpu"))
    experts.weights[Expert.HIGH].to_device()
    name = "blocks.1.ffn.0.weight"
    _, writer = write_lora(tmp_path / "again", "kohya", TRANSFORMER, Expert.HIGH)
    expected = writer.merged({key: pair.high.load(key) for key in pair.high.tensors}, 0.1)[name]
    parameter = experts.transformers[Expert.HIGH].get_parameter(name)
    assert parameter.dtype == torch.bfloat16
    assert (parameter == expected.bfloat16()).float().mean() > 0.999
