"""A native graph with the node against the same graph without it: the same latent, whatever else is in the graph.

Float32 on a CPU, where the block work runs in plain PyTorch. The clones share their model, so each test also runs
one that was accelerated beside one that was not.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from miniature.architecture import TRANSFORMER
from tests.host.client import Client, Prompt
from tests.host.graphs import inputs, native_experts, node_id
from tests.host.server import ComfyServer
from tests.host.test_runs import interrupted
from tests.lora_files import FAMILIES, Writer

Saved = Callable[[Prompt, dict[str, tuple[str, int]]], dict[str, Tensor]]
Wrap = Callable[[Prompt, str, str], str]

STEPS = 4
CACHE_STEPS = 8  # a cache needs some steps of one model before it skips any
TOLERANCE = 1e-5


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.fixture(scope="module")
def lora(server: ComfyServer) -> str:
    """A LoRA with large effect on every layer of an expert, for the native LoRA loader."""
    writer = Writer(TRANSFORMER, 0)
    FAMILIES["comfyui"](writer)
    writer.save(server.base / "models" / "loras" / "accelerate.safetensors")
    return "accelerate.safetensors"


def only_native(graph: Prompt) -> Prompt:
    """The miniature graph down to its text and its latent, with the native experts."""
    for kind in ("PreviewAny", "SaveVideo", "CreateVideo", "WanVelocityDecode", "WanVelocityLoadVAE"):
        del graph[node_id(graph, kind)]
    for kind in ("WanVelocitySampler", "WanVelocityLoadExperts"):
        del graph[node_id(graph, kind)]
    native_experts(graph)
    return graph


def node(graph: Prompt, name: str, class_type: str, /, **values: object) -> str:
    graph[name] = {"class_type": class_type, "inputs": values}
    return name


def accelerate(graph: Prompt, model: str) -> str:
    return node(graph, f"{model} accelerated", "WanVelocityAccelerate", model=[model, 0])


def sampled(graph: Prompt, high: str, low: str, *, steps: int = STEPS) -> str:
    """A KSamplerAdvanced pair on two models; returns the id of the second."""
    text = node_id(graph, "WanVelocityEncodeText")
    shared = {
        "positive": [text, 0], "negative": [text, 1], "noise_seed": 7, "steps": steps, "cfg": 4.0,
        "sampler_name": "euler", "scheduler": "simple",
    }  # fmt: skip
    first = node(
        graph, f"first on {high}", "KSamplerAdvanced", model=[high, 0], add_noise="enable", start_at_step=0,
        end_at_step=steps // 2, return_with_leftover_noise="enable",
        latent_image=[node_id(graph, "WanVelocityEmptyLatent"), 0], **shared,
    )  # fmt: skip
    return node(
        graph, f"second on {low}", "KSamplerAdvanced", model=[low, 0], add_noise="disable", start_at_step=steps // 2,
        end_at_step=10000, return_with_leftover_noise="disable", latent_image=[first, 0], **shared,
    )  # fmt: skip


@pytest.fixture
def native(graph: Prompt) -> Prompt:
    return only_native(graph)


def compare(graph: Prompt, saved: Saved, prepare: Callable[[Prompt, str], str]) -> dict[str, Tensor]:
    """Latents without and with the node behind `prepare`, and with it once more, from one graph."""
    models = {expert: prepare(graph, f"native {expert}") for expert in ("high", "low")}
    plain = sampled(graph, models["high"], models["low"])
    fast = sampled(graph, accelerate(graph, models["high"]), accelerate(graph, models["low"]))
    found = saved(graph, {"plain": (plain, 0), "fast": (fast, 0)})
    assert relative(found["fast"], found["plain"]) <= TOLERANCE
    return found


def test_the_latent_is_the_same(native: Prompt, saved: Saved, client: Client) -> None:
    compare(native, saved, lambda graph, model: model)
    report = node(native, "report", "PreviewAny", source=["native high accelerated", 1])
    text = client.run(native).text(report)
    assert f"block work of WAN21: torch ({TRANSFORMER.num_layers} blocks; " in text, text
    assert "self attention: " in text and "!" not in text, text


# What stands between the loader and the sampler in other people's graphs.
NEIGHBOURS = {
    "lora": ("LoraLoaderModelOnly", {"lora_name": "accelerate.safetensors", "strength_model": 0.8}),
    "cache": ("EasyCache", {
        "reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}),
    "compiled": ("TorchCompileModel", {"backend": "cudagraphs"}),
    "windows": ("WanContextWindowsManual", {
        "context_length": 5, "context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1,
        "closed_loop": False, "fuse_method": "pyramid", "freenoise": False,
        "split_conds_to_windows": False, "retain_first_frame": False}),
    "attention": ("ModelAttentionBackend", {"attention": "pytorch attention"}),
    "override": ("HostTestMeddle", {"how": "override"}),
    "patches": ("HostTestMeddle", {"how": "patches"}),
    "replaced": ("HostTestMeddle", {"how": "replaced"}),
    "compiled blocks": ("HostTestMeddle", {"how": "compiled"}),
}  # fmt: skip


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_with_a_neighbour_before_and_behind(native: Prompt, saved: Saved, lora: str, name: str) -> None:
    """Without us, with us behind it, and with us before it; and it still does what it does."""
    kind, values = NEIGHBOURS[name]
    inputs(native, "WanVelocityEmptyLatent").update(frames=9)

    def meddled(model: str) -> str:
        return node(native, f"{model} meddled", kind, model=[model, 0], **values)

    # Compiling is slow, and one expert's model is as good as two.
    experts = ("native high", "native high" if "compiled" in name else "native low")
    steps = CACHE_STEPS if name == "cache" else STEPS
    wanted = {
        "bare": sampled(native, *experts, steps=steps),
        "plain": sampled(native, *map(meddled, experts), steps=steps),
        "before": sampled(native, *(meddled(accelerate(native, model)) for model in experts), steps=steps),
        "behind": sampled(native, *(accelerate(native, meddled(model)) for model in experts), steps=steps),
    }
    found = saved(native, {key: (end, 0) for key, end in wanted.items()})
    assert relative(found["before"], found["plain"]) <= TOLERANCE
    assert relative(found["behind"], found["plain"]) <= TOLERANCE
    if name not in ("compiled", "compiled blocks", "attention"):
        assert relative(found["plain"], found["bare"]) > 100 * TOLERANCE, "the neighbour does nothing"


def test_twice_is_once_and_the_same_bits(native: Prompt, saved: Saved) -> None:
    once = [accelerate(native, f"native {expert}") for expert in ("high", "low")]
    first, second = sampled(native, *once), sampled(native, *(accelerate(native, model) for model in once))
    found = saved(native, {"once": (first, 0), "twice": (second, 0)})
    assert torch.equal(found["once"], found["twice"])


def test_what_a_neighbour_behind_us_did_is_forgotten(native: Prompt, saved: Saved) -> None:
    """Clones share our wrapper: one whose blocks were compiled must not keep another from running ours."""
    fast = accelerate(native, "native high")
    kind, values = NEIGHBOURS["compiled blocks"]
    compiled = node(native, "compiled", kind, model=[fast, 0], **values)
    saved(native, {"compiled": (sampled(native, compiled, compiled), 0)})
    fresh = accelerate(native, fast)
    found = saved(native, {"again": (sampled(native, fast, fast), 0), "fresh": (sampled(native, fresh, fresh), 0)})
    assert torch.equal(found["again"], found["fresh"])


def test_a_second_run_and_one_after_unloading_are_the_same(native: Prompt, saved: Saved, client: Client) -> None:
    end = sampled(native, *(accelerate(native, f"native {expert}") for expert in ("high", "low")))
    found = [saved(native, {"latent": (end, 0)})["latent"]]
    for free in (False, True):
        if free:
            client.free(native)
        # To the host's cache the end step is another input, to the sampler it is past the end as before.
        native[end]["inputs"]["end_at_step"] -= 1
        found.append(saved(native, {"latent": (end, 0)})["latent"])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_interrupted_at_once_and_nothing_is_left(native: Prompt, saved: Saved, client: Client) -> None:
    plain = sampled(native, "native high", "native low")
    before = saved(native, {"latent": (plain, 0)})["latent"]
    fast = accelerate(native, "native high")
    long = long_sampler(native, fast, steps=1000)
    run, seconds = interrupted(client, native, "KSampler")
    assert run.status == "execution_interrupted" and seconds < 2.0
    del native["keep"], native[long]
    native[plain]["inputs"]["end_at_step"] -= 5
    assert torch.equal(saved(native, {"latent": (plain, 0)})["latent"], before)


def long_sampler(graph: Prompt, model: str, steps: int) -> str:
    text = node_id(graph, "WanVelocityEncodeText")
    sampler = node(
        graph, "long", "KSampler", model=[model, 0], positive=[text, 0], negative=[text, 1], seed=1, steps=steps,
        cfg=4.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        latent_image=[node_id(graph, "WanVelocityEmptyLatent"), 0],
    )  # fmt: skip
    node(graph, "keep", "HostTestSaveTensor", value=[sampler, 0], name="long")
    return sampler


def test_profiles_are_followed_and_what_does_not_concern_us_is_named(native: Prompt, client: Client) -> None:
    node(
        native, "profile", "WanVelocityProfile", preset="auto", attention="cudnn", offload="experts", compile="off"
    )  # fmt: skip
    fast = accelerate(native, "native high")
    native[fast]["inputs"]["profile"] = ["profile", 0]
    report = node(native, "report", "PreviewAny", source=[fast, 1])
    text = client.run(native).text(report)
    assert "! without effect on a native model, which ComfyUI loads and runs: offload.policy" in text
    assert "instead of cudnn" in text


def test_a_strict_profile_is_kept(native: Prompt, client: Client) -> None:
    node(native, "profile", "WanVelocityProfile", preset="exact", attention="cudnn", on_unsupported="error")
    fast = accelerate(native, "native high")
    native[fast]["inputs"]["profile"] = ["profile", 0]
    node(native, "report", "PreviewAny", source=[fast, 1])
    run = client.run(native)
    assert run.status == "execution_error" and "cannot run here" in run.error and "\n" not in run.error


def test_the_override_of_another_is_named(native: Prompt, client: Client) -> None:
    node(native, "meddled", "HostTestMeddle", model=["native high", 0], how="override")
    report = node(native, "report", "PreviewAny", source=[accelerate(native, accelerate(native, "meddled")), 1])
    assert "! another node's attention comes first" in client.run(native).text(report)


def test_a_model_that_is_no_wan_gets_one_sentence(native: Prompt, client: Client) -> None:
    node(native, "other", "HostTestOtherModel")
    node(native, "report", "PreviewAny", source=[accelerate(native, "other"), 1])
    run = client.run(native)
    assert run.status == "execution_error"
    assert run.error.startswith("the model is a BaseModel, expected a Wan 2.1 or 2.2 model") and "\n" not in run.error
