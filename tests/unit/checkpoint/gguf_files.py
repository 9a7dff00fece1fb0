"""GGUF files written by the package `gguf`, as the converters of ComfyUI-GGUF and llama.cpp write them.

The package has no quantiser for the K formats in Python, so they are packed here by the layout of ggml-common.h; what
a packed file stands for is always the package's own word (`gguf.dequantize`).
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

Packed = np.ndarray  # rows of bytes


def quantise(values: np.ndarray, kind: Type) -> Packed:
    pack = {Type.Q4_K: lambda v: _q45_k(v, 4), Type.Q5_K: lambda v: _q45_k(v, 5), Type.Q6_K: _q6_k}.get(kind)
    if pack is None:
        return gguf.quantize(values, kind)
    blocks = pack(values.reshape(-1, 256).astype(np.float32))
    return blocks.reshape(*values.shape[:-1], -1)


def unet_like(name: str, tensor: Tensor, kind: Type) -> Type:
    """ComfyUI-GGUF's choice: matrices of the blocks in the given type, modulation and vectors wide."""
    return kind if name.startswith("blocks.") and tensor.dim() == 2 else Type.F32


def write_gguf(
    path: Path,
    weights: Mapping[str, Tensor],
    kind: Type | Callable[[str, Tensor], Type],
    *,
    arch: str = "wan",
    name_of: Callable[[str], str] = str,
    keep_5d: bool = False,
    extend: Callable[[gguf.GGUFWriter], None] | None = None,
) -> dict[str, Tensor]:
    """Write weights; returns what the file stands for. keep_5d: as the "5D fix" does it, without `orig_shape`."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    stand_for = {}
    for name, tensor in weights.items():
        values, stored_as = tensor.float().numpy(), name_of(name)
        chosen = kind(name, tensor) if callable(kind) else unet_like(name, tensor, kind)
        if values.ndim > 4 and not keep_5d:
            writer.add_array(f"comfy.gguf.orig_shape.{stored_as}", tuple(int(size) for size in values.shape))
            values = values.reshape(-1, values.shape[-1])
        packed = quantise(values, chosen)
        writer.add_tensor(stored_as, packed, raw_dtype=chosen)
        unpacked = packed if chosen in (Type.F32, Type.F16) else gguf.dequantize(packed, chosen)
        stand_for[name] = torch.from_numpy(unpacked.astype(np.float32)).reshape(tensor.shape)
    if extend is not None:
        extend(writer)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stand_for


def text_encoder_name(name: str) -> str:
    """llama.cpp's name of what transformers calls `name`, by the package's own table."""
    return _text_encoder_names().get_name(name, try_suffixes=(".weight",))


@cache
def _text_encoder_names() -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 99)


def _halves(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).reshape(-1, 1).view(np.uint8)


def _q45_k(blocks: np.ndarray, bits: int) -> Packed:
    """Eight sub-blocks of 32 with a scale and an offset of six bits each; numbers of four or five bits."""
    subs = blocks.reshape(-1, 8, 32)
    lowest = np.minimum(subs.min(-1), 0.0)
    ranges, top = subs.max(-1) - lowest, 2**bits - 1
    d, m = (ranges / top).max(-1) / 63, (-lowest).max(-1) / 63
    d, m = d.astype(np.float16).astype(np.float32), m.astype(np.float16).astype(np.float32)
    scales = np.clip(np.ceil(ranges / top / d[:, None]), 1, 63).astype(np.uint8)
    offsets = np.clip(np.round(-lowest / m[:, None]), 0, 63).astype(np.uint8)
    shifted = subs + (m[:, None] * offsets)[..., None]
    numbers = np.clip(np.round(shifted / (d[:, None] * scales)[..., None]), 0, top).astype(np.uint8)
    low = numbers & 15
    nibbles = (low[:, 0::2] | low[:, 1::2] << 4).reshape(-1, 128)
    fifths = np.zeros((len(blocks), 32), np.uint8)
    for sub in range(8):
        fifths |= (numbers[:, sub] >> 4) << sub
    parts = [_halves(d), _halves(m), _six_bits(scales, offsets), *((fifths,) if bits == 5 else ()), nibbles]
    return np.concatenate(parts, axis=-1)


def _six_bits(scales: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    first = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    second = offsets[:, :4] | (offsets[:, 4:] >> 4) << 6
    return np.concatenate((first, second, scales[:, 4:] & 15 | (offsets[:, 4:] & 15) << 4), axis=-1)


def _q6_k(blocks: np.ndarray) -> Packed:
    """Sixteen sub-blocks of 16 with a signed scale of eight bits each; numbers of six bits around zero."""
    subs = blocks.reshape(-1, 16, 16)
    ranges = np.abs(subs).max(-1) / 31
    d = (ranges.max(-1) / 127).astype(np.float16).astype(np.float32)
    scales = np.clip(np.ceil(ranges / d[:, None]), 1, 127).astype(np.int8)
    numbers = np.clip(np.round(subs / (d[:, None] * scales)[..., None]) + 32, 0, 63).astype(np.uint8)
    quarters = numbers.reshape(-1, 2, 4, 32)
    low = (quarters[:, :, :2] & 15 | (quarters[:, :, 2:] & 15) << 4).reshape(-1, 128)
    high = np.zeros((len(blocks), 2, 32), np.uint8)
    for quarter in range(4):
        high |= (quarters[:, :, quarter] >> 4) << 2 * quarter
    return np.concatenate((low, high.reshape(-1, 64), scales.view(np.uint8), _halves(d)), axis=-1)
