"""LoRA files of every family, written by hand: their keys, and what merging them by hand does to an expert.

Nothing here comes from the tables under test: each family spells its own names, and each change is applied to the
tensors of an expert by the formula of its paper, in float64.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from wan_core.specs import Expert, TransformerSpec

Tensors = dict[str, Tensor]
# (tensors of an expert, strength) -> the tensors with the LoRA in them.
Merge = Callable[[Mapping[str, Tensor], float], Tensors]

# The ten linear layers of a block by their official names, and as other authors call them.
LINEARS = (
    "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o",
    "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.o", "ffn.0", "ffn.2",
)  # fmt: skip
DIFFUSERS = {
    "self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k", "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0", "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v", "cross_attn.o": "attn2.to_out.0", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
}  # fmt: skip


@dataclass(slots=True)
class Writer:
    """Collects the tensors of one file and what they do."""

    spec: TransformerSpec
    seed: int
    tensors: Tensors = field(default_factory=dict)
    merges: list[Merge] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        self.generator.manual_seed(self.seed)

    def random(self, *shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.generator) * std

    def adds(self, parameter: str, change: Tensor) -> None:
        """The file adds `change` to a parameter, times its strength."""

        def merge(expert: Mapping[str, Tensor], strength: float) -> Tensors:
            weight = expert[parameter]
            moved = weight.double() + strength * change.double().reshape(weight.shape)
            return {**expert, parameter: moved.float()}

        self.merges.append(merge)

    def merged(self, expert: Mapping[str, Tensor], strength: float) -> Tensors:
        for merge in self.merges:
            expert = merge(expert, strength)
        return dict(expert)

    def save(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, path, metadata=self.metadata or None)
        for name, text in self.beside.items():
            (path.parent / name).write_text(text)
        return path

    def size(self, linear: str) -> tuple[int, int]:
        """(out, in) of a linear layer of a block."""
        dim, ffn_dim = self.spec.dim, self.spec.ffn_dim
        return {"ffn.0": (ffn_dim, dim), "ffn.2": (dim, ffn_dim)}.get(linear, (dim, dim))

    def pair(self, size: tuple[int, int], rank: int) -> tuple[Tensor, Tensor]:
        """Random factors (rank, in) and (out, rank) whose product changes a weight by about a tenth."""
        out_features, in_features = size
        down = self.random(rank, in_features, std=in_features**-0.5)
        return down, self.random(out_features, rank, std=0.3 * rank**-0.5)


def low_rank(
    writer: Writer,
    name_of: Callable[[int, str], str],
    *,
    ends: tuple[str, str] = ("lora_down.weight", "lora_up.weight"),
    rank: int = 4,
    alpha: float | None = 2.0,
    scale: float | None = None,
) -> None:
    """All linear layers of all blocks. alpha: a tensor beside each; scale: what else the product is multiplied by."""
    for block in range(writer.spec.num_layers):
        for linear in LINEARS:
            down, up = writer.pair(writer.size(linear), rank)
            key = name_of(block, linear)
            writer.tensors[f"{key}.{ends[0]}"], writer.tensors[f"{key}.{ends[1]}"] = down, up
            if alpha is not None:
                writer.tensors[f"{key}.alpha"] = torch.tensor(alpha)
            factor = alpha / rank if alpha is not None else scale if scale is not None else 1.0
            writer.adds(f"blocks.{block}.{linear}.weight", factor * (up.double() @ down.double()))


def comfyui(writer: Writer) -> None:
    low_rank(writer, lambda block, linear: f"diffusion_model.blocks.{block}.{linear}")
    dim = writer.spec.dim
    for name, size in {
        "text_embedding.0": (dim, writer.spec.text_dim),
        "time_projection.1": (6 * dim, dim),
        "head.head": (64, dim),
    }.items():
        down, up = writer.pair(size, 3)
        key = f"diffusion_model.{name}"
        writer.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.ones(1)}
        writer.adds(f"{name}.weight", up.double() @ down.double() / 3)
    # A convolution: its factors are convolutions too.
    down, up = writer.pair((dim, 64), 2)
    key = "diffusion_model.patch_embedding"
    writer.tensors[f"{key}.lora_down.weight"] = down.reshape(2, 16, 1, 2, 2)
    writer.tensors[f"{key}.lora_up.weight"] = up.reshape(dim, 2, 1, 1, 1)
    writer.adds("patch_embedding.weight", up.double() @ down.double())


def extracted(writer: Writer) -> None:
    """What remains of a distilled model: ranks by layer, differences of biases, norms, modulation and the head."""
    dim = writer.spec.dim
    for block in range(writer.spec.num_layers):
        for number, linear in enumerate(LINEARS):
            size, key = writer.size(linear), f"diffusion_model.blocks.{block}.{linear}"
            rank = 2 + (block + number) % 5
            down, up = writer.pair(size, rank)
            bias = writer.random(size[0], std=0.1)
            writer.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.diff_b": bias}
            writer.adds(f"blocks.{block}.{linear}.weight", up.double() @ down.double())
            writer.adds(f"blocks.{block}.{linear}.bias", bias)
        for end, parameter, shape in (
            ("norm3.diff", "norm3.weight", (dim,)),
            ("norm3.diff_b", "norm3.bias", (dim,)),
            ("self_attn.norm_q.diff", "self_attn.norm_q.weight", (dim,)),
            ("cross_attn.norm_k.diff", "cross_attn.norm_k.weight", (dim,)),
            ("diff_m", "modulation", (1, 6, dim)),
        ):
            value = writer.random(*shape, std=0.1)
            writer.tensors[f"diffusion_model.blocks.{block}.{end}"] = value
            writer.adds(f"blocks.{block}.{parameter}", value)
    for end, parameter, shape in (
        ("head.head.diff", "head.head.weight", (64, dim)),
        ("head.head.diff_b", "head.head.bias", (64,)),
        ("head.modulation.diff", "head.modulation", (1, 2, dim)),
        ("time_projection.1.diff_b", "time_projection.1.bias", (6 * dim,)),
        ("blocks.0.ffn.0.diff", "blocks.0.ffn.0.weight", writer.size("ffn.0")),
    ):
        value = writer.random(*shape, std=0.02)
        writer.tensors[f"diffusion_model.{end}"] = value
        writer.adds(parameter, value)


def peft_native(writer: Writer) -> None:
    ends = ("lora_A.weight", "lora_B.weight")
    low_rank(writer, lambda block, linear: f"diffusion_model.blocks.{block}.{linear}", ends=ends, alpha=None)


def peft_rank_stabilised(writer: Writer) -> None:
    """PEFT's own files: alpha in a configuration beside them, one layer with another, all over the root of the rank."""
    own = {"blocks.1.ffn.0": 8.0}
    config = {"r": 4, "lora_alpha": 6, "use_rslora": True, "alpha_pattern": own}
    writer.beside["adapter_config.json"] = json.dumps(config)
    for block in range(writer.spec.num_layers):
        for linear in LINEARS:
            down, up = writer.pair(writer.size(linear), 4)
            key = f"base_model.model.blocks.{block}.{linear}"
            writer.tensors |= {f"{key}.lora_A.default.weight": down, f"{key}.lora_B.default.weight": up}
            alpha = own.get(f"blocks.{block}.{linear}", 6.0)
            writer.adds(f"blocks.{block}.{linear}.weight", alpha / 4**0.5 * (up.double() @ down.double()))


