"""Wan Compare in the host: known answers for images and latents, and one sentence for what does not go together."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.host.client import Client, Prompt, Run

Saved = Callable[[Prompt, dict[str, tuple[str, int]]], dict[str, Tensor]]


def images(level: int, num_frames: int = 3) -> dict:
    color = level << 16 | level << 8 | level
    values = {"width": 48, "height": 32, "batch_size": num_frames, "color": color}
    return {"class_type": "EmptyImage", "inputs": values}


def latent(seed: int, shape: str = "1,16,3,8,8") -> dict:
    return {"class_type": "HostTestRandomLatent", "inputs": {"shape": shape, "seed": seed, "mask": False}}


def comparison(**sources: dict) -> Prompt:
    """A graph of Wan Compare (node "compare") and what is connected to its inputs."""
    links = {name: [name, 0] for name in sources}
    return sources | {"compare": {"class_type": "WanVelocityCompare", "inputs": links}}


def measured(run: Run) -> dict[str, str]:
    """The rows of the text that the node shows."""
    assert run.status == "execution_success", run.error
    return {line[:16].strip(): line[16:] for line in run.text("compare").splitlines()}


def test_images_are_measured_and_shown_beside_their_difference(client: Client, saved: Saved) -> None:
    graph = comparison(images_a=images(64), images_b=images(80))
    run = client.run(graph)
    rows = measured(run)
    assert rows["identical"] == "no"
    assert rows["PSNR"].startswith("24.05 dB"), "20 log10(255 / 16)"
    # Flat frames: (2 a b + C1) / (a^2 + b^2 + C1) with a = 64/255, b = 80/255, C1 = 1e-4.
    assert float(rows["SSIM"].split(",")[0]) == pytest.approx(0.97566, abs=2e-4)
    assert rows["flicker"] == "0, reference 0"
    assert max(event["value"] for event in run.named("progress") if event["node"] == "compare") == 3
    pictures = saved(graph, {"pictures": ("compare", 1)})["pictures"]
    assert pictures.shape == (3, 32, 144, 3)
    for panel, level in enumerate((64, 80, 128)):
        shown = pictures[:, :, panel * 48 : (panel + 1) * 48]
        assert torch.allclose(shown, torch.full_like(shown, level / 255), atol=1e-6)


def test_latents_are_measured_and_shown_as_previews(client: Client, saved: Saved) -> None:
    graph = comparison(latent_a=latent(0), latent_b=latent(1))
    run = client.run(graph)
    rows = measured(run)
    first, second = (torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    expected = ((first - second).norm() / first.norm()).item()
    assert float(rows["relative error"].split(",")[0]) == pytest.approx(expected, rel=1e-3)
    assert "PSNR" not in rows
    pictures = saved(graph, {"pictures": ("compare", 1)})["pictures"]
    assert pictures.shape == (3, 8, 24, 3)
    shown_a, shown_b, difference = pictures.split(8, dim=2)
    assert shown_a.std() > 0.01
    assert torch.allclose(difference, (8 * (shown_a - shown_b).abs()).clamp(0, 1), atol=1e-5)


MISTAKES = {
    "nothing": (comparison(), "nothing connected, expected either images_a and images_b"),
    "one of two": (comparison(images_a=images(1)), "images_a connected, expected either"),
    "one of each": (comparison(images_a=images(1), latent_b=latent(0)), "images_a and latent_b connected"),
    "other lengths": (
        comparison(images_a=images(1), images_b=images(1, num_frames=4)),
        "the first video has shape (3, 32, 48, 3) and the second (4, 32, 48, 3)",
    ),
    "other latents": (
        comparison(latent_a=latent(0), latent_b=latent(0, "1,16,2,8,8")),
        "the first latent has shape (1, 16, 3, 8, 8) and the second (1, 16, 2, 8, 8)",
    ),
    "latents of another model": (
        comparison(latent_a=latent(0, "1,4,64,64"), latent_b=latent(0, "1,4,64,64")), "expected a video latent"
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_does_not_go_together_is_one_sentence(client: Client, mistake: str) -> None:
    graph, expected = MISTAKES[mistake]
    run = client.run(graph)
    assert run.status == "execution_error"
    assert expected in run.error
    assert "\n" not in run.error
