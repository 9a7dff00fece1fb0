"""Filling modules: values, dtypes, progress, what happens to a load that does not end, and its memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.bench_load import host
from tests.unit.checkpoint.loading import load
from tests.unit.checkpoint.synthetic import (
    TEXT_ENCODER,
    TRANSFORMER,
    expert_tensors,
    hugging_face,
    prefixed,
    text_encoder_tensors,
    vae_tensors,
    write,
    write_shards,
)
from wan_core.checkpoint.read import open_checkpoint
from wan_core.errors import CheckpointError, Interrupted
from wan_core.models.t5 import Umt5Encoder
from wan_core.models.transformer import WanTransformer, wants_float32


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    raise AssertionError("nothing runs in these tests")


def transformer() -> WanTransformer:
    with torch.device("meta"):
        return WanTransformer(TRANSFORMER, attend=attention, cross_attend=attention)


def as_float32(name: str) -> torch.dtype:
    return torch.float32


@pytest.mark.parametrize("layout", ["file", "prefixed", "sharded"])
def test_every_parameter_gets_its_tensor(tmp_path: Path, layout: str) -> None:
    tensors = expert_tensors()
    if layout == "sharded":
        path = write_shards(tmp_path / "expert", tensors)
    else:
        prefix = "model.diffusion_model." if layout == "prefixed" else ""
        path = write(tmp_path / "expert.safetensors", prefixed(tensors, prefix))
    module = transformer()
    load(module, open_checkpoint(path), as_float32)
    loaded = dict(module.named_parameters())
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert not any(parameter.requires_grad for parameter in loaded.values())


def test_a_text_encoder_in_the_names_of_transformers(tmp_path: Path) -> None:
    tensors = text_encoder_tensors()
    path = write(tmp_path / "umt5.safetensors", hugging_face(tensors))
    with torch.device("meta"):
        module = Umt5Encoder(TEXT_ENCODER)
    load(module, open_checkpoint(path), as_float32)
    assert all(torch.equal(parameter, tensors[name]) for name, parameter in module.named_parameters())


def test_dtypes_are_chosen_by_name(tmp_path: Path) -> None:
    tensors = expert_tensors()
    module = transformer()
    load(
        module,
        open_checkpoint(write(tmp_path / "expert.safetensors", tensors)),
        lambda name: torch.float32 if wants_float32(name) else torch.bfloat16,
    )
    for name, parameter in module.named_parameters():
        assert parameter.dtype == (torch.float32 if wants_float32(name) else torch.bfloat16)
        assert torch.equal(parameter, tensors[name].to(parameter.dtype))


def test_pieces_smaller_than_a_tensor_join_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan_core.checkpoint.stream._HOST_PIECE", 60)
    tensors = expert_tensors()
    module = transformer()
    checkpoint = open_checkpoint(write(tmp_path / "expert.safetensors", tensors))
    load(module, checkpoint, lambda name: torch.float64)
    assert all(torch.equal(parameter, tensors[name].double()) for name, parameter in module.named_parameters())


def test_loaded_in_inference_mode_the_parameters_are_ordinary(tmp_path: Path) -> None:
    module = transformer()
    with torch.inference_mode():
        load(module, open_checkpoint(write(tmp_path / "e.safetensors", expert_tensors())), as_float32)
    assert not any(parameter.is_inference() for parameter in module.parameters())
    module.to(torch.float16)


def test_progress_ends_at_the_size_of_the_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "expert.safetensors", expert_tensors()))
    seen: list[tuple[int, int]] = []
    load(transformer(), checkpoint, as_float32, on_progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == len(checkpoint.tensors)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {checkpoint.nbytes} and seen[-1][0] == checkpoint.nbytes


def test_an_interrupt_leaves_nothing_half_loaded(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "expert.safetensors", expert_tensors()))
    module = transformer()

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise Interrupted("stopped while loading")

    with pytest.raises(Interrupted):
        load(module, checkpoint, as_float32, on_progress=stop)
    assert all(parameter.is_meta for parameter in module.parameters())
    load(module, checkpoint, as_float32)
    assert not any(parameter.is_meta for parameter in module.parameters())


def test_a_shard_that_goes_away_while_loading_leaves_nothing_half_loaded(tmp_path: Path) -> None:
    tensors = expert_tensors()
    folder = write_shards(tmp_path / "expert", tensors)
    checkpoint, module, seen = open_checkpoint(folder), transformer(), []
    (folder / "diffusion_pytorch_model-00003-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(module, checkpoint, as_float32, on_progress=lambda done, total: seen.append(done))
    assert seen and all(parameter.is_meta for parameter in module.parameters())


def broken(change: str) -> dict[str, torch.Tensor]:
    tensors = expert_tensors()
    if change == "missing":
        del tensors["blocks.1.norm3.weight"], tensors["head.head.bias"]
    elif change == "shape":
        tensors["head.head.bias"] = torch.ones(3)
    elif change == "integers":
        tensors["head.head.bias"] = torch.ones(64, dtype=torch.int8)
    else:
        tensors["blocks.2.modulation"] = torch.ones(1, 6, 16)
    return tensors


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ("missing", "lacks 2 of the 69 tensors that the model needs, the first is 'blocks.1.norm3.weight'"),
        (
            "shape",
            "holds 1 tensor of another shape than the model's, the first is 'head.head.bias': (3,), expected (64,)",
        ),
        ("integers", "holds weights as int8 without their scales: 1 tensor, the first is 'head.head.bias'"),
        ("unexpected", "holds 1 tensor that the model has no place for, the first is 'blocks.2.modulation'"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_read(tmp_path: Path, change: str, fragment: str) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "expert.safetensors", broken(change)))
    module = transformer()
    with pytest.raises(CheckpointError) as caught:
        load(module, checkpoint, as_float32, on_progress=lambda done, total: pytest.fail("something was read"))
    assert fragment in str(caught.value)
    assert all(parameter.is_meta for parameter in module.parameters())


def test_other_models_in_the_same_file_do_not_disturb(tmp_path: Path) -> None:
    tensors = expert_tensors()
    full = prefixed(tensors, "model.diffusion_model.") | prefixed(vae_tensors(), "first_stage_model.")
    module = transformer()
    load(module, open_checkpoint(write(tmp_path / "full.safetensors", full)), as_float32)
    assert all(torch.equal(parameter, tensors[name]) for name, parameter in module.named_parameters())


def test_parameters_of_the_module_itself(tmp_path: Path) -> None:
    with torch.device("meta"):
        module = nn.Linear(3, 2)
    weight, bias = torch.randn(2, 3), torch.randn(2)
    load(module, open_checkpoint(write(tmp_path / "l.safetensors", {"weight": weight, "bias": bias})), as_float32)
    assert torch.equal(module.weight, weight) and torch.equal(module.bias, bias)


@pytest.mark.gpu
def test_straight_to_the_gpu(tmp_path: Path) -> None:
    tensors = expert_tensors()
    module = transformer()
    checkpoint = open_checkpoint(write(tmp_path / "e.safetensors", tensors))
    load(module, checkpoint, lambda name: torch.bfloat16, device="cuda:0")
    assert all(parameter.is_cuda for parameter in module.parameters())
    assert all(torch.equal(p.cpu(), tensors[name].bfloat16()) for name, p in module.named_parameters())


_MEASURE = """
import sys, torch
from pathlib import Path
from torch import nn
from tests.unit.checkpoint.loading import load
from wan_core.checkpoint.read import open_checkpoint

