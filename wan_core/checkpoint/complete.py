"""Whether a checkpoint holds exactly the tensors that its model needs, in their shapes."""

import re
from collections.abc import Collection

from ..errors import CheckpointError
from .inventory import Shapes
from .keys import Kind
from .locate import is_shard
from .read import Checkpoint
from .sentences import counted, quoted

# A file with a layer number beyond this is damaged, and the list of what it lacks would be endless.
_MAX_LAYERS = 1000


def num_layers(checkpoint: Checkpoint, prefix: str) -> int:
    """One more than the highest layer number of the names that begin with `prefix`, a dot, a number and a dot."""
    pattern = re.compile(re.escape(prefix) + r"\.([0-9]{1,4})\.")
    numbers = [int(match[1]) for match in map(pattern.match, checkpoint.tensors) if match]
    return min(max(numbers, default=-1) + 1, _MAX_LAYERS)


def shape_of(checkpoint: Checkpoint, name: str, rank: int) -> tuple[int, ...]:
    """Shape of a tensor that dimensions are read from; raises `CheckpointError` where there is none of that rank."""
    info = checkpoint.tensors.get(name)
    if info is None:
        raise CheckpointError(
            f"{checkpoint.label} is incomplete: tensor {quoted(name)} is missing{_shard_hint(checkpoint)}"
        )
    if len(info.shape) != rank or 0 in info.shape:
        raise CheckpointError(
            f"tensor {quoted(name)} of {checkpoint.label} has shape {info.shape}, expected {rank} sizes"
        )
    return info.shape


def expect_names(checkpoint: Checkpoint, expected: Collection[str], what: str) -> None:
    """Raise `CheckpointError` with the number of absent tensors, and the first of them."""
    if missing := [name for name in expected if name not in checkpoint.tensors]:
        raise CheckpointError(
            f"{checkpoint.label} is incomplete: it lacks {len(missing)} of the {len(expected)} tensors of {what}, the "
            f"first is {quoted(missing[0])}{_shard_hint(checkpoint)}"
        )


def expect_exactly(
    checkpoint: Checkpoint, kind: Kind, expected: Shapes, what: str, extras: Collection[str] = ()
) -> None:
    """Raise `CheckpointError` for absent tensors, for other shapes, and for tensors that neither list names."""
    expect_names(checkpoint, expected.keys(), what)
    tensors = checkpoint.tensors_of(kind)
    if wrong := [name for name, shape in expected.items() if checkpoint.tensors[name].shape != shape]:
        first = wrong[0]
        raise CheckpointError(
            f"{checkpoint.label} has {counted(len(wrong), 'tensor')} of the wrong shape, the first is {quoted(first)}: "
            f"{checkpoint.tensors[first].shape}, expected {expected[first]}"
        )
    if strange := [name for name in tensors if name not in expected and name not in extras]:
        raise CheckpointError(
            f"{checkpoint.label} holds {counted(len(strange), 'tensor')} that {what} does not have, the first is "
            f"{quoted(strange[0])}"
        )


def _shard_hint(checkpoint: Checkpoint) -> str:
    if checkpoint.layout == "file" and is_shard(checkpoint.path):
        return "; it is one shard of several, give their folder"
    return ""
