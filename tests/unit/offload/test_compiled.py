"""Compiled blocks whose weights come and go: one graph, whatever addresses they have."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.unit.offload.modules import DIM, tower
from wan_core.offload.residency import TakeTurns


@pytest.mark.parametrize("streamed", [0, 3])
def test_one_graph_serves_blocks_that_move(streamed):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    weights = {name: tower(4, seed, streamed=streamed)[0] for seed, name in enumerate("ab")}
    for each in weights.values():
        for block in each.module.blocks:
            block.forward = torch.compile(block.forward, backend=counter, fullgraph=True, dynamic=False)
    residency = TakeTurns(weights)
    with torch.inference_mode():
        for _ in range(2):
            for name, other in ("ab", "ba"):
                residency.activate(name, lambda what, done, total: None, later="ab")
                module = weights[name].module
                with residency.single_layers(name):
                    text = module.prepare(torch.ones(DIM))
                residency.prepare(other, 1)
                assert module(torch.ones(DIM), text).isfinite().all()
            residency.release()
    assert counter.frame_count == 1
    torch._dynamo.reset()
