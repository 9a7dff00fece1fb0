"""Write a model of real size with random weights, in ComfyUI's file layout, for measurements of speed and memory.

    python -m benchmarks.random_model DIR [--parts experts,text,vae,lora] [--device cuda]
        [--form fp8|Q4_K|Q8_0]

Two experts of 28.6 GB in bfloat16, a UMT5-XXL encoder (its vocabulary is the miniature's, so the embedding is small)
and a Wan 2.1 VAE. Numbers are drawn on the device and written tensor by tensor, so that memory stays small. The scales
are the miniature's: activations keep their size, so nothing is zero, infinite or unnaturally cheap. With `--form` the
matrices of the experts' blocks are stored otherwise: as float8_e4m3fn with a scale each, as in ComfyUI's fp8_scaled
files, 14.9 GB; or in blocks of GGUF, as in the files of ComfyUI-GGUF, evenly distributed, 8.9 GB in Q4_K. The LoRA is a
pair of rank 64 on all linear layers of the blocks, 0.6 GB an expert, and a tenth of what it changes.
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
from miniature.weights import Draw, Table, text_encoder_table, transformer_table, vae_table
from miniature.write import hugging_face_name
from wan_core.kernels.decode import KNOWN_BLOCKS
from wan_core.specs import T2V_A14B_TRANSFORMER, UMT5_XXL, WAN21_VAE, Expert, TransformerSpec

VOCABULARY = 1024
LORA_RANK = 64
_SAFETENSORS_BF16, _SAFETENSORS_U8, _SAFETENSORS_F32, _SAFETENSORS_FP8 = "BF16", "U8", "F32", "F8_E4M3"
_LARGEST_FP8, _LARGEST_SIGMA = 448.0, 6.0
# Of the numbers that codes drawn evenly stand for, as multiples of a block's scale: their standard deviation.
GGUF_SPREADS = {"Q4_K": 32 * (16**2 / 12 - 1 / 12) ** 0.5, "Q8_0": (256**2 / 12 - 1 / 12) ** 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", default="experts,text,vae")
    parser.add_argument("--layers", type=int, default=T2V_A14B_TRANSFORMER.num_layers, help="fewer for a quick look")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--form", default="bfloat16", choices=("bfloat16", "fp8", *GGUF_SPREADS))
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    spec = replace(T2V_A14B_TRANSFORMER, num_layers=arguments.layers)
    if "experts" in parts:
        for expert in Expert:
            path = arguments.folder / "diffusion_models" / f"random_{expert.value}_noise_14B.safetensors"
            if arguments.form in GGUF_SPREADS:
                write_gguf(path.with_suffix(".gguf"), transformer_table(spec), arguments.device, arguments.form)
                continue
            metadata = {"wan_velocity.expert": expert.value}
            write(path, transformer_table(spec), arguments.device, metadata, fp8=arguments.form == "fp8")
    if "lora" in parts:
        for expert in Expert:
            path = arguments.folder / "loras" / f"random_{expert.value}_noise_lora.safetensors"
            write(path, lora_table(spec), arguments.device, {})
    if "text" in parts:
        path = arguments.folder / "text_encoders" / "random_umt5_xxl.safetensors"
        table = text_encoder_table(replace(UMT5_XXL, vocab_size=VOCABULARY))
        table = {hugging_face_name(name): draw for name, draw in table.items()}
        write(path, table, arguments.device, {}, spiece_model=train_vocabulary(VOCABULARY))
    if "vae" in parts:
        write(arguments.folder / "vae" / "random_wan21_vae.safetensors", vae_table(WAN21_VAE), arguments.device, {})


def lora_table(spec: TransformerSpec) -> Table:
    """Low-rank factors for every linear layer of the blocks."""
    table = {}
    for name, drawn in transformer_table(spec).items():
        if _is_block_matrix(name, drawn):
            (rows, columns), layer = drawn.shape, f"diffusion_model.{name.removesuffix('.weight')}"
            table[f"{layer}.lora_A.weight"] = Draw((LORA_RANK, columns), LORA_RANK**-0.5)
            table[f"{layer}.lora_B.weight"] = Draw((rows, LORA_RANK), 0.1 * drawn.std)
    return table


def write(
    path: Path, table: Table, device: str, metadata: dict[str, str], spiece_model: bytes = b"", *, fp8: bool = False
) -> None:
    """One safetensors file in bfloat16: the header is known beforehand, the tensors follow as they are drawn.

    fp8: matrices of blocks are codes, each followed by its scale.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    header, offset = {"__metadata__": metadata} if metadata else {}, 0
    for name, draw in table.items():
        is_coded = fp8 and _is_block_matrix(name, draw)
        size = (1 if is_coded else 2) * torch.Size(draw.shape).numel()
        header[name] = _entry(_SAFETENSORS_FP8 if is_coded else _SAFETENSORS_BF16, draw.shape, offset, size)
        offset += size
        if is_coded:
            header[f"{name.removesuffix('.weight')}.scale_weight"] = _entry(_SAFETENSORS_F32, (), offset, 4)
            offset += 4
    if spiece_model:
        header["spiece_model"] = _entry(_SAFETENSORS_U8, (len(spiece_model),), offset, len(spiece_model))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = perf_counter()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in _tensors(table, path.name, device, fp8=fp8):
            file.write(memoryview(tensor.view(torch.uint8).numpy()))
        file.write(spiece_model)
    seconds = perf_counter() - start
    print(f"{path}: {offset / 1e9:.2f} GB in {seconds:.1f} s, {offset / seconds / 1e9:.2f} GB/s", flush=True)


