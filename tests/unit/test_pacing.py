"""Stopping between blocks, and nothing left behind on them."""

import pytest
import torch
from torch import nn

from wan_core.errors import Interrupted
from wan_core.pacing import Pacer


def test_stops_before_the_next_block_and_removes_its_hooks():
    blocks = nn.ModuleList(nn.Identity() for _ in range(4))
    ran, x = [], torch.zeros(1)
    with pytest.raises(Interrupted), Pacer(blocks, lambda: len(ran) == 2):
        for index, block in enumerate(blocks):
            block(x)
            ran.append(index)
    assert ran == [0, 1]
    assert not any(block._forward_pre_hooks for block in blocks)


def test_lets_a_run_pass():
    block = nn.Identity()
    with Pacer([block], lambda: False):
        assert torch.equal(block(torch.ones(2)), torch.ones(2))
