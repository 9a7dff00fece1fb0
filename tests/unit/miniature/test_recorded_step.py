"""A step of training can be recorded: nothing in it comes from the host or waits for the device, and a replay is it."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from miniature.training.captured import CapturedStep
from miniature.training.experts import ExpertStep, new_trainee
from miniature.training.machine import Machine
from miniature.training.optimiser import MovingAverage, Optimiser
from miniature.training.pace import Deadline, Pace
from miniature.vocabulary import train_vocabulary
from tests.unit.miniature.toy import TOY, toy_bank, toy_settings, train_toy
from wan_core.models.t5 import relative_buckets
from wan_core.models.tokenizer import Tokenizer

META = Machine(device=torch.device("meta"), architecture=TOY)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(train_vocabulary(TOY.text_encoder.vocab_size))


class OnTheDevice(TorchDispatchMode):
    """Stands for the recording of a step whose device is "meta": refuses what would come from the host.

    Asking the device for a number needs no watching, since a tensor without data has none to give.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {leaf.device.type for leaf in [*given, *tree_leaves(result)] if isinstance(leaf, Tensor)}
        if len(devices) > 1:
            raise AssertionError(f"{func} has tensors on {sorted(devices)}")
        return result


@pytest.fixture
def on_the_device(monkeypatch: pytest.MonkeyPatch) -> OnTheDevice:
    # Made from numbers of the host; on the way to "meta" no dispatch sees it.
    def refuse(*args: Any, device: Any = None, **kwargs: Any) -> None:
        raise AssertionError(f"a tensor for {device} is made from {args}")

    for name in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, name, refuse)
    return OnTheDevice()


def meta_step(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> ExpertStep:
    # AdamW is PyTorch's own; made to be recorded (`capturable`) it exists on an accelerator only.
    monkeypatch.setattr(torch.optim, "AdamW", Mock())
    settings = toy_settings(4)
    trainee = new_trainee(settings, tokenizer, META)
    return ExpertStep(
        trainee, toy_bank(tokenizer, META.device), settings.experts, META,
        Optimiser(trainee.modules, 1e-3, 0.01), MovingAverage(trainee.modules, 0.9), torch.Generator(),
    )  # fmt: skip


def test_the_step_of_the_experts_takes_nothing_from_the_host(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    step = meta_step(tokenizer, monkeypatch)
    step()  # as in a training: the first steps make the tables that are kept
    with request.getfixturevalue("on_the_device"):
        results = step()
    assert {value.device.type for value in results.values()} == {"meta"}
    assert set(results) == {"loss_high", "loss_low", "gradient"}


def test_positions_of_the_text_encoder_are_made_on_the_device(on_the_device: OnTheDevice) -> None:
    with on_the_device:
        assert relative_buckets(16, TOY.text_encoder, META.device).shape == (16, 16)


@pytest.mark.parametrize(
    "traffic",
    [
        lambda x: torch.tensor([1, 2], device="meta"),
        lambda x: torch.zeros(3).to("meta"),
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: x[torch.arange(2)],
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
    ],
    ids=["numbers", "copy", "copy into", "index", "item", "branch", "copy back", "unknown shape"],
)
def test_traffic_is_noticed(traffic: Any, on_the_device: OnTheDevice) -> None:
    x = torch.zeros(3, device="meta")
    with on_the_device, pytest.raises((AssertionError, RuntimeError)):
        traffic(x)


@pytest.mark.parametrize("device", DEVICES)
def test_a_recorded_step_is_the_step(device: str):
    """Rates, random numbers and weights change from call to call, and a replay follows all of them."""

    def train(*, captured: bool) -> list[float]:
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8)).to(device)
        optimiser, pace = Optimiser({"toy": layers}, 5e-2), Pace(num_steps=40)
        average = MovingAverage({"toy": layers}, 0.9)
        generator = torch.Generator(device)

        def step() -> dict[str, Tensor]:
            x = torch.randn(32, 8, generator=generator, device=device)
            loss = (layers(x) - x.roll(1, dims=1)).square().mean()
            gradient = optimiser.step(loss)
            average.update()
            return {"loss": loss, "gradient": gradient}

        call, found = CapturedStep(step, generator) if captured else step, []
        while not pace.finished:
            generator.manual_seed(pace.step)
            optimiser.set_pace(pace, 4)
            average.set_step(pace.step)
            found.append(float(call()["loss"].detach()))
            pace.tick()
        return [*found, *(float(value.sum()) for value in average.of("toy").values())]

    plain, recorded = train(captured=False), train(captured=True)
    assert plain[39] < 0.7 * plain[0]
    assert recorded == pytest.approx(plain, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("compiles", [False, pytest.param(True, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("device", DEVICES)
def test_the_recorded_step_of_the_experts_is_the_step(
    tokenizer: Tokenizer, tmp_path: Path, device: str, compiles: bool
) -> None:
    """The training itself, at toy size, launched and recorded."""

    def losses(records: bool) -> list[float]:
        machine = Machine(device=torch.device(device), architecture=TOY, compiles=compiles, records=records)
        folder = tmp_path / str(records)
        _, _, done = train_toy(toy_settings(20), tokenizer, folder, Deadline(None), machine)
        assert done
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return [line[name] for line in lines for name in ("loss_high", "loss_low")]

    launched, recorded = losses(records=False), losses(records=True)
    assert len(launched) == 4 and max(launched[2:]) < max(launched[:2])
    assert recorded == pytest.approx(launched, rel=0.05)
