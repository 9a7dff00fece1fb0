"""What stands beside weights: formats that are refused with their reason, and statements that are damaged."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.checkpoint.refusals import sentence_of
from tests.unit.checkpoint.scaled_files import as_bytes, by_row, by_tensor
from tests.unit.checkpoint.synthetic import CONFIG, TRANSFORMER, expert_tensors, write
from wan_core.checkpoint.identify import identify
from wan_core.checkpoint.read import Checkpoint, open_checkpoint
from wan_core.checkpoint.transformer import transformer_spec

LAYER = "blocks.0.ffn.0"


def opened(folder: Path, changes: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Checkpoint:
    return open_checkpoint(write(folder / "model.safetensors", expert_tensors() | changes, CONFIG | (metadata or {})))


def refusal(folder: Path, changes: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    sentence = sentence_of(lambda: transformer_spec(opened(folder, changes, metadata)))
    assert "model.safetensors" in sentence
    return sentence


def stated(entry: object) -> dict[str, Tensor]:
    return {f"{LAYER}.comfy_quant": as_bytes(json.dumps(entry))}


PACKED = {f"{LAYER}.weight": torch.zeros(24, 8, dtype=torch.uint8)}
INT8 = {f"{LAYER}.weight": torch.zeros(24, 16, dtype=torch.int8)}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (PACKED | stated({"format": "nvfp4"}) | {f"{LAYER}.weight_scale_2": torch.ones(())}, "nvfp4 weights (4 bits)"),
        # LightX2V's, which state nothing.
        (PACKED | {f"{LAYER}.input_global_scale": torch.ones(1), f"{LAYER}.alpha": torch.ones(1)}, "nvfp4 weights"),
        (stated({"format": "mxfp8"}), "mxfp8 weights (8 bits in blocks of 32), which only GPUs of compute"),
        (PACKED | stated({"format": "convrot_w4a4"}), "convrot_w4a4 weights (4 bits), which are stored rotated"),
        (INT8 | stated({"format": "int8_tensorwise", "convrot": True}), "int8_tensorwise (convrot) weights, which are"),
        (INT8 | stated({"format": "int8_tensorwise", "params": {"convrot": True}}), "int8_tensorwise (convrot)"),
        (PACKED | stated({"format": "asym_w4a8_int8"}), "asym_w4a8_int8 weights"),
        (PACKED | stated({"format": "awq_w4a16"}), "awq_w4a16 weights (4 bits), which are not decoded here"),
        ({f"{LAYER}.pre_quant_scale": torch.ones(16)}, "weights for scaled inputs (pre_quant_scale)"),
        (stated({"format": "float3"}), "weights in the format 'float3', which is not known here"),
        (INT8, "weights as int8 without their scales"),
        (PACKED, "weights as uint8, which is not decoded here"),
        (INT8 | {f"{LAYER}.weight_scale": torch.ones(24, 4)}, "scales of shape (24, 4) for weights of shape (24, 16)"),
        (INT8 | {f"{LAYER}.weight_scale": torch.ones(1, dtype=torch.uint8)}, "scales of shape (1,)"),
    ],
)  # fmt: skip
def test_formats_that_are_not_decoded(tmp_path: Path, changes: dict[str, Tensor], what: str) -> None:
    sentence = refusal(tmp_path, changes)
    assert f"holds {what}" in sentence and "; use its bf16, fp16, fp8_scaled or GGUF version" in sentence
    found = identify(tmp_path / "model.safetensors")
    assert (found.kind, found.num_tensors) == ("transformer", 69) and f"holds {what}" in found.problems[0]


def test_formats_in_the_metadata(tmp_path: Path) -> None:
    def metadata(layers: object) -> dict[str, str]:
        return {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}

    assert "holds nvfp4 weights" in refusal(tmp_path, {}, metadata({LAYER: {"format": "nvfp4"}}))
    assert "name no layers" in refusal(tmp_path, {}, metadata(3))
    assert "names no format" in refusal(tmp_path, {}, metadata({LAYER: "nvfp4"}))
    assert "not readable JSON" in refusal(tmp_path, {}, {"_quantization_metadata": "{"})


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({f"{LAYER}.comfy_quant": as_bytes("{")}, "'blocks.0.ffn.0.comfy_quant' of '"),
        ({f"{LAYER}.comfy_quant": torch.ones(3)}, "is float32 of shape (3,), expected a short text"),
        ({f"{LAYER}.comfy_quant": torch.zeros(70_000, dtype=torch.uint8)}, "expected a short text"),
        (stated({"format": 4}), "names no format, expected one such as 'float8_e4m3fn'"),
    ],
)
def test_statements_that_are_damaged(tmp_path: Path, changes: dict[str, Tensor], fragment: str) -> None:
    assert fragment in refusal(tmp_path, changes)


def test_scales_that_belong_to_nothing_are_strangers(tmp_path: Path) -> None:
    assert "1 tensor that a text-to-video expert does not have, the first is 'blocks.0.ffn.7.scale_weight'" in refusal(
        tmp_path, {"blocks.0.ffn.7.scale_weight": torch.ones(())}
    )


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (24,), (24, 1)])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_every_shape_of_a_scale(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weight = expert_tensors()[f"{LAYER}.weight"]
    stored, scale = by_row(weight, dtype) if 24 in shape else by_tensor(weight, dtype)
    checkpoint = opened(tmp_path, {f"{LAYER}.weight": stored, f"{LAYER}.weight_scale": scale.reshape(shape).float()})
    assert transformer_spec(checkpoint) == TRANSFORMER
    loaded = checkpoint.load(f"{LAYER}.weight")
    assert loaded.dtype == torch.float32 and torch.equal(loaded, stored.float() * scale.float())


def test_values_are_rounded_once(tmp_path: Path) -> None:
    stored = torch.arange(24 * 16, dtype=torch.int16).reshape(24, 16).remainder(127).to(torch.int8)
    scale = torch.tensor(0.1)
    checkpoint = opened(tmp_path, {f"{LAYER}.weight": stored, f"{LAYER}.weight_scale": scale})
    loaded = checkpoint.load(f"{LAYER}.weight", dtype=torch.bfloat16)
    assert torch.equal(loaded, (stored.float() * scale).bfloat16())
    # To round the scale first and the product after it is the mistake that shows only in the last bit.
    assert not torch.equal(loaded, stored.bfloat16() * scale.bfloat16())


def test_the_mark_of_the_file_does_not_overrule_its_tensors(tmp_path: Path) -> None:
    """ComfyUI calls every file of the old form e4m3fn; these weights are e5m2 all the same."""
    weight = expert_tensors()[f"{LAYER}.weight"]
    stored, scale = by_tensor(weight, torch.float8_e5m2)
    changes = {f"{LAYER}.weight": stored, f"{LAYER}.scale_weight": scale, "scaled_fp8": torch.zeros(2)}
    assert torch.equal(opened(tmp_path, changes).load(f"{LAYER}.weight"), stored.float() * scale)
