"""Write a model of real size with random weights, in ComfyUI's file layout, for measurements of speed and memory.

    python -m benchmarks.random_model DIR [--parts experts,text,vae] [--device cuda]

Two experts of 28.6 GB in bfloat16, a UMT5-XXL encoder (its vocabulary is the miniature's, so the embedding is small)
and a Wan 2.1 VAE. Numbers are drawn on the device and written tensor by tensor, so that memory stays small. The scales
are the miniature's: activations keep their size, so nothing is zero, infinite or unnaturally cheap.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from miniature.vocabulary import train_vocabulary
from miniature.weights import Table, text_encoder_table, transformer_table, vae_table
from miniature.write import hugging_face_name
from wan_core.specs import T2V_A14B_TRANSFORMER, UMT5_XXL, WAN21_VAE, Expert

VOCABULARY = 1024
_SAFETENSORS_BF16, _SAFETENSORS_U8 = "BF16", "U8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", default="experts,text,vae")
    parser.add_argument("--layers", type=int, default=T2V_A14B_TRANSFORMER.num_layers, help="fewer for a quick look")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    spec = replace(T2V_A14B_TRANSFORMER, num_layers=arguments.layers)
    if "experts" in parts:
        for expert in Expert:
            path = arguments.folder / "diffusion_models" / f"random_{expert.value}_noise_14B.safetensors"
            write(path, transformer_table(spec), arguments.device, {"wan_velocity.expert": expert.value})
    if "text" in parts:
        path = arguments.folder / "text_encoders" / "random_umt5_xxl.safetensors"
        table = text_encoder_table(replace(UMT5_XXL, vocab_size=VOCABULARY))
        table = {hugging_face_name(name): draw for name, draw in table.items()}
        write(path, table, arguments.device, {}, spiece_model=train_vocabulary(VOCABULARY))
    if "vae" in parts:
        write(arguments.folder / "vae" / "random_wan21_vae.safetensors", vae_table(WAN21_VAE), arguments.device, {})


def write(path: Path, table: Table, device: str, metadata: dict[str, str], spiece_model: bytes = b"") -> None:
    """One safetensors file in bfloat16: the header is known beforehand, the tensors follow as they are drawn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header, offset = {"__metadata__": metadata} if metadata else {}, 0
    for name, draw in table.items():
        size = 2 * torch.Size(draw.shape).numel()
        header[name] = _entry(_SAFETENSORS_BF16, draw.shape, offset, size)
        offset += size
    if spiece_model:
        header["spiece_model"] = _entry(_SAFETENSORS_U8, (len(spiece_model),), offset, len(spiece_model))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = perf_counter()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in _tensors(table, path.name, device):
            file.write(memoryview(tensor.view(torch.uint8).numpy()))
        file.write(spiece_model)
    seconds = perf_counter() - start
    print(f"{path}: {offset / 1e9:.2f} GB in {seconds:.1f} s, {offset / seconds / 1e9:.2f} GB/s", flush=True)


def _tensors(table: Table, name: str, device: str) -> Iterator[Tensor]:
    generator = torch.Generator(device).manual_seed(sum(name.encode()))
    for draw in table.values():
        values = torch.randn(draw.shape, generator=generator, device=device, dtype=torch.float32)
        yield (values * draw.std + draw.mean).to(torch.bfloat16).flatten().cpu()


def _entry(dtype: str, shape: tuple[int, ...], offset: int, size: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}


if __name__ == "__main__":
    main()
