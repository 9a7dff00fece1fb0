"""Progress in the terminal: bars with the time left, plain lines elsewhere."""

import io
import re

import torch

from wan_core.cli.progress import TerminalProgress
from wan_core.estimate import Part, RunEstimate
from wan_core.history import Task
from wan_core.hooks import RunHooks, StepEvent
from wan_core.specs import Expert


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def step(index: int, num_steps: int = 4, seconds: float = 2.0, expert: Expert = Expert.HIGH) -> StepEvent:
    return StepEvent(
        index=index, num_steps=num_steps, expert=expert, sigma=0.9, timestep=900.4, seconds=seconds,
        denoised=torch.zeros(1),
    )  # fmt: skip


def _part(name: str, stage: str, seconds: float, count: int = 1) -> Part:
    return Part(name=name, stage=stage, task=Task(kind=name, size="", work=1.0), seconds=seconds, count=count)


ESTIMATE = RunEstimate(
    parts=(
        _part("load", "load", 30.0), _part("high noise step", "sample", 10.0, 2),
        _part("low noise step", "sample", 10.0, 2), _part("decode", "decode", 20.0),
    )
)  # fmt: skip


def drive(hooks: RunHooks) -> None:
    hooks.on_phase("load")
    hooks.on_load("high-noise expert", 10 * 2**20, 20 * 2**20)
    hooks.on_load("high-noise expert", 20 * 2**20, 20 * 2**20)
    hooks.on_phase("sample")
    hooks.on_step(step(0, seconds=4.0))
    hooks.on_load("low-noise expert", 20 * 2**20, 20 * 2**20)
    hooks.on_step(step(1, seconds=2.0, expert=Expert.LOW))
    hooks.on_phase("decode")
    hooks.on_chunk(1, 5)
    hooks.on_chunk(5, 5)


def test_lines_where_the_output_is_no_terminal():
    stream = io.StringIO()
    with TerminalProgress(ESTIMATE, stream) as progress:
        drive(progress)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("time: about 1 min 30 s (estimate from this machine's rates")
    assert [re.sub(r"after 0.\d s", "after 0 s", re.sub(r", [\d,]+ MB/s$", "", line)) for line in lines[1:]] == [
        "load (after 0 s, about 1 min 30 s left)",
        "  high-noise expert: 20.0 MiB in place",
        "sample (after 0 s, about 1 min 00 s left)",
        "  step 1/4: high noise, timestep 900, 4.00 s, about 50 s left",
        "  low-noise expert: 20.0 MiB in place",
        "  step 2/4: low noise, timestep 900, 2.00 s, about 40 s left",
        "decode (after 0 s, about 20 s left)",
        "  5 latent frames",
    ]
    assert sum(line.endswith(" MB/s") for line in lines) == 2


def test_bars_in_a_terminal():
    stream = Terminal()
    with TerminalProgress(ESTIMATE, stream) as progress:
        drive(progress)
    text = stream.getvalue()
    parts = (
        "load high-noise expert",
        "20.0M/20.0M",
        "B/s]",
        "0/4",
        "load low-noise",
        "2/4",
        "low noise, timestep 900",
        "5/5",
    )
    for part in parts:
        assert part in text, part
    assert text.count("sample:   0%") == 1, "the steps started anew when an expert was loaded between them"
    assert text.endswith("\n"), "a bar was left open"


def test_an_error_closes_the_bar():
    stream = Terminal()
    try:
        with TerminalProgress(ESTIMATE, stream) as progress:
            progress.on_step(step(0))
            raise ValueError
    except ValueError:
        pass
    assert stream.getvalue().endswith("\n")


def test_the_terminal_never_asks_to_stop():
    assert TerminalProgress(ESTIMATE, io.StringIO()).should_stop() is False
