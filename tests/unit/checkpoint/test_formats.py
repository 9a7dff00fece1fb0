"""Every format of the transformer: a small file in its real layout, written by an independent path, loads.

The loaded weights equal what the file stands for to float32's last bits, and the model's output equals that of the
plain weights within the format's own quantisation error, stated here for each. The errors are relative, in the
Frobenius norm, for random weights: the worst case, since trained ones have a narrower spread.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from tests.parity.diffusers_names import to_diffusers
from tests.unit.checkpoint import scaled_files as scaled
from tests.unit.checkpoint.gguf_files import write_gguf
from tests.unit.checkpoint.models import (
    TRANSFORMER,
    draw_transformer,
    draw_vae,
    loaded_transformer,
    relative_error,
    velocity,
)
from tests.unit.checkpoint.synthetic import prefixed, write_shards
from wan_core.build import build_experts
from wan_core.checkpoint.experts import open_experts
from wan_core.checkpoint.read import open_checkpoint
from wan_core.checkpoint.stream import empty
from wan_core.checkpoint.transformer import transformer_spec
from wan_core.errors import CheckpointError
from wan_core.hardware import Hardware
from wan_core.plan import Workload, resolve
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, recipe

Weights = dict[str, Tensor]
Writer = Callable[[Path, Weights], tuple[Path, Weights]]


def file(write: Callable[..., Weights], *arguments: object, **options: object) -> Writer:
    def written(folder: Path, weights: Weights) -> tuple[Path, Weights]:
        path = folder / "wan2.2_high_noise.safetensors"
        return path, write(path, weights, *arguments, **options)

    return written


def plain(dtype: torch.dtype, prefix: str = "") -> Writer:
    def written(folder: Path, weights: Weights) -> tuple[Path, Weights]:
        stored = {name: tensor.to(dtype) for name, tensor in weights.items()}
        path = scaled.save(folder / "wan2.2_high_noise.safetensors", prefixed(stored, prefix))
        return path, {name: tensor.float() for name, tensor in stored.items()}

    return written


def official(folder: Path, weights: Weights) -> tuple[Path, Weights]:
    path = write_shards(folder / "high_noise_model", weights)
    (path / "config.json").write_text(json.dumps({"model_type": "t2v", "dim": 256, "num_heads": 2, "num_layers": 2}))
    return path, weights


def full_checkpoint(folder: Path, weights: Weights) -> tuple[Path, Weights]:
    tensors = prefixed(weights, "model.diffusion_model.") | prefixed(draw_vae(), "first_stage_model.")
    return scaled.save(folder / "full.safetensors", tensors), weights


def of_diffusers(folder: Path, weights: Weights) -> tuple[Path, Weights]:
    """By diffusers itself: its module, its config.json, its shards and their index."""
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=128, in_channels=16, out_channels=16, text_dim=256, freq_dim=256,
        ffn_dim=512, num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    model.load_state_dict({to_diffusers(name): tensor for name, tensor in weights.items()})
    model.save_pretrained(folder / "transformer", max_shard_size="2MB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    return folder / "transformer", weights


def by_block(dtype: torch.dtype, *, with_index: bool) -> Writer:
    def written(folder: Path, weights: Weights) -> tuple[Path, Weights]:
        path = folder / "high_noise_model"
        return path, scaled.lightx2v(path, weights, dtype, with_index=with_index)

    return written


def mixed(name: str, tensor: Tensor) -> Type:
    """The mix of the files in the wild: F16 for most that is small, five or six bits for what matters more."""
    if not scaled.is_block_matrix(name, tensor):
        return Type.F32 if "modulation" in name else Type.F16
    return Type.Q6_K if name.endswith("attn.v.weight") else Type.Q5_K if "ffn.2" in name else Type.Q4_K


def of_gguf(kind: Type | Callable[[str, Tensor], Type], **options: object) -> Writer:
    def written(folder: Path, weights: Weights) -> tuple[Path, Weights]:
        path = folder / "Wan2.2-T2V-A14B-HighNoise.gguf"
        return path, write_gguf(path, weights, kind, **options)

    return written


E4M3, E5M2 = scaled.E4M3, scaled.E5M2
UNQUANTISED = 1e-6
# Writer, largest error of the output.
FORMATS: dict[str, tuple[Writer, float]] = {
    "official shards": (official, UNQUANTISED),
    "diffusers": (of_diffusers, UNQUANTISED),
    "full checkpoint": (full_checkpoint, UNQUANTISED),
    "fp32": (plain(torch.float32), UNQUANTISED),
    "bf16": (plain(torch.bfloat16), 5e-3),
    "fp16": (plain(torch.float16), 1e-3),
    "comfy fp8_scaled e4m3": (file(scaled.comfy_scaled), 4e-2),
    "comfy fp8_scaled e5m2": (file(scaled.comfy_scaled, E5M2), 8e-2),
    "comfy fp8_scaled prefixed": (file(scaled.comfy_scaled, E4M3, "model.diffusion_model."), 4e-2),
    "kijai scaled e4m3": (file(scaled.kijai_scaled, E4M3, "scale_weight"), 6e-2),
    "kijai scaled e5m2": (file(scaled.kijai_scaled, E5M2, "scale_weight"), 0.12),
    "kijai scaled, newer key": (file(scaled.kijai_scaled, E4M3, "weight_scale"), 6e-2),
    "plain e4m3": (file(scaled.kijai_plain, E4M3), 6e-2),
    "plain e5m2": (file(scaled.kijai_plain, E5M2), 0.12),
    "comfy_quant e4m3": (file(scaled.comfy_quant, "float8_e4m3fn", rows=False, in_metadata=False), 4e-2),
    "comfy_quant e5m2": (file(scaled.comfy_quant, "float8_e5m2", rows=False, in_metadata=False), 8e-2),
    "comfy_quant int8": (file(scaled.comfy_quant, "int8_tensorwise", rows=False, in_metadata=False), 2e-2),
    "comfy_quant int8 by row": (file(scaled.comfy_quant, "int8_tensorwise", rows=True, in_metadata=False), 1.2e-2),
    "quantization metadata e4m3": (file(scaled.comfy_quant, "float8_e4m3fn", rows=False, in_metadata=True), 4e-2),
    "quantization metadata int8": (file(scaled.comfy_quant, "int8_tensorwise", rows=False, in_metadata=True), 2e-2),
    "lightx2v fp8 by block": (by_block(E4M3, with_index=True), 4e-2),
    "lightx2v int8 by block, no index": (by_block(torch.int8, with_index=False), 1.2e-2),
    "gguf F32": (of_gguf(Type.F32), UNQUANTISED),
    "gguf F16": (of_gguf(Type.F16), 1e-3),
    "gguf BF16": (of_gguf(Type.BF16), 5e-3),
    "gguf Q8_0": (of_gguf(Type.Q8_0), 1e-2),
    "gguf Q6_K": (of_gguf(Type.Q6_K), 3e-2),
    "gguf Q5_K": (of_gguf(Type.Q5_K), 6e-2),
    "gguf Q5_1": (of_gguf(Type.Q5_1), 6e-2),
    "gguf Q5_0": (of_gguf(Type.Q5_0), 6e-2),
    "gguf Q4_K": (of_gguf(Type.Q4_K), 0.12),
    "gguf Q4_1": (of_gguf(Type.Q4_1), 0.12),
    "gguf Q4_0": (of_gguf(Type.Q4_0), 0.15),
    "gguf Q4_K_M": (of_gguf(mixed), 0.12),
    "gguf 5D fix": (of_gguf(Type.Q8_0, keep_5d=True), 1e-2),
    "gguf of sd.cpp": (of_gguf(Type.Q8_0, arch="pig"), 1e-2),
}


@pytest.fixture(scope="module")
def weights() -> Weights:
    return draw_transformer()


@pytest.fixture(scope="module")
def expected(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    path = scaled.save(tmp_path_factory.mktemp("plain") / "plain.safetensors", weights)
    return velocity(loaded_transformer(path))


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_loads(tmp_path: Path, weights: Weights, expected: Tensor, name: str) -> None:
    write, tolerance = FORMATS[name]
    path, stands_for = write(tmp_path, weights)
    checkpoint = open_checkpoint(path)
    assert transformer_spec(checkpoint) == TRANSFORMER
    model = loaded_transformer(checkpoint)
    for parameter, tensor in model.named_parameters():
        assert torch.allclose(tensor, stands_for[parameter], rtol=1e-6, atol=0), parameter
    error = relative_error(velocity(model), expected)
    assert error <= tolerance
    # A format that loses nothing where it should lose something was not what was read.
    assert tolerance == UNQUANTISED or error > tolerance / 50


IN_PIECES = [
    ("cpu", name) for name in ("plain e4m3", "comfy fp8_scaled e4m3", "comfy_quant int8 by row", "gguf Q4_K_M")
]
IN_PIECES += [pytest.param("cuda:0", name, marks=pytest.mark.gpu) for name in FORMATS]


@pytest.mark.parametrize(("device", "name"), IN_PIECES)
def test_a_format_in_pieces(
    tmp_path: Path, weights: Weights, device: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded where it goes, from pieces much smaller than a tensor; on a GPU they alternate between two buffers."""
    monkeypatch.setattr("wan_core.checkpoint.stream._HOST_PIECE", 10_000)
    monkeypatch.setattr("wan_core.checkpoint.stream._DEVICE_PIECE", 10_000)
    path, stands_for = FORMATS[name][0](tmp_path, weights)
    checkpoint = open_checkpoint(path)
    loaded = {each: empty(checkpoint.tensors[each], device, torch.float32) for each in weights}
    with checkpoint.reader() as reader:
        for parameter, target in loaded.items():
            reader.fill(checkpoint.tensors[parameter], target)
    for parameter, tensor in loaded.items():
        assert torch.allclose(tensor.cpu(), stands_for[parameter], rtol=1e-6, atol=0), parameter