def _tensors(table: Table, file: str, device: str, *, fp8: bool) -> Iterator[Tensor]:
    generator = torch.Generator(device).manual_seed(sum(file.encode()))
    for name, draw in table.items():
        values = torch.randn(draw.shape, generator=generator, device=device, dtype=torch.float32)
        values = values * draw.std + draw.mean
        if fp8 and _is_block_matrix(name, draw):
            scale = _LARGEST_SIGMA * draw.std / _LARGEST_FP8
            yield (values / scale).clamp(-_LARGEST_FP8, _LARGEST_FP8).to(torch.float8_e4m3fn).flatten().cpu()
            yield torch.tensor([scale])
        else:
            yield values.to(torch.bfloat16).flatten().cpu()


def write_gguf(path: Path, table: Table, device: str, form: str) -> None:
    """The matrices of the blocks in blocks of GGUF, the rest in float32, through the package `gguf`."""
    from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(device).manual_seed(sum(path.name.encode()))
    writer, start = GGUFWriter(path, "wan"), perf_counter()
    writer.add_quantization_version(GGML_QUANT_VERSION)
    for name, drawn in table.items():
        if _is_block_matrix(name, drawn):
            blocks = _random_blocks(drawn, form, generator).cpu().numpy()
            writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType[form])
            continue
        values = torch.randn(drawn.shape, generator=generator, device=device) * drawn.std + drawn.mean
        if values.dim() > 4:  # more than the format knows: flat, and the shape beside it
            writer.add_array(f"comfy.gguf.orig_shape.{name}", tuple(drawn.shape))
            values = values.flatten(0, -2)
        writer.add_tensor(name, values.cpu().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB in {perf_counter() - start:.1f} s", flush=True)


def _random_blocks(drawn: Draw, form: str, generator: torch.Generator) -> Tensor:
    """Bytes (rows, bytes of a row) uint8 of any codes, under scales that give them the standard deviation."""
    known, (rows, columns) = KNOWN_BLOCKS[form], drawn.shape
    shape = (rows * columns // known.size, known.nbytes)
    blocks = torch.randint(256, shape, generator=generator, device=generator.device, dtype=torch.uint8)
    halves = torch.tensor([drawn.std / GGUF_SPREADS[form]], dtype=torch.float16, device=generator.device)
    if form == "Q4_K":
        # Scales and offsets of all sub-blocks are 32, whose six bits lie as `kernels/decode.py` says; an offset is 7.5
        # of its scale, so that numbers lie around zero.
        blocks[:, 4:12], blocks[:, 12:16] = 32 | 2 << 6, 0
        halves = torch.cat((halves, 7.5 * halves))
    blocks[:, : 2 * len(halves)] = halves.view(torch.uint8)
    return blocks.view(rows, -1)


def _is_block_matrix(name: str, draw: Draw) -> bool:
    return name.startswith("blocks.") and len(draw.shape) == 2


def _entry(dtype: str, shape: tuple[int, ...], offset: int, size: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}


if __name__ == "__main__":
    main()
