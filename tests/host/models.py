"""Model files of the host suite, random weights: the miniature, and relatives of it that only tests need."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from gguf import GGMLQuantizationType

from miniature.architecture import TRANSFORMER
from miniature.weights import draw_table, random_parts, transformer_table
from miniature.write import write_miniature, write_safetensors
from tests.unit.checkpoint.gguf_files import write_gguf
from tests.unit.checkpoint.scaled_files import lightx2v
from wan_core.specs import TransformerSpec

WIDE_TEXT = {"high_noise": "wide_text_high_noise.safetensors", "low_noise": "wide_text_low_noise.safetensors"}
I2V = "i2v_high_noise.safetensors"
TRUNCATED = "truncated_high_noise.safetensors"
OFFICIAL = "official_mini"
# The miniature once more, in other formats.
GGUF = {"high_noise": "wan_mini_high_noise.gguf", "low_noise": "wan_mini_low_noise.gguf"}
BY_BLOCK = {"high_noise": "by_block_high_noise", "low_noise": "by_block_low_noise"}
# The shipped, trained model under names of its own: the random one has the shipped names.
SHIPPED = Path(__file__).parents[2] / "models" / "wan_velocity_mini"
TRAINED = {
    f"wan_velocity_mini_{part}.safetensors": f"trained_{part}.safetensors"
    for part in ("high_noise", "low_noise", "text_encoder", "vae")
}
ENCODER_PTH, VAE_PTH = "models_t5_mini.pth", "Wan2.1_VAE_mini.pth"


def write_models(folder: Path) -> None:
    """Everything below `folder`, float32, in the subfolders that ComfyUI looks into."""
    write_miniature(folder / "miniature", dtype=torch.float32)
    experts = folder / "tests" / "diffusion_models"
    write_miniature(experts / OFFICIAL, layout="official", dtype=torch.float32)
    # The width of the real text encoder, which is the only one that a native CLIP loader knows.
    for name in WIDE_TEXT.values():
        _write_expert(experts / name, replace(TRANSFORMER, num_layers=2, text_dim=4096))
    _write_expert(experts / I2V, replace(TRANSFORMER, num_layers=1, in_dim=36))
    _write_other_formats(folder / "tests")
    for file in SHIPPED.rglob("*.safetensors"):
        link = folder / "trained" / file.parent.name / TRAINED[file.name]
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    whole = (experts / I2V).read_bytes()
    (experts / TRUNCATED).write_bytes(whole[: len(whole) // 2])


def _write_other_formats(folder: Path) -> None:
    parts = random_parts(0, torch.float32)
    for expert, tensors in parts.experts.items():
        path = folder / "diffusion_models" / GGUF[f"{expert.value}_noise"]
        write_gguf(path, tensors, GGMLQuantizationType.F32)
        by_block = folder / "diffusion_models" / BY_BLOCK[f"{expert.value}_noise"]
        lightx2v(by_block, tensors, torch.int8, with_index=True)
    for name, tensors in ((f"text_encoders/{ENCODER_PTH}", parts.text_encoder), (f"vae/{VAE_PTH}", parts.vae)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(tensors), folder / name)
    (folder / "text_encoders" / "spiece.model").write_bytes(parts.vocabulary)


def _write_expert(path: Path, spec: TransformerSpec) -> None:
    config = {"transformer": {"num_heads": spec.num_heads, "text_dim": spec.text_dim}}
    metadata = {"format": "pt", "config": json.dumps(config)}
    write_safetensors(path, draw_table(transformer_table(spec), path.name, torch.float32), metadata)
