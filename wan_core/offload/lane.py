"""A second queue of the device, on which weights arrive while the first one computes.

The order is told by events on the device, and the host waits for neither queue. Where a copy keeps the host busy (it
reads a file), a thread does it, so that the host goes on feeding the device meanwhile. On a CPU a copy is done when it
returns.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

# What it takes for a copy to be there: the host's part (which may fail), then the event behind the device's part.
Arrival = Future["torch.cuda.Event | None"]


class CopyLane:
    """Copies to `device` beside its current stream, for the time of one run."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._home = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._thread: ThreadPoolExecutor | None = None
        self._in_thread: list[Arrival] = []

    def send(self, copy: Callable[[], None], *, in_thread: bool = False) -> Arrival:
        """Queue a copy behind everything that is queued for computing by now.

        in_thread: it keeps the host busy. Such copies follow one another, and what one raises is raised by `wait_for`.
        """
        used = self._events()
        if in_thread:
            self._thread = self._thread or ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights")
            self._in_thread.append(self._thread.submit(self._copy, copy, used))
            return self._in_thread[-1]
        arrival: Arrival = Future()
        arrival.set_result(self._copy(copy, used))
        return arrival

    def wait_for(self, arrival: Arrival) -> None:
        """What is queued for computing from now on finds that copy done."""
        if (event := arrival.result()) is not None:
            torch.cuda.current_stream(self._device).wait_event(event)

    def wait(self) -> None:
        """What is queued for computing from now on finds all copies done; also its memory may be freed then.

        A copy that failed has undone itself; whoever needs it brings it again, and meets the reason.
        """
        wait(self._in_thread)
        self._in_thread.clear()
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def close(self) -> None:
        """Wait for everything, and end the thread."""
        self.wait()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _events(self) -> list[torch.cuda.Event]:
        if self._stream is None:
            return []
        # Two passes of guidance may run on two streams, block by block; what one has used, the other may be using.
        return [computing.record_event() for computing in {self._home, torch.cuda.current_stream(self._device)}]

    def _copy(self, copy: Callable[[], None], used: list[torch.cuda.Event]) -> torch.cuda.Event | None:
        if self._stream is None:
            copy()
            return None
        with torch.cuda.stream(self._stream):
            for event in used:
                self._stream.wait_event(event)
            copy()
            return self._stream.record_event()
