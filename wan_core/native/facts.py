"""What the host has read off its own model."""

from dataclasses import dataclass

from ..report import Rejection


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeModel:
    """A host's transformer.

    num_blocks: in all. left: blocks, or self attentions of blocks, that are not as we know them, each with the reason.
    compiled_whole: another node compiles the model. has_override: another node has taken over attention.
    """

    name: str
    num_blocks: int
    num_heads: int
    head_dim: int
    dtype: str
    left: tuple[Rejection, ...] = ()
    compiled_whole: bool = False
    has_override: bool = False
