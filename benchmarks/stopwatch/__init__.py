"""Nodes for measurements inside ComfyUI: a model that takes the time of its steps, their reading, and who holds what.

A step is one evaluation of all conditionings, from an idle device to an idle device. Loaded as custom nodes by
`benchmarks.comfy_server`; never shipped.
"""

import hashlib
import json
from time import perf_counter

import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import ComfyExtension, io


class Stopwatch(io.ComfyNode):
    """A clone of a MODEL whose steps are timed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BenchStopwatch",
            category="benchmark",
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output(), io.Custom("BENCH_SECONDS").Output()],
        )

    @classmethod
    def execute(cls, model: object) -> io.NodeOutput:
        seconds: list[float] = []

        def timed(executor: object, *args: object, **kwargs: object) -> object:
            _wait()
            start = perf_counter()
            result = executor(*args, **kwargs)
            _wait()
            seconds.append(perf_counter() - start)
            return result

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "bench", timed)
        return io.NodeOutput(clone, seconds)


class Reading(io.ComfyNode):
    """The seconds of every step, the latent's distance from another one, and the peak of torch's allocator."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BenchReading",
            category="benchmark",
            inputs=[
                io.Custom("BENCH_SECONDS").Input("seconds"),
                io.Latent.Input("latent"),
                io.Latent.Input("reference", optional=True),
            ],
            outputs=[io.Latent.Output()],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, seconds: list[float], latent: dict, reference: dict | None = None) -> io.NodeOutput:
        found = {"seconds": seconds, "finite": bool(torch.isfinite(latent["samples"]).all())}
        if reference is not None:
            a, b = latent["samples"].double(), reference["samples"].double()
            found["differs"] = float((a - b).norm() / b.norm())
        if torch.cuda.is_available():
            found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
        return io.NodeOutput(latent, ui={"text": [json.dumps(found)]})


class Held(io.ComfyNode):
    """A latent's digest, and after it was made: the models that the host counts as loaded, and torch's memory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BenchHeld",
            category="benchmark",
            inputs=[io.Latent.Input("latent")],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent: dict) -> io.NodeOutput:
        import comfy.model_management

        samples = latent["samples"].detach().float().cpu().contiguous()
        found = {
            "digest": hashlib.sha256(samples.numpy().tobytes()).hexdigest()[:16],
            "models": [
                [type(patcher.model).__name__, round(patcher.loaded_size() / 2**30, 2)]
                for patcher in comfy.model_management.loaded_models()
            ],
        }
        if torch.cuda.is_available():
            found["allocated_gib"] = round(torch.cuda.memory_allocated() / 2**30, 2)
        return io.NodeOutput(ui={"text": [json.dumps(found)]})


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class StopwatchExtension(ComfyExtension):
    """All nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Stopwatch, Reading, Held]


async def comfy_entrypoint() -> StopwatchExtension:
    return StopwatchExtension()
