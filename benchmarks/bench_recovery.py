"""What recovery costs at real size, and whether it gives the same bits: saved, stopped, out of memory, not finite.

    python3 -m benchmarks.bench_recovery --model DIR [--size 832x480x33] [--steps 6]

One process, one model: a plain run; one that writes its state after every step; one that is stopped and goes on from
its file; one whose card is filled up in the middle, so that memory really runs out; one with a broken attention kernel.
The prompts are random embeddings, so no text encoder is loaded.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from wan_core.errors import Interrupted
from wan_core.hooks import Silent, StepEvent
from wan_core.pipeline import RunPlan, WanPipeline, open_pipeline
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.recovery.journal import Journal, StateFile
from wan_core.recovery.state import read_state
from wan_core.report import Report
from wan_core.sample import Conditioning
from wan_core.specs import Expert

_LEFT_BYTES = 256 << 20


class StopAfter(Silent):
    """Stops as soon as a step is done."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._stop = False

    def on_step(self, event: StepEvent) -> None:
        self._stop = event.index == self._step

    def should_stop(self) -> bool:
        return self._stop


class FillCard(Silent):
    """Takes nearly all free memory once a step is done, and keeps it."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.ballast: Tensor | None = None

    def on_step(self, event: StepEvent) -> None:
        if event.index == self._step and self.ballast is None:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info()
            self.ballast = torch.empty(max(free - _LEFT_BYTES, 0), dtype=torch.uint8, device="cuda")


class Contest:
    """The runs, all of the same plan."""

    def __init__(self, pipeline: WanPipeline, plan: RunPlan, folder: Path) -> None:
        draw = torch.Generator().manual_seed(0)
        dim = pipeline.pair.spec.text_dim
        self.prompts = Conditioning(
            positive=torch.randn(1, 512, dim, generator=draw), negative=torch.randn(1, 512, dim, generator=draw)
        )
        self.pipeline, self.plan, self.folder = pipeline, plan, folder
        self.whole: Tensor | None = None

    def journal(self, name: str) -> Journal:
        facts = self.pipeline.facts(self.plan, self.prompts, driver={})
        return Journal(
            StateFile(
                path=self.folder / f"{name}.safetensors",
                facts=facts,
                num_steps=self.plan.experts.schedule.num_steps,
                prompts={"positive": self.prompts.positive, "negative": self.prompts.negative},
                save_seconds=0.0,
            )
        )

    def run(self, name: str, *, hooks: Silent | None = None, journal: Journal | None = None) -> Tensor:
        """One run, with a line of what it gave, at once: a bench that is cut off has said what it knows.

        differs: from the plain run, relative; 0 means the same bits.
        """
        report, start = Report(), perf_counter()
        latent = self.pipeline.sample(self.plan, self.prompts, hooks=hooks, report=report, journal=journal).latent
        kept = hooks.ballast.nbytes if isinstance(hooks, FillCard) and hooks.ballast is not None else 0
        steps = [step.seconds for step in report.steps[1:]]
        told = [
            str(each) for each in report.decisions if each.topic == "out of memory" or "kernels above" in each.asked
        ]
        differs = None if self.whole is None else ((latent - self.whole).norm() / self.whole.norm()).item()
        say(name, seconds=perf_counter() - start, median_step=median(steps), steps=[round(each, 4) for each in steps],
            allocated=torch.cuda.memory_allocated() - kept, told=told, warnings=report.warnings,
            differs=differs)  # fmt: skip
        return latent


def say(name: str, **figures: object) -> None:
    print(json.dumps({"run": name, **figures}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--size", default="832x480x33")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--profile", default="auto")
    arguments = parser.parse_args()
    width, height, frames = map(int, arguments.size.split("x"))
    request = SampleRequest(recipe=recipe("official").with_changes(num_steps=arguments.steps, shift=5.0))
    pipeline = open_pipeline(arguments.model, arguments.profile)
    plan = pipeline.plan(request, VideoSize(width=width, height=height, num_frames=frames))
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(pipeline, plan, Path(folder))
        contest.run("warm-up")
        contest.whole = contest.run("plain")
        saved = contest.journal("saved")
        contest.run("saved every step", journal=saved)
        say("state", bytes=saved.file.path.stat().st_size, problem=saved.problem)
        _resumed(contest)
        if torch.cuda.is_available():
            contest.run("out of memory", hooks=FillCard(2))
            torch.cuda.empty_cache()
        contest.run("plain again")
        _with_broken_kernel(contest)


def _resumed(contest: Contest) -> None:
    journal = contest.journal("stopped")
    try:
        contest.pipeline.sample(contest.plan, contest.prompts, hooks=StopAfter(2), journal=journal)
    except Interrupted:
        say("stopped", finished_steps=journal.position.next_step)
    state = read_state(journal.file.path)
    contest.run("resumed", journal=Journal(position=state.position))


def _with_broken_kernel(contest: Contest) -> None:
    """One block's attention gives NaN from its third call on."""
    attention = contest.pipeline._experts.transformers[Expert.HIGH].blocks[-1].self_attn
    kernel, calls = attention.attend, 0

    def broken(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        result = kernel(q, k, v)
        return result * float("nan") if calls >= 3 else result

    attention.attend = broken
    try:
        contest.run("broken kernel")
    finally:
        attention.attend = kernel


if __name__ == "__main__":
    main()
