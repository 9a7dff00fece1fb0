"""What the parts of one change amount to by their shapes alone: its kind, its size and its rank.

A change is complete or it is refused: half of a product is a damaged file. Parts of convolutions in Tucker form are
not applied; no layer of the transformer is a convolution that LoRAs are trained on in that form.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import CheckpointError
from ..linear.changes import ChangeKind
from .header import TensorInfo

Parts = Mapping[str, TensorInfo]

_TUCKER = ("mid", "t2", "hada_t1", "hada_t2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A complete change. shape: (out, in) of a product; that of its tensor for a diff. rank: 0 where there is none."""

    kind: ChangeKind
    parts: Parts
    shape: tuple[int, ...]
    rank: int
    magnitude: TensorInfo | None = None


def measure(parts: Parts, what: str) -> tuple[Measure, ...]:
    """The changes that these parts make, mostly one: a product, a diff, or both.

    None where there are only alphas and magnitudes. Raises `CheckpointError` about `what`, the subject of its sentence,
    where parts are missing or do not go together.
    """
    left = {role: info for role, info in parts.items() if role not in ("alpha", "magnitude")}
    if tucker := [role for role in _TUCKER if role in left]:
        raise CheckpointError(f"{what} is in Tucker form (it has {tucker[0]}), expected a plain product")
    found: list[Measure] = []
    for measure_kind in (_low_rank, _lokr, _loha, _diff):
        if (each := measure_kind(left, what)) is not None:
            found.append(each)
            left = {role: info for role, info in left.items() if role not in each.parts}
    if left:
        raise CheckpointError(f"{what} is incomplete: it has {' and '.join(sorted(left))} but not what belongs to it")
    if "magnitude" in parts and found:
        found[0] = _with_magnitude(found[0], parts["magnitude"], what)
    return tuple(found)


def kronecker_shapes(parts: Parts) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of the two matrices of a measured Kronecker product, multiplied out."""
    (first, _, _), (second, _, _) = (_factor(parts, name, "") for name in ("w1", "w2"))
    return first, second


def _low_rank(parts: Parts, what: str) -> Measure | None:
    if not {"down", "up"} <= parts.keys():
        return None
    down, up = parts["down"].shape, parts["up"].shape
    _expect(len(down) >= 2 and len(up) >= 2 and min(down) > 0 and min(up) > 0, what, "down", down, "up", up)
    rank = down[0]
    _expect(math.prod(up[1:]) == rank, what, "down", down, "up", up)
    return Measure(kind="low-rank", parts=_only(parts, ("down", "up")), shape=(up[0], math.prod(down[1:])), rank=rank)


def _lokr(parts: Parts, what: str) -> Measure | None:
    factors = [_factor(parts, name, what) for name in ("w1", "w2")]
    if None in factors:
        return None
    (first, first_roles, _), (second, second_roles, _) = factors
    ranks = [rank for _, _, rank in factors if rank]
    return Measure(
        kind="lokr",
        parts=_only(parts, (*first_roles, *second_roles)),
        shape=(first[0] * second[0], first[1] * second[1]),
        # LyCORIS: alpha counts against the rank of what is a product, of the second factor first.
        rank=ranks[-1] if ranks else 0,
    )


def _factor(parts: Parts, name: str, what: str) -> tuple[tuple[int, int], tuple[str, ...], int] | None:
    """Shape, roles and rank (0 for a whole matrix) of one side of a Kronecker product."""
    if name in parts:
        shape = parts[name].shape
        _expect(len(shape) == 2 and min(shape) > 0, what, name, shape)
        return shape, (name,), 0
    if not {f"{name}_a", f"{name}_b"} <= parts.keys():
        return None
    return _product(parts, f"{name}_a", f"{name}_b", what)


def _product(parts: Parts, first: str, second: str, what: str) -> tuple[tuple[int, int], tuple[str, ...], int]:
    a, b = parts[first].shape, parts[second].shape
    fits = len(a) == len(b) == 2 and min(*a, *b) > 0 and a[1] == b[0]
    _expect(fits, what, first, a, second, b)
    return (a[0], b[1]), (first, second), a[1]


def _loha(parts: Parts, what: str) -> Measure | None:
    roles = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    if not set(roles) <= parts.keys():
        return None
    (one, _, rank), (other, _, _) = _product(parts, *roles[:2], what), _product(parts, *roles[2:], what)
    _expect(one == other, what, roles[0], parts[roles[0]].shape, roles[2], parts[roles[2]].shape)
    return Measure(kind="loha", parts=_only(parts, roles), shape=one, rank=rank)


def _diff(parts: Parts, what: str) -> Measure | None:
    role = next((role for role in ("diff", "up_bias") if role in parts), None)
    if role is None:
        return None
    return Measure(kind="diff", parts=_only(parts, (role,)), shape=parts[role].shape, rank=0)


def _with_magnitude(found: Measure, magnitude: TensorInfo, what: str) -> Measure:
    size = math.prod(magnitude.shape)
    per_input = len(magnitude.shape) > 1 and magnitude.shape[0] == 1
    axis = 1 if per_input else 0
    _expect(found.kind != "diff" and size == found.shape[axis], what, "magnitude", magnitude.shape)
    return Measure(kind=found.kind, parts=found.parts, shape=found.shape, rank=found.rank, magnitude=magnitude)


def _only(parts: Parts, roles: tuple[str, ...]) -> Parts:
    return {role: parts[role] for role in roles}


def _expect(holds: bool, what: str, *shapes: str | tuple[int, ...]) -> None:  # noqa: FBT001 (it reads like an assert)
    if not holds:
        listed = ", ".join(f"{role} {shape}" for role, shape in zip(shapes[::2], shapes[1::2], strict=True))
        raise CheckpointError(f"{what} has parts that do not go together: {listed}")