def test_what_a_file_stores_is_told(tmp_path: Path, weights: Weights) -> None:
    told = {
        "comfy fp8_scaled e4m3": "float8_e4m3fn weights with a scale for each tensor in 20 of 69 tensors",
        "comfy_quant int8 by row": "int8 weights with a scale for each row in 20 of 69 tensors",
        "plain e5m2": "float8_e5m2 weights without scales in 21 of 69 tensors",
        "gguf Q4_K_M": "Q4_K blocks in 14 of 69 tensors and Q6_K blocks in 4 of 69 tensors and Q5_K blocks in 2 of 69",
        "gguf F16": "",
        "bf16": "",
    }
    for name, text in told.items():
        path, _ = FORMATS[name][0](tmp_path / name, weights)
        encoding = open_checkpoint(path).encoding
        assert (encoding.text.startswith(text), encoding.problem) == (True, "") and bool(encoding.text) == bool(text)


def test_two_formats_in_a_pair(tmp_path: Path, weights: Weights) -> None:
    low = draw_transformer(1)
    scaled.comfy_scaled(tmp_path / "wan_high_noise.safetensors", weights)
    write_gguf(tmp_path / "wan_low_noise.gguf", low, Type.Q8_0)
    pair = open_experts(tmp_path)
    assert (pair.high.format, pair.low.format, pair.spec) == ("safetensors", "GGUF", TRANSFORMER)