def diffusers(writer: Writer, prefix: str = "transformer") -> None:
    """With a trained bias of the upper half of each product, and settings in the metadata."""
    for block in range(writer.spec.num_layers):
        for linear in LINEARS:
            down, up = writer.pair(writer.size(linear), 4)
            bias = writer.random(writer.size(linear)[0], std=0.1)
            key = f"{prefix}.blocks.{block}.{DIFFUSERS[linear]}"
            writer.tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up, f"{key}.lora_B.bias": bias}
            writer.adds(f"blocks.{block}.{linear}.weight", 0.5 * (up.double() @ down.double()))
            writer.adds(f"blocks.{block}.{linear}.bias", 0.5 * bias.double())
    for name, official in (
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ):
        down, up = writer.pair((writer.spec.dim, writer.spec.dim), 4)
        writer.tensors |= {f"{prefix}.{name}.lora_A.weight": down, f"{prefix}.{name}.lora_B.weight": up}
        writer.adds(f"{official}.weight", 0.5 * (up.double() @ down.double()))
    settings = {"transformer.r": 4, "transformer.lora_alpha": 2, "transformer.use_rslora": False}
    writer.metadata["lora_adapter_metadata"] = json.dumps(settings)


def kohya(writer: Writer) -> None:
    low_rank(writer, lambda block, linear: f"lora_unet_blocks_{block}_{linear.replace('.', '_')}", alpha=1.0)


def videox_fun(writer: Writer) -> None:
    low_rank(writer, lambda block, linear: f"lora_unet__blocks_{block}_{linear.replace('.', '_')}", alpha=4.0, rank=8)


def diffsynth(writer: Writer) -> None:
    ends = ("lora_A.default.weight", "lora_B.default.weight")
    low_rank(writer, lambda block, linear: f"pipe.dit.blocks.{block}.{linear}", ends=ends, alpha=None)