def kilobytes(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))

checkpoint = open_checkpoint(sys.argv[1])
for dtype in (torch.bfloat16, torch.float16):
    torch.ones(8).to(dtype)
    with torch.device("meta"):
        module = nn.ParameterDict({name: torch.empty(info.shape) for name, info in checkpoint.tensors.items()})
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    load(module, checkpoint, lambda name: dtype)
    size = sum(parameter.nbytes for parameter in module.parameters())
    print((kilobytes("VmHWM") - before) * 1024 / size)
    del module
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux reports it")
def test_memory_stays_near_the_size_of_the_module(tmp_path: Path) -> None:
    # One tensor holds a third of it, as the token embedding of a text encoder does.
    tensors = {f"w{i}": torch.ones(3, 2**21, dtype=torch.bfloat16) for i in range(11)}
    tensors["large"] = torch.ones(2**25, dtype=torch.bfloat16)
    path = write(tmp_path / "large.safetensors", tensors)
    assert path.stat().st_size > 200e6
    measured = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    growth = [float(line) for line in measured.stdout.split()]
    assert len(growth) == 2 and all(0.9 < value < 1.15 for value in growth), growth


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux reports it")
def test_an_expert_of_two_gigabytes_takes_little_more_than_itself(tmp_path: Path) -> None:
    measured = host(tmp_path, 2.0, "bfloat16")
    assert measured["file_gb"] >= 2.0 and measured["weights_gb"] == pytest.approx(measured["file_gb"])
    assert 0.9 < measured["peak_over_weights"] < 1.15
