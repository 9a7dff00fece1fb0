"""Wan 2.1 VAEs: dimensions, and what is refused in their place."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.checkpoint.refusals import sentence_of
from tests.unit.checkpoint.synthetic import VAE, expert_tensors, prefixed, vae_tensors, write
from wan_core.checkpoint.read import open_checkpoint
from wan_core.checkpoint.vae import open_vae, vae_spec
from wan_core.specs import VaeSpec


def refusal(path: Path, tensors: dict[str, Tensor]) -> str:
    return sentence_of(lambda: vae_spec(open_checkpoint(write(path / "model.safetensors", tensors))))


@pytest.mark.parametrize("prefix", ["", "model.", "vae."])
@pytest.mark.parametrize(
    "spec",
    [VAE, replace(VAE, dim=6, num_res_blocks=1), replace(VAE, dim=2, dim_multipliers=(1, 2, 2, 8))],
    ids=["miniature", "one block", "other widths"],
)
def test_dimensions_come_from_the_tensors(tmp_path: Path, spec: VaeSpec, prefix: str) -> None:
    source = open_vae(write(tmp_path / "vae.safetensors", prefixed(vae_tensors(spec), prefix)))
    assert source.spec == spec and len(source.checkpoint.tensors) == len(vae_tensors(spec))


def test_the_wan_22_vae(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, vae_tensors(replace(VAE, latent_channels=48)))
    assert "is the Wan 2.2 VAE (48 latent channels), which belongs to TI2V-5B" in sentence
    assert "wan_2.1_vae.safetensors (16 latent channels)" in sentence
    nested = vae_tensors() | {"decoder.upsamples.0.upsamples.0.residual.2.weight": torch.ones(2)}
    assert "is the Wan 2.2 VAE" in refusal(tmp_path, nested)


def test_other_vaes(tmp_path: Path) -> None:
    assert "is a VAE of 8 latent channels" in refusal(tmp_path, vae_tensors(replace(VAE, latent_channels=8)))
    for temporal, stride in (((False, False, True), "(2, 8, 8)"), ((True, True), "(4, 4, 4)")):
        multipliers = (1, 2, 4, 4)[: len(temporal) + 1]
        spec = replace(VAE, temporal_downsample=temporal, dim_multipliers=multipliers)
        assert f"of stride {stride}, expected (4, 8, 8)" in refusal(tmp_path, vae_tensors(spec))


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({"decoder.mid_block.resnets.0.norm1.weight": torch.ones(2)}, "looks like a VAE of an image model"),
        ({"decoder.mid.block_1.conv1.weight": torch.ones(2)}, "looks like a VAE of an image model"),
        (expert_tensors(), "looks like a Wan transformer"),
    ],
)
def test_files_that_are_no_wan_vae(tmp_path: Path, tensors: dict[str, Tensor], what: str) -> None:
    sentence = refusal(tmp_path, tensors)
    assert what in sentence and "expected a Wan 2.1 VAE such as wan_2.1_vae.safetensors" in sentence


def test_incomplete_and_misshapen_files(tmp_path: Path) -> None:
    tensors = vae_tensors()
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("decoder.head")}
    assert "lacks 3 of the 194 tensors of a Wan 2.1 VAE, the first is 'decoder.head.0.gamma'" in refusal(
        tmp_path, without
    )
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.downsamples")}
    assert "0 residual blocks and 0 resampling layers, expected 8 and 3" in refusal(tmp_path, without)
    wrong = tensors | {"decoder.head.2.bias": torch.ones(4)}
    assert "has 1 tensor of the wrong shape, the first is 'decoder.head.2.bias': (4,), expected (3,)" in refusal(
        tmp_path, wrong
    )
    whole = {name: tensor.to(torch.int8) for name, tensor in tensors.items()}
    assert "holds weights as int8 without their scales" in refusal(tmp_path, whole)
