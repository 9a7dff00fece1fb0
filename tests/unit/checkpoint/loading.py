"""A module filled from a checkpoint as the product fills its own: typed, then its weights brought to the device."""

from collections.abc import Callable

import torch
from torch import nn

from wan_core.build import typed
from wan_core.checkpoint.load import ParameterSource
from wan_core.checkpoint.read import Checkpoint
from wan_core.offload.weights import OnBytes, Weights


def load(
    module: nn.Module,
    checkpoint: Checkpoint,
    dtype_of: Callable[[str], torch.dtype],
    *,
    device: str = "cpu",
    on_progress: OnBytes | None = None,
) -> None:
    """Give every parameter of a module on the meta device its value, in the dtype of its name."""
    fill = ParameterSource(typed(module, dtype_of), checkpoint, device).fill
    dtype = next(module.parameters()).dtype
    Weights(module, fill, device=device, dtype=dtype).to_device(on_progress)
