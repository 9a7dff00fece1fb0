"""A user's mistake gives one sentence, before anything runs where the mistake can be seen by then."""

from collections.abc import Callable

import pytest

from tests.host.client import Client, Prompt, RejectedError
from tests.host.graphs import MINI_EXPERTS, inputs, node_id, set_recipe
from tests.host.models import I2V, TRUNCATED

Change = Callable[[Prompt], None]


def change(class_type: str, **values: object) -> Change:
    return lambda graph: inputs(graph, class_type).update(values)


def latent_of(shape: str, *, mask: bool = False) -> Change:
    def apply(graph: Prompt) -> None:
        graph["other"] = {"class_type": "HostTestRandomLatent", "inputs": {"shape": shape, "seed": 0, "mask": mask}}
        inputs(graph, "WanVelocitySampler").update(latent=["other", 0])

    return apply


def conditioned_by(class_type: str, **values: object) -> Change:
    def apply(graph: Prompt) -> None:
        text = [node_id(graph, "WanVelocityEncodeText"), 0]
        links = {name: text for name, value in values.items() if value == "text"}
        graph["other"] = {"class_type": class_type, "inputs": values | links}
        inputs(graph, "WanVelocitySampler").update(positive=["other", 0])

    return apply


def encoded_frames(graph: Prompt) -> None:
    graph["images"] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 6, "color": 0}}
    graph["encode"] = {
        "class_type": "WanVelocityEncode",
        "inputs": {"images": ["images", 0], "vae": [node_id(graph, "WanVelocityLoadVAE"), 0]},
    }
    inputs(graph, "WanVelocitySampler").update(latent=["encode", 0])


def strict_profile(graph: Prompt) -> None:
    graph["profile"] = {
        "class_type": "WanVelocityProfile",
        "inputs": {"preset": "auto", "attention": "cudnn", "on_unsupported": "error"},
    }
    inputs(graph, "WanVelocitySampler").update(profile=["profile", 0])


REFUSED_BEFORE_ANYTHING_RUNS = {
    "width": (change("WanVelocityEmptyLatent", width=100), "width is 100, expected a multiple of 16"),
    "height": (change("WanVelocityEmptyLatent", height=8), "the nearest is 16"),
    "frames": (change("WanVelocityEmptyLatent", frames=80), "frames is 80, expected 4n + 1; the nearest is 81"),
    "the same file twice": (
        change("WanVelocityLoadExperts", low_noise=MINI_EXPERTS["high_noise"]),
        "given as both experts",
    ),
    "swapped experts": (
        change("WanVelocityLoadExperts", high_noise=MINI_EXPERTS["low_noise"], low_noise=MINI_EXPERTS["high_noise"]),
        "swapped",
    ),
    "an I2V expert": (change("WanVelocityLoadExperts", high_noise=I2V), "36"),
    "a truncated file": (change("WanVelocityLoadExperts", high_noise=TRUNCATED), TRUNCATED),
    "a missing file": (change("WanVelocityLoadVAE", file="nowhere.safetensors"), "there is no 'nowhere.safetensors'"),
    "denoise": (change("WanVelocitySampler", denoise=0.0), "denoise is 0.0, expected a fraction above 0"),
    "an empty range": (change("WanVelocitySampler", start_step=5, end_step=5), "0 <= start step < end step"),
    "an unknown recipe": (change("WanVelocitySampler", recipe="fast"), "expected one of official"),
    "no steps": (lambda graph: set_recipe(graph, steps=0), "smaller than min of 1"),
    "a boundary above 1": (lambda graph: set_recipe(graph, boundary=1.5), "bigger than max of 1"),
}

REFUSED_WHEN_IT_IS_SEEN = {
    "48 channels": (latent_of("1,48,3,8,8"), "48 channels are a latent of the Wan 2.2 VAE"),
    "a latent of an image": (latent_of("1,4,64,64"), "expected a video latent"),
    "an odd latent": (latent_of("1,16,3,9,8"), "even sides"),
    "a mask": (latent_of("1,16,3,8,8", mask=True), "noise mask"),
    "text of another width": (
        conditioned_by("HostTestClipForm", width=4096, length=5, seed=0),
        "expected (1, 512, 256)",
    ),
    "combined conditioning": (
        conditioned_by("ConditioningCombine", conditioning_1="text", conditioning_2="text"),
        "has 2 entries, expected one",
    ),
    "conditioning with a range": (
        conditioned_by("ConditioningSetTimestepRange", conditioning="text", start=0.0, end=0.5),
        "carries 'end_percent', 'start_percent'",
    ),
    "six frames to encode": (encoded_frames, "frames is 6, expected 4n + 1; the nearest is 5"),
    "an unsupported kernel, strictly": (strict_profile, "self attention 'cudnn' cannot run here"),
}


@pytest.mark.parametrize("mistake", REFUSED_BEFORE_ANYTHING_RUNS)
def test_refused_before_anything_runs(client: Client, graph: Prompt, mistake: str) -> None:
    make, expected = REFUSED_BEFORE_ANYTHING_RUNS[mistake]
    make(graph)
    with pytest.raises(RejectedError, match="(?s).*") as refusal:
        client.queue(graph)
    assert expected in str(refusal.value)


@pytest.mark.parametrize("mistake", REFUSED_WHEN_IT_IS_SEEN)
def test_refused_in_one_sentence(client: Client, graph: Prompt, mistake: str) -> None:
    make, expected = REFUSED_WHEN_IT_IS_SEEN[mistake]
    make(graph)
    run = client.run(graph)
    assert run.status == "execution_error"
    assert expected in run.error
    assert "\n" not in run.error, "more than one sentence"
