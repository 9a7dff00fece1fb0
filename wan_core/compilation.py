"""Regional compilation: one graph for the block, shared by all blocks of both experts.

Only `forward` is compiled, not the module call, so that hooks on blocks (pacing, offload) stay outside the graph.
Blocks of one shape differ only in their parameters, which are inputs of the graph, so the first block compiles and the
others reuse it.
"""

from collections.abc import Iterable

import torch
from torch import nn


def compile_blocks(blocks: Iterable[nn.Module], *, dynamic: bool | None = False) -> None:
    """Compile the forward of every block, in place; the first call of each shape pays for it.

    dynamic: `False` makes one graph per shape, `True` one for all lengths.
    """
    for block in blocks:
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=dynamic)
