"""TF32 for the duration of a run: set, and put back as it was, whatever the host had chosen."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tf32(*, enabled: bool) -> Iterator[None]:
    """Allow or forbid TF32 in float32 matrix products and convolutions on CUDA inside the block."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
