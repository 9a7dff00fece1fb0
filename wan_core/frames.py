"""Decoded frames on their way to the host, while the device goes on with the next ones.

A chunk is brought into its consumer's form on the device, where that costs nothing beside decoding, and is then copied
to page-locked memory on a stream of its own. What is handed out is the chunk before: by then it has long arrived, and
the device has its next work already. On a CPU nothing is copied and nothing lags.

Layout: inside the core a video is (B, 3, T, H, W) in [-1, 1]; here frames are (B, T, H, W, 3).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

Form = Callable[[Tensor], Tensor]


def levels(chunk: Tensor) -> Tensor:
    """Frames (B, T, H, W, 3) uint8 of video (B, 3, T, H, W) in [-1, 1]; values outside are clipped."""
    # Rounded, not truncated: truncation darkens every picture by half a level. float32 first: bfloat16 has 8 bits.
    rounded = chunk.float().add(1.0).mul_(127.5).round_().clamp_(0.0, 255.0).to(torch.uint8)
    return rearrange(rounded, "B C T H W -> B T H W C").contiguous()


def fractions(chunk: Tensor) -> Tensor:
    """Frames (B, T, H, W, 3) float32 in [0, 1] of video (B, 3, T, H, W) in [-1, 1], as ComfyUI's IMAGE has them."""
    scaled = chunk.float().add(1.0).mul_(0.5).clamp_(0.0, 1.0)
    return rearrange(scaled, "B C T H W -> B T H W C").contiguous()


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy that is under way; `arrived` is `None` for one that needs no waiting."""

    frames: Tensor
    arrived: torch.cuda.Event | None

    def wait(self) -> Tensor:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.frames


def on_host(chunks: Iterable[Tensor], form: Form) -> Iterator[Tensor]:
    """Chunks of a decoder in the given form, in host memory and in their order, one chunk behind on a device."""
    stream: torch.cuda.Stream | None = None
    waiting: _Copy | None = None
    for chunk in chunks:
        frames = form(chunk)
        del chunk
        if not frames.is_cuda:
            yield frames
            continue
        stream = stream or torch.cuda.Stream(frames.device)
        copy = _start(frames, stream)
        if waiting is not None:
            yield waiting.wait()
        waiting = copy
    if waiting is not None:
        yield waiting.wait()


def _start(frames: Tensor, stream: torch.cuda.Stream) -> _Copy:
    host, arrived = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=True), torch.cuda.Event()
    stream.wait_stream(torch.cuda.current_stream(frames.device))
    with torch.cuda.stream(stream):
        host.copy_(frames, non_blocking=True)
        arrived.record(stream)
    frames.record_stream(stream)  # its memory must not be given away before the copy is done
    return _Copy(host, arrived)
