"""ComfyUI's own loader and ours take the same numbers out of the same quantised files, bit by bit.

ComfyUI's Python reads each file by ComfyUI's rules (`convert_old_quants`, the linear layer of `mixed_precision_ops`),
multiplies it out in float32 and writes down what it found.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.host.server import ComfyInstall, environment
from tests.unit.checkpoint import scaled_files as scaled
from tests.unit.checkpoint.models import draw_transformer
from wan_core.checkpoint.read import open_checkpoint

_READ = """
import sys
files = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu"]
import torch
import comfy.options
comfy.options.enable_args_parsing()
import comfy.ops, comfy.utils
from safetensors.torch import save_file
ops = comfy.ops.mixed_precision_ops({}, torch.float32)
for file in files:
    tensors, metadata = comfy.utils.load_torch_file(file, return_metadata=True)
    tensors, _ = comfy.utils.convert_old_quants(tensors, model_prefix="", metadata=metadata)
    values = {}
    for name in [name for name in tensors if name.endswith(".comfy_quant")]:
        layer = name.removesuffix(".comfy_quant")
        rows, columns = tensors[layer + ".weight"].shape
        linear = ops.Linear(columns, rows, bias=False)
        held = {key[len(layer) + 1:]: value for key, value in tensors.items() if key.startswith(layer + ".")}
        held.pop("bias", None)
        linear.load_state_dict(held, strict=False)
        values[layer + ".weight"] = linear.weight.dequantize().contiguous()
    save_file(values, file + ".values")
"""

FILES: dict[str, Callable[[Path, dict[str, Tensor]], object]] = {
    "fp8_scaled": scaled.comfy_scaled,
    "kijai": lambda path, weights: scaled.kijai_scaled(path, weights, scaled.E4M3, "scale_weight"),
    "float8_e4m3fn": lambda path, weights: scaled.comfy_quant(
        path, weights, "float8_e4m3fn", rows=False, in_metadata=False
    ),
    "float8_e5m2": lambda path, weights: scaled.comfy_quant(
        path, weights, "float8_e5m2", rows=False, in_metadata=False
    ),
    "int8": lambda path, weights: scaled.comfy_quant(path, weights, "int8_tensorwise", rows=False, in_metadata=False),
    "int8 by row": lambda path, weights: scaled.comfy_quant(
        path, weights, "int8_tensorwise", rows=True, in_metadata=False
    ),
    "metadata": lambda path, weights: scaled.comfy_quant(path, weights, "float8_e4m3fn", rows=False, in_metadata=True),
}


@pytest.fixture(scope="module")
def read_by_comfy(install: ComfyInstall, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, weights = tmp_path_factory.mktemp("quantised"), draw_transformer()
    paths = {name: folder / f"{name}.safetensors" for name in FILES}
    for name, write in FILES.items():
        write(paths[name], weights)
    subprocess.run(
        [install.python, "-c", _READ, *map(str, paths.values())], cwd=install.root, env=environment(), check=True
    )
    return paths


@pytest.mark.parametrize("name", FILES)
def test_the_same_numbers(read_by_comfy: dict[str, Path], name: str) -> None:
    theirs = load_file(f"{read_by_comfy[name]}.values")
    checkpoint = open_checkpoint(read_by_comfy[name])
    # `head.head` is among those that Kijai quantises.
    assert len(theirs) == (21 if name == "kijai" else 20)
    for weight, values in theirs.items():
        assert torch.equal(checkpoint.load(weight), values), weight
