"""Our forward of ComfyUI's Wan blocks against its own; the scenes are played by `probe_blocks.py` in its Python."""

import pytest


@pytest.fixture(scope="module")
def scenes(probed: dict[str, dict]) -> dict[str, dict]:
    return probed["blocks"]


def test_the_same_block(scenes: dict[str, dict]) -> None:
    errors = scenes["see_equal"]
    assert 0 < errors.pop("bfloat16") <= 1e-2
    # What is left to the host whole is the same to the bit, what is ours to rounding: so it is seen which is which.
    left = {name for name, error in errors.items() if error == 0}
    assert left == {"patched", "patched after"}
    assert all(error <= 1e-6 for error in errors.values()), errors


def test_patched_weights_that_are_cast_on_the_way(scenes: dict[str, dict]) -> None:
    """As on a card that holds a part of the weights only: patches are then functions that run at each call."""
    seen = scenes["see_weights"]
    assert seen["functions"] == {"lowvram": 1, "whole": 0}
    assert seen["distances"].pop("bare") > 0.1
    assert all(distance <= 1e-6 for distance in seen["distances"].values()), seen["distances"]


def test_another_formula_is_found_out_before_it_matters(scenes: dict[str, dict]) -> None:
    seen = scenes["see_trial"]
    assert seen.pop("nan") is False
    assert seen == {f"torch.{name}": [True, False] for name in ("float32", "bfloat16", "float16")}


def test_what_is_not_as_we_know_it_keeps_its_forward(scenes: dict[str, dict]) -> None:
    seen = scenes["see_left_alone"]
    assert seen["own"] == seen["put back"] == "None"
    assert seen["replaced"] == "replaced by another node"
    assert seen["no norm"] == "queries and keys are not normed as we know it"
    assert seen["other kind"] == "of another kind than we know"


def test_every_forward_is_put_back_also_after_an_interrupt(scenes: dict[str, dict]) -> None:
    seen = scenes["see_left_alone"]
    assert seen["during"] == ["partial", "partial"]
    assert seen["after"] == [True, False], "the one that had its own has it again, the other one has none"