def test_the_same_weights_in_two_formats_are_no_pair(tmp_path: Path, weights: Weights) -> None:
    scaled.comfy_scaled(tmp_path / "wan_high_noise.safetensors", weights)
    write_gguf(tmp_path / "wan_low_noise.gguf", weights, Type.Q8_0)
    with pytest.raises(CheckpointError, match="hold the same weights"):
        open_experts(tmp_path)


def test_the_report_says_what_is_stored_and_what_is_computed_with(
    tmp_path: Path, weights: Weights, machine: Callable[..., Hardware]
) -> None:
    scaled.comfy_scaled(tmp_path / "wan_high_noise.safetensors", weights)
    scaled.save(tmp_path / "wan_low_noise.safetensors", draw_transformer(1))
    pair, hardware = open_experts(tmp_path), machine("cpu")
    workload = Workload(request=SampleRequest(recipe=recipe("lightning-4")), latent_size=(2, 4, 4))
    plan = resolve(preset("auto"), hardware, pair.spec, workload)
    (told,) = [each for each in build_experts(plan.binding, pair, hardware).decisions if "weights of" in each.topic]
    assert str(told).startswith("weights of the high-noise expert: float32 (decoded while loading; ")
    assert "stores float8_e4m3fn weights with a scale for each tensor in 20 of 69 tensors" in told.reason
