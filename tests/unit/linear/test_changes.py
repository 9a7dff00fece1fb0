"""The algebra of weight changes against products written out entry by entry."""

import pytest
import torch
from torch import Tensor

from wan_core.linear.changes import decomposed, full_change, kronecker_factors, low_rank_factors

OUT, IN, RANK = 6, 8, 3


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_low_rank_is_up_times_down_whatever_convolution_it_is_stored_as():
    down, up = random(RANK, 2, 1, 2, 2), random(OUT, RANK, 1, 1, 1)
    change = full_change("low-rank", {"down": down, "up": up})
    expected = torch.zeros(OUT, IN)
    for i in range(OUT):
        for j in range(IN):
            expected[i, j] = sum(up[i, r, 0, 0, 0] * down[r].reshape(-1)[j] for r in range(RANK))
    assert torch.allclose(change, expected, atol=1e-6)


def test_lokr_is_every_entry_of_the_one_times_the_whole_other():
    w1, w2 = random(2, 4), random(3, 2)
    change = full_change("lokr", {"w1": w1, "w2": w2})
    expected = torch.zeros(OUT, IN)
    for i in range(OUT):
        for j in range(IN):
            expected[i, j] = w1[i // 3, j // 2] * w2[i % 3, j % 2]
    assert torch.equal(change, expected)


@pytest.mark.parametrize("stored", [("w1", "w2_a", "w2_b"), ("w1_a", "w1_b", "w2"), ("w1_a", "w1_b", "w2_a", "w2_b")])
def test_lokr_factors_may_be_products(stored):
    shapes = {"w1": (2, 4), "w1_a": (2, 1), "w1_b": (1, 4), "w2": (3, 2), "w2_a": (3, 5), "w2_b": (5, 2)}
    parts = {name: random(*shapes[name]) for name in stored}
    first, second = kronecker_factors(parts)
    assert (first.shape, second.shape) == ((2, 4), (3, 2))
    if "w2_a" in parts:
        assert torch.equal(second, parts["w2_a"] @ parts["w2_b"])


def test_loha_is_of_rank_squared():
    parts = {"w1_a": random(OUT, RANK), "w1_b": random(RANK, IN), "w2_a": random(OUT, 2), "w2_b": random(2, IN)}
    down, up = low_rank_factors("loha", parts)
    assert down.shape == (RANK * 2, IN) and up.shape == (OUT, RANK * 2)
    expected = (parts["w1_a"] @ parts["w1_b"]) * (parts["w2_a"] @ parts["w2_b"])
    assert torch.allclose(up @ down, expected, atol=1e-5)
    assert torch.equal(full_change("loha", parts), expected)


def test_dora_gives_every_output_feature_its_magnitude():
    weight, change, magnitude = random(OUT, IN), random(OUT, IN), random(OUT, 1).abs()
    result = decomposed(weight, change, magnitude)
    assert torch.allclose(result.norm(dim=1), magnitude[:, 0], rtol=1e-5)
    moved = weight + change
    assert torch.allclose(result / result.norm(dim=1, keepdim=True), moved / moved.norm(dim=1, keepdim=True), atol=1e-6)
    # PEFT stores it without the second axis.
    assert torch.equal(decomposed(weight, change, magnitude[:, 0]), result)


def test_dora_of_a_row_is_per_input_feature():
    weight, change, magnitude = random(IN, IN), random(IN, IN).mul(0.1), random(1, IN).abs()
    result = decomposed(weight, change, magnitude)
    assert torch.allclose(result.norm(dim=0), magnitude[0], rtol=1e-5)
    assert not torch.allclose(result, decomposed(weight, change, magnitude.T))


def test_dora_without_a_change_and_with_its_own_norm_is_the_weight():
    weight = random(OUT, IN)
    same = decomposed(weight, torch.zeros_like(weight), weight.norm(dim=1, keepdim=True))
    assert torch.allclose(same, weight, atol=1e-6)
