"""A state on disk: what is written is what is read, and anything else is refused in one sentence."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wan_core.errors import CheckpointError, InputError
from wan_core.profiles import preset
from wan_core.recovery.identity import other_ways, refuse_another, run_key
from wan_core.recovery.state import Facts, Position, RunState, read_state, write_state
from wan_core.sampling.solvers import History

FACTS = Facts(what={"model": "a", "seed": "3"}, how={"self attention": "flash"}, driver={"prompt": "a circle"})


def state(next_step: int = 2, facts: Facts = FACTS) -> RunState:
    draw = torch.Generator().manual_seed(0)
    latent, *rest = (torch.randn(1, 16, 2, 4, 4, generator=draw) for _ in range(4))
    history = History((rest[0], rest[1]), rest[2])
    return RunState(
        facts=facts,
        num_steps=6,
        position=Position(next_step=next_step, latent=latent, history=history),
        prompts={"positive": torch.ones(1, 3, 4), "negative": torch.zeros(1, 3, 4)},
    )


def test_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = state()
    write_state(tmp_path / "run.safetensors", saved)
    found = read_state(tmp_path / "run.safetensors")
    assert found.facts == saved.facts and (found.num_steps, found.position.next_step) == (6, 2)
    assert not found.is_sampled and found.describe() == "2 of 6 steps done"
    mine, theirs = saved.position.tensors(), found.position.tensors()
    assert mine.keys() == theirs.keys() == {"latent", "history.denoised.0", "history.denoised.1", "history.origin"}
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert torch.equal(found.prompts["positive"], torch.ones(1, 3, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]


def test_tensors_of_inference_mode_can_be_saved(tmp_path: Path) -> None:
    with torch.inference_mode():
        latent = torch.ones(1, 16, 2, 4, 4) * 2
    position = Position(next_step=6, latent=latent)
    write_state(tmp_path / "run.safetensors", RunState(facts=FACTS, num_steps=6, position=position, prompts={}))
    found = read_state(tmp_path / "run.safetensors")
    assert found.is_sampled and torch.equal(found.position.latent, latent)


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({}, "is no saved run"),
        ({"wan_velocity": "not JSON"}, "cannot be read as a saved run"),
        ({"wan_velocity": json.dumps({"format": "wan_velocity.run.99"})}, "is no saved run of this version"),
        ({"wan_velocity": json.dumps({"format": "wan_velocity.run.1", "what": {}})}, "lacks 'how'"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, metadata: dict[str, str], sentence: str) -> None:
    save_file({"latent": torch.zeros(1)}, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=sentence):
        read_state(tmp_path / "x.safetensors")


def test_a_broken_and_an_absent_file_are_refused(tmp_path: Path) -> None:
    write_state(tmp_path / "run.safetensors", state())
    whole = (tmp_path / "run.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be read as a saved run"):
        read_state(tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match="there is no saved run"):
        read_state(tmp_path / "none.safetensors")


def test_an_unwritable_place_is_one_sentence_and_leaves_the_old_state(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        write_state(tmp_path / "no folder" / "run.safetensors", state())


def test_another_run_is_refused_by_the_fact_that_differs() -> None:
    saved = state()
    refuse_another(saved, FACTS)
    with pytest.raises(InputError, match="another one: seed 3 there, 4 here; give"):
        refuse_another(saved, Facts(what={"model": "a", "seed": "4"}, how={}))
    with pytest.raises(InputError, match="another one: not the same model; give"):
        refuse_another(saved, Facts(what={"model": "b", "seed": "3"}, how={}))


def test_another_way_is_told() -> None:
    assert other_ways(state(), FACTS) is None
    told = other_ways(state(), Facts(what=FACTS.what, how={"self attention": "cudnn"}))
    assert "self attention cudnn instead of flash" in told


def test_the_key_is_of_what_is_made_and_asked_not_of_where_it_is_placed() -> None:
    key = run_key(FACTS, preset("auto"))
    assert key == run_key(FACTS, preset("auto").with_settings({"offload.policy": "experts"}))
    assert key != run_key(FACTS, preset("auto").with_settings({"compile.mode": "default"}))
    assert key != run_key(Facts(what={"model": "a", "seed": "4"}, how=FACTS.how), preset("auto"))
