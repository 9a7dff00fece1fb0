"""A step of training as one CUDA graph.

These networks are small: a step is thousands of kernels that the device finishes faster than the host launches them
(132 ms a step of the experts on one H200 where the kernels alone take about half). So the first steps run as they are,
on a stream of their own, and then one is recorded and replayed. It asks of a step that it waits for nothing, that what
changes from one to the next is a tensor which stays where it is, and that random numbers come from one generator.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Step = Callable[[], Mapping[str, Tensor]]

# Enough for lazy state: compiled blocks, moments of the optimiser, searched convolutions.
_PLAIN_STEPS = 4


class CapturedStep:
    """Calls a step; on a GPU the calls after the first few replay what was recorded. Each call is one real step.

    generator: where the step's random numbers come from; it may be seeded anew before every call. captures: off, every
    call runs the step as it is, as it does on a CPU.
    """

    def __init__(self, step: Step, generator: torch.Generator, *, captures: bool = True) -> None:
        self._step = step
        self._generator = generator
        self._captures = captures and generator.device.type == "cuda"
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._results: Mapping[str, Tensor] = {}
        if self._captures:
            self._stream = torch.cuda.Stream()
            self._done = torch.cuda.Event()

    def __call__(self) -> Mapping[str, Tensor]:
        """The step's results; a replay overwrites those of the call before."""
        self._calls += 1
        if not self._captures:
            return self._run()
        if self._calls <= _PLAIN_STEPS:
            return self._plain()
        if self._graph is None:
            self._record()
        # One step ahead of the device is enough, and keeps the clock of the training honest.
        self._done.synchronize()
        self._graph.replay()
        self._done.record()
        return self._results

    def _plain(self) -> Mapping[str, Tensor]:
        # Not on the default stream: what is initialised there must not be waited for by a capture.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            results = self._run()
        torch.cuda.current_stream().wait_stream(self._stream)
        return results

    def _record(self) -> None:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        with torch.cuda.graph(graph, stream=self._stream):
            self._results = self._run()
        self._graph = graph

    def _run(self) -> Mapping[str, Tensor]:
        return {name: value.detach() for name, value in self._step().items()}
