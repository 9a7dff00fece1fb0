"""Guidance: the formula, and its three executions over a small network with a text context."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from wan_core.sampling.guidance import GuidedVelocity, PartByPart, combine


@dataclass(frozen=True)
class Context:
    """The part of a text context that guidance uses."""

    embedding: Tensor

    @property
    def batch(self) -> int:
        return len(self.embedding)

    def videos(self, start: int, stop: int) -> "Context":
        return Context(self.embedding[start:stop])

    def concatenate(self, other: "Context") -> "Context":
        return Context(torch.cat((self.embedding, other.embedding)))


class Network(nn.Module):
    """A stand-in with a transformer's signature; keeps the batch of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv3d(16, 16, 3, padding=1)
        self.text = nn.Linear(8, 16)
        self.batches: list[int] = []

    def forward(self, latent: Tensor, timestep: Tensor, text: Context) -> Tensor:
        self.batches.append(latent.shape[0])
        time = timestep.reshape(latent.shape[0], -1).mean(dim=1) / 1000
        shift = self.text(text.embedding) + time[:, None]
        return torch.tanh(self.mix(latent) + shift[..., None, None, None])

    def in_turns(self, latent: Tensor, timestep: Tensor, text: Context) -> Iterator[Tensor]:
        yield latent
        yield self(latent, timestep, text)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().requires_grad_(False)


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Context, Context]:
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(batch, 16, 3, 4, 6, generator=generator)
    timestep = 900.0 * torch.rand(batch, generator=generator)
    positive, negative = (Context(torch.randn(batch, 8, generator=generator)) for _ in range(2))
    return latent, timestep, positive, negative


def test_combine_is_the_formula_in_float32() -> None:
    uncond, cond = torch.randn(2, 1, 16, 2, 2, 2, generator=torch.Generator().manual_seed(2)).bfloat16()
    guided = combine(uncond, cond, 4.0)
    assert guided.dtype == torch.float32
    expected = uncond.double() + 4.0 * (cond.double() - uncond.double())
    torch.testing.assert_close(guided.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [4.0, 3.0, 0.0])
def test_batched_and_sequential_agree(network: Network, scale: float) -> None:
    latent, timestep, positive, negative = inputs()
    batched = GuidedVelocity(network, positive, negative, execution="batched")(latent, timestep, scale)
    sequential = GuidedVelocity(network, positive, negative, execution="sequential")(latent, timestep, scale)
    cond, uncond = network(latent, timestep, positive), network(latent, timestep, negative)
    assert network.batches == [4, 2, 2, 2, 2]
    assert torch.equal(sequential, uncond + scale * (cond - uncond))
    assert (batched - sequential).norm() <= 1e-5 * sequential.norm()
    assert (cond - uncond).norm() > 0.1 * cond.norm()


def test_two_streams_give_what_one_after_the_other_gives(network: Network) -> None:
    latent, timestep, positive, negative = inputs()
    results = [
        GuidedVelocity(network, positive, negative, execution=execution)(latent, timestep, 4.0)
        for execution in ("two-stream", "sequential")
    ]
    assert torch.equal(*results)


@pytest.mark.parametrize("execution", ["batched", "sequential", "two-stream"])
def test_scale_one_runs_the_prompt_alone(network: Network, execution: str) -> None:
    latent, timestep, positive, negative = inputs()
    for opposite in (negative, None):
        guided = GuidedVelocity(network, positive, opposite, execution=execution)(latent, timestep, 1.0)
        assert torch.equal(guided, network(latent, timestep, positive))
    assert network.batches == [2] * 4


def test_timesteps_per_token_are_doubled_with_the_batch(network: Network) -> None:
    latent, _, positive, negative = inputs()
    timestep = 1000.0 * torch.rand(2, 18, generator=torch.Generator().manual_seed(3))
    results = [
        GuidedVelocity(network, positive, negative, execution=execution)(latent, timestep, 3.5)
        for execution in ("batched", "sequential")
    ]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_contexts_are_joined_once(network: Network) -> None:
    latent, timestep, positive, negative = inputs()
    joins = []

    class Counted(Context):
        def concatenate(self, other: Context) -> Context:
            joins.append(other)
            return super().concatenate(other)

    guided = GuidedVelocity(network, Counted(positive.embedding), negative, execution="batched")
    for _ in range(3):
        guided(latent, timestep, 4.0)
    assert len(joins) == 1


@pytest.mark.parametrize("execution", ["batched", "sequential", "two-stream"])
@pytest.mark.parametrize(("at_once", "batches"), [(5, [5]), (2, [2, 2, 1]), (1, [1] * 5)])
def test_a_batch_in_parts_gives_every_video_what_the_whole_batch_gives(
    network: Network, execution: str, at_once: int, batches: list[int]
) -> None:
    latent, timestep, positive, negative = inputs(5)
    whole = GuidedVelocity(network, positive, negative, execution=execution)(latent, timestep, 4.0)
    network.batches.clear()
    parts = PartByPart(network, positive, negative, execution=execution, at_once=at_once)
    torch.testing.assert_close(parts(latent, timestep, 4.0), whole, rtol=1e-5, atol=1e-5)
    passes = [2 * batch for batch in batches] if execution == "batched" else [b for b in batches for _ in range(2)]
    assert network.batches == passes


def test_parts_without_a_negative_prompt(network: Network) -> None:
    latent, timestep, positive, _ = inputs(3)
    parts = PartByPart(network, positive, None, execution="sequential", at_once=1)
    torch.testing.assert_close(parts(latent, timestep, 1.0), network(latent, timestep, positive), rtol=1e-5, atol=1e-5)
