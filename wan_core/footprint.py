"""How many bytes the parts of a run take, from their dimensions alone; activations are counted in `activations.py`.

What is predicted is `torch.cuda.max_memory_allocated`, to the rounding of PyTorch's allocator. What a process takes of
the card is more: the allocator reserves pieces that it cannot fill, and the driver holds a context. A plan leaves
`SLACK_BYTES` for that, on top of what it predicts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from .activations import DTYPE_BYTES
from .checkpoint.inventory import Shape, Shapes, text_encoder_shapes, transformer_shapes, vae_shapes
from .models.transformer import wants_float32
from .specs import TextEncoderSpec, TransformerSpec, VaeSpec
from .storage import NOTHING_STORED, StoredLayers

# Name and shape of a tensor -> bytes of what is kept of it, piece by piece.
Pieces = Callable[[str, Shape], tuple[int, ...]]

# The allocator's unfilled pieces, and kernels that the driver loads when they are first launched.
SLACK_BYTES = 1 << 30
# Of the activations, what the rests of segments of fixed size come to (one H200: 0.25 to 0.5; docs/LOG.md, 2026-11-21).
FIXED_SEGMENTS_SHARE = 0.4
# cuBLAS and cuBLASLt take 32 MiB each from PyTorch's allocator on Hopper, less before it.
WORKSPACE_BYTES = 64 << 20
# Sampling beside that: the rounding of some twenty activations, keys and values of the text while they are made.
ROUNDING_BYTES = 192 << 20
# What a decode may hold beside the tensors that are counted (one H200: 1 MiB); and what its forty larger ones may take
# beyond their size in segments of fixed size, at most 1 MiB each (`allocated`).
DECODE_ROUNDING_BYTES = 16 << 20
DECODE_SEGMENTS_BYTES = 32 << 20
# Latents that live while a forward runs: the one it was given, the solver's history of three, the same of the step
# before in case this one has to be redone, the first of two velocities, the noise, and what watchers hold.
_NUM_LATENTS = 16
# Latents that the journal of a run keeps until its video is written: the last position, and the solver's history.
_NUM_KEPT_LATENTS = 4
# Weights move in units, a block or what is left; inside a unit tensors start at multiples of this.
_ALIGNMENT = 256
_NUM_BUFFERS = 2
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSizes:
    """Bytes of a module's weights, by the units that they move in: its blocks, and the rest."""

    blocks: tuple[int, ...]
    rest: int

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def block(self) -> int:
        """The largest block; all are equal, unless a file stores them in different ways and they stay like that."""
        return max(self.blocks, default=0)

    @property
    def total(self) -> int:
        return self.rest + sum(self.blocks)

    def streamed(self, num_blocks: int) -> int:
        """What passes through in one forward: the last blocks."""
        return sum(self.blocks[len(self.blocks) - num_blocks :])

    def on_device(self, streamed_blocks: int = 0) -> int:
        """What the device holds while the module runs: streamed blocks pass through two buffers, each of one block."""
        return self.total - self.streamed(streamed_blocks) + self.buffers(streamed_blocks)

    def buffers(self, streamed_blocks: int) -> int:
        """What of that is there for a run only."""
        largest = max(self.blocks[len(self.blocks) - streamed_blocks :], default=0)
        return min(streamed_blocks, _NUM_BUFFERS) * largest


def expert_sizes(spec: TransformerSpec, dtype: str, stored: StoredLayers = NOTHING_STORED) -> UnitSizes:
    """Weights of one expert; what stays in float32 does so whatever the dtype. stored: what stays in its codes."""
    codings = {f"{layer}.weight": coding for layer, coding in stored.codings}

    def pieces(name: str, shape: Shape) -> tuple[int, ...]:
        if coding := codings.get(name):
            return coding.piece_bytes(shape)
        return (math.prod(shape) * (4 if wants_float32(name) else DTYPE_BYTES[dtype]),)

    return _units(transformer_shapes(spec), pieces, spec.num_layers)


def text_encoder_sizes(spec: TextEncoderSpec, dtype: str) -> UnitSizes:
    """Weights of the text encoder."""
    return _units(text_encoder_shapes(spec), _all_in(dtype), spec.num_layers)


def vae_bytes(spec: VaeSpec, dtype: str) -> int:
    """Weights of the VAE, encoder and decoder."""
    return _units(vae_shapes(spec), _all_in(dtype), 0).total


def text_context_bytes(spec: TransformerSpec, num_prompts: int, dtype: str) -> int:
    """Keys and values of every cross attention, kept for as long as an expert runs."""
    return num_prompts * spec.num_layers * 2 * spec.text_len * spec.dim * DTYPE_BYTES[dtype]


def text_forward_bytes(spec: TextEncoderSpec, dtype: str) -> int:
    """Activations of the text encoder at 512 tokens: the hidden layers of a block, the scores' bias, four streams."""
    length, narrow = 512, DTYPE_BYTES[dtype]
    hidden = 3 * length * spec.ffn_dim * narrow
    bias = 3 * spec.num_heads * length * length * narrow
    return hidden + bias + 6 * length * spec.dim * 4


def frames_bytes(spec: VaeSpec, latent_size: tuple[int, int, int]) -> int:
    """A chunk of frames on its way to the host, in float32 (as ComfyUI's IMAGE has them)."""
    in_time, *in_space = spec.stride
    _, height, width = latent_size
    return 3 * in_time * height * width * math.prod(in_space) * 4


def latents_bytes(spec: TransformerSpec, latent_size: tuple[int, int, int], batch: int) -> int:
    """Latents of a run, float32 on the device."""
    return _NUM_LATENTS * batch * _latent_bytes(spec, latent_size)


def kept_bytes(spec: TransformerSpec, latent_size: tuple[int, int, int], batch: int) -> int:
    """What sampling leaves on the device until the video is written: its journal's position, and two prompts."""
    prompts = 2 * spec.text_len * spec.text_dim * 4
    return _NUM_KEPT_LATENTS * batch * _latent_bytes(spec, latent_size) + prompts


def allocated(nbytes: int) -> int:
    """What PyTorch's allocator takes for a tensor: pieces from 10 MiB on come in steps of 2 MiB.

    A piece is cut to size only where more than 1 MiB would be left.
    """
    exact = _round_up(nbytes, 512)
    if exact < 10 * _MIB:
        return exact
    piece = _round_up(exact, 2 * _MIB)
    return piece if piece - exact <= _MIB else exact


def _latent_bytes(spec: TransformerSpec, latent_size: tuple[int, int, int]) -> int:
    return spec.out_dim * math.prod(latent_size) * 4


def _all_in(dtype: str) -> Pieces:
    return lambda name, shape: (math.prod(shape) * DTYPE_BYTES[dtype],)


def _units(shapes: Shapes, pieces: Pieces, num_blocks: int) -> UnitSizes:
    blocks, rest = [0] * num_blocks, 0
    for name, shape in shapes.items():
        nbytes = sum(_round_up(piece, _ALIGNMENT) for piece in pieces(name, shape))
        if num_blocks and name.startswith("blocks."):
            blocks[int(name.split(".", 2)[1])] += nbytes
        else:
            rest += nbytes
    return UnitSizes(blocks=tuple(map(allocated, blocks)), rest=allocated(rest))


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
