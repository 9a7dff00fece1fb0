"""A second queue of the device, on which weights arrive while the first one computes.

The order is told by events on the device; the host waits for neither queue. On a CPU, where a copy is done when it
returns, every copy arrives at once.
"""

from collections.abc import Callable

import torch

Arrival = torch.cuda.Event | None


class CopyLane:
    """Copies to `device` beside its current stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._home = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def send(self, copy: Callable[[], None]) -> Arrival:
        """Queue a copy behind everything that is queued for computing by now, and behind all copies before it."""
        if self._stream is None:
            copy()
            return None
        # Two passes of guidance may run on two streams, block by block; what one has used, the other may be using.
        for computing in {self._home, torch.cuda.current_stream(self._device)}:
            self._stream.wait_stream(computing)
        with torch.cuda.stream(self._stream):
            copy()
            return self._stream.record_event()

    def wait_for(self, arrival: Arrival) -> None:
        """What is queued for computing from now on finds that copy done."""
        if arrival is not None:
            torch.cuda.current_stream(self._device).wait_event(arrival)

    def wait(self) -> None:
        """What is queued for computing from now on finds all copies done; also its memory may be freed then."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