def bare(writer: Writer) -> None:
    ends = ("lora_A.default.weight", "lora_B.default.weight")
    low_rank(writer, lambda block, linear: f"blocks.{block}.{linear}", ends=ends, alpha=None, rank=5)


def lokr(writer: Writer) -> None:
    """Every way in which the two factors are stored, in turn; names of diffusers with underscores."""
    for block in range(writer.spec.num_layers):
        for number, linear in enumerate(LINEARS):
            out_features, in_features = writer.size(linear)
            key = f"lycoris_blocks_{block}_{DIFFUSERS[linear].replace('.', '_')}"
            small, large = (8, 4), (out_features // 8, in_features // 4)
            factors, scale = [], 1.0
            for name, (rows, columns), is_product in (
                ("lokr_w1", small, (block + number) % 3 == 1),
                ("lokr_w2", large, (block + number) % 3 != 0),
            ):
                if is_product:
                    down, up = writer.pair((rows, columns), 3)
                    writer.tensors |= {f"{key}.{name}_a": up, f"{key}.{name}_b": down}
                    factors.append(up.double() @ down.double())
                    scale = 2.0 / 3
                else:
                    whole = writer.random(rows, columns, std=0.3 * columns**-0.5)
                    writer.tensors[f"{key}.{name}"] = whole
                    factors.append(whole.double())
            writer.tensors[f"{key}.alpha"] = torch.tensor(2.0)
            first, second = factors
            change = torch.einsum("ab,cd->acbd", first, second).reshape(out_features, in_features)
            writer.adds(f"blocks.{block}.{linear}.weight", scale * change)


def loha(writer: Writer, rank: int = 3) -> None:
    for block in range(writer.spec.num_layers):
        for linear in LINEARS:
            size, key = writer.size(linear), f"lycoris_blocks_{block}_{linear.replace('.', '_')}"
            change = torch.ones(size, dtype=torch.float64)
            for name in ("hada_w1", "hada_w2"):
                down, up = writer.pair(size, rank)
                # The product of two small numbers is a smaller one.
                down, up = down * 3.0, up * 3.0
                writer.tensors |= {f"{key}.{name}_a": up, f"{key}.{name}_b": down}
                change *= up.double() @ down.double()
            writer.tensors[f"{key}.alpha"] = torch.tensor(rank / 2)
            writer.adds(f"blocks.{block}.{linear}.weight", 0.5 * change)


def dora(writer: Writer) -> None:
    """Low rank with magnitudes: per output feature, and in every other block per input feature."""
    for block in range(writer.spec.num_layers):
        for linear in LINEARS:
            size = writer.size(linear)
            down, up = writer.pair(size, 4)
            magnitude = writer.random(*((size[0], 1) if block % 2 else (1, size[1])), std=0.1) + 1.0
            key = f"diffusion_model.blocks.{block}.{linear}"
            writer.tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up, f"{key}.dora_scale": magnitude}
            writer.merges.append(_dora(f"blocks.{block}.{linear}.weight", up @ down, magnitude))


def _dora(parameter: str, change: Tensor, magnitude: Tensor) -> Merge:
    axis = 1 if magnitude.shape[1] == 1 else 0

    def merge(expert: Mapping[str, Tensor], strength: float) -> Tensors:
        weight = expert[parameter].double()
        moved = weight + change.double()
        moved = magnitude.double() * moved / moved.pow(2).sum(dim=axis, keepdim=True).sqrt()
        return {**expert, parameter: (weight + strength * (moved - weight)).float()}

    return merge


FAMILIES: dict[str, Callable[[Writer], None]] = {
    "comfyui": comfyui,
    "extracted": extracted,
    "peft native": peft_native,
    "peft rank stabilised": peft_rank_stabilised,
    "diffusers": diffusers,
    "kohya": kohya,
    "videox-fun": videox_fun,
    "lokr": lokr,
    "loha": loha,
    "dora": dora,
    "diffsynth": diffsynth,
    "bare": bare,
}


def write_lora(folder: Path, family: str, spec: TransformerSpec, expert: Expert) -> tuple[Path, Writer]:
    """A LoRA of a family for one expert, in a folder of its own."""
    writer = Writer(spec, seed=sum(map(ord, family)) * 2 + (expert is Expert.LOW))
    FAMILIES[family](writer)
    # PEFT has one name for its files, beside which the configuration stands.
    name = "adapter_model" if writer.beside else f"style_{expert.value}_noise"
    return writer.save(folder / family / f"{expert.value}_noise" / f"{name}.safetensors"), writer
