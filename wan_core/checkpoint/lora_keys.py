"""How the keys of LoRA files are named: families as data, each a prefix before the names of modules.

A key is prefix + module + "." + part: `diffusion_model.` `blocks.0.self_attn.q` `.lora_down.weight`. Two lists of
modules cover every family, the official one and the one of diffusers, joined by dots or by underscores; a row is a pair
of whole names, so nothing is replaced inside a name. Two traps stand in the rows: in diffusers attn1 is self attention
and attn2 cross attention, and its norm2 is the official norm3, the only norm between the layers that has weights.

Modules that only image-to-video models have are in the lists too, so that their keys can be told from unknown ones.
What the tensors behind the keys mean together is `lora.py`'s business.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from ..specs import Expert
from .keys import TRANSFORMER_OFFICIAL, NameTable, Row

Leaf = Literal["weight", "bias", "modulation"]
Role = Literal[
    "down", "up", "up_bias", "mid", "alpha", "magnitude", "diff",
    "w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
]  # fmt: skip

# Longer names are no names of modules, and a search through them could take long.
_MAX_NAME = 256

# Official, diffusers. A row of a modulation is the parameter itself; "blocks.*" and "head" stand for `.diff_m`.
_MODULES: tuple[Row, ...] = (
    ("patch_embedding", "patch_embedding"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("head", "head"),
    ("head.head", "proj_out"),
    ("head.modulation", "scale_shift_table"),
    ("blocks.*", "blocks.*"),
    ("blocks.*.modulation", "blocks.*.scale_shift_table"),
    ("blocks.*.norm3", "blocks.*.norm2"),
    ("blocks.*.self_attn.q", "blocks.*.attn1.to_q"),
    ("blocks.*.self_attn.k", "blocks.*.attn1.to_k"),
    ("blocks.*.self_attn.v", "blocks.*.attn1.to_v"),
    ("blocks.*.self_attn.o", "blocks.*.attn1.to_out.0"),
    ("blocks.*.self_attn.norm_q", "blocks.*.attn1.norm_q"),
    ("blocks.*.self_attn.norm_k", "blocks.*.attn1.norm_k"),
    ("blocks.*.cross_attn.q", "blocks.*.attn2.to_q"),
    ("blocks.*.cross_attn.k", "blocks.*.attn2.to_k"),
    ("blocks.*.cross_attn.v", "blocks.*.attn2.to_v"),
    ("blocks.*.cross_attn.o", "blocks.*.attn2.to_out.0"),
    ("blocks.*.cross_attn.norm_q", "blocks.*.attn2.norm_q"),
    ("blocks.*.cross_attn.norm_k", "blocks.*.attn2.norm_k"),
    ("blocks.*.ffn.0", "blocks.*.ffn.net.0.proj"),
    ("blocks.*.ffn.2", "blocks.*.ffn.net.2"),
)
_IMAGE_MODULES: tuple[Row, ...] = (
    ("blocks.*.cross_attn.k_img", "blocks.*.attn2.add_k_proj"),
    ("blocks.*.cross_attn.v_img", "blocks.*.attn2.add_v_proj"),
    ("blocks.*.cross_attn.norm_k_img", "blocks.*.attn2.norm_added_k"),
    ("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
    ("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
    ("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
    ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
    ("img_emb", "condition_embedder.image_embedder"),
)
_IMAGE = NameTable(kind="transformer", name="image", rows=tuple((name, name) for name, _ in _IMAGE_MODULES))

# How a key ends, what the tensor is, and which parameter of its module it concerns.
_PARTS: tuple[tuple[str, Role, Leaf], ...] = (
    (r"lora_down\.weight|lora_A(?:\.[A-Za-z0-9_-]+)?\.weight|lora_A", "down", "weight"),
    (r"lora_up\.weight|lora_B(?:\.[A-Za-z0-9_-]+)?\.weight|lora_B", "up", "weight"),
    (r"lora_up\.bias|lora_B(?:\.[A-Za-z0-9_-]+)?\.bias", "up_bias", "bias"),
    (r"lora_mid\.weight", "mid", "weight"),
    (r"alpha", "alpha", "weight"),
    (r"dora_scale|lora_magnitude_vector(?:(?:\.[A-Za-z0-9_-]+)?\.weight)?", "magnitude", "weight"),
    (r"diff|w_norm", "diff", "weight"),
    (r"diff_b|b_norm", "diff", "bias"),
    (r"diff_m", "diff", "modulation"),
    *((rf"lokr_{role}", role, "weight") for role in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
    *((role, role, "weight") for role in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")),
)
_KEY = re.compile(r"(?P<module>.+)\.(?:" + "|".join(f"(?P<p{i}>{part[0]})" for i, part in enumerate(_PARTS)) + ")")

# Keys that no family knows, and why they are not applied; the first that fits decides.
_OTHER_KEYS: tuple[tuple[str, str], ...] = (
    (r"^(lora_te[0-9]?_|text_encoders?[._]|cond_stage_model\.|lycoris_te)", "keys of a text encoder"),
    (r"(^|[._])vace_(blocks|patch_embedding)", "keys of a VACE model"),
    (r"\.(oft_\w+|boft_\w+|[ab][12]\.weight)$", "adapters of a kind that is not applied (OFT, BOFT, GLoRA)"),
)
IMAGE_REASON = "image keys of the I2V model"
UNKNOWN_REASON = "unknown keys"

# Names of other models, for the sentence that refuses their LoRAs.
_OTHER_MODELS: tuple[tuple[str, str], ...] = (
    (r"(double|single)_(transformer_)?blocks[._][0-9]", "the Flux or Hunyuan family"),
    (r"joint_(transformer_)?blocks[._][0-9]", "Stable Diffusion 3"),
    (r"(down|up|mid|input|output|middle)_blocks?[._]", "Stable Diffusion"),
    (r"transformer_blocks[._][0-9]", "another diffusion transformer (LTX-Video, Qwen-Image, CogVideoX)"),
    (r"(^|\.)layers[._][0-9]", "another transformer (Z-Image, Lumina, a language model)"),
)


def _module_table(name: str, column: int, joint: str) -> NameTable:
    rows = tuple((row[0], row[column].replace(".", joint)) for row in (*_MODULES, *_IMAGE_MODULES))
    return NameTable(kind="transformer", name=name, rows=rows)


_DOTS, _UNDERSCORES = _module_table("official", 0, "."), _module_table("official, underscores", 0, "_")
_DIFFUSERS_DOTS = _module_table("diffusers", 1, ".")
_DIFFUSERS_UNDERSCORES = _module_table("diffusers, underscores", 1, "_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One way of naming keys. modules: official name <-> theirs. low_prefix: in place of a prefix, the low expert's."""

    name: str
    prefixes: tuple[str, ...]
    modules: NameTable
    low_prefix: str = ""

    def locate(self, module: str) -> tuple[str, str] | None:
        """(prefix, official module) of a module by their name; `None` where it is none of this family's."""
        for prefix in (self.low_prefix, *self.prefixes) if self.low_prefix else self.prefixes:
            if module.startswith(prefix) and (official := self.modules.to_official(module[len(prefix) :])):
                return prefix, official
        return None

    def from_official(self, module: str) -> str | None:
        """Their name of an official module, behind their first prefix; `None` for a module of another model."""
        theirs = self.modules.from_official(module)
        return None if theirs is None else self.prefixes[0] + theirs


# In order of preference where two fit equally well, as with nothing but a patch embedding, which both lists name alike.
FAMILIES: tuple[Family, ...] = (
    Family(name="ComfyUI", prefixes=("diffusion_model.", "model.diffusion_model."), modules=_DOTS),
    Family(name="diffusers", prefixes=("transformer.",), low_prefix="transformer_2.", modules=_DIFFUSERS_DOTS),
    Family(name="kohya", prefixes=("lora_unet_",), modules=_UNDERSCORES),
    Family(name="VideoX-Fun", prefixes=("lora_unet__",), modules=_UNDERSCORES),
    Family(name="LyCORIS", prefixes=("lycoris_",), modules=_UNDERSCORES),
    Family(name="LyCORIS, diffusers names", prefixes=("lycoris_",), modules=_DIFFUSERS_UNDERSCORES),
    Family(name="PEFT", prefixes=("base_model.model.",), modules=_DOTS),
    Family(name="PEFT, diffusers names", prefixes=("base_model.model.",), modules=_DIFFUSERS_DOTS),
    Family(name="DiffSynth", prefixes=("pipe.dit.",), low_prefix="pipe.dit2.", modules=_DOTS),
    Family(name="bare", prefixes=("",), modules=_DOTS),
    Family(name="bare, diffusers names", prefixes=("",), modules=_DIFFUSERS_DOTS),
    Family(name="transformer, official names", prefixes=("transformer.",), low_prefix="transformer_2.", modules=_DOTS),
    Family(name="ComfyUI, diffusers names", prefixes=("diffusion_model.",), modules=_DIFFUSERS_DOTS),
    Family(
        name="kohya, diffusers names", prefixes=("lora_unet_", "lora_transformer_"), modules=_DIFFUSERS_UNDERSCORES
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraKey:
    """A key that means something for a text-to-video expert.

    name: in the file. module: its official name; of the file's own: `own_module`. parameter: the one it concerns.
    expert: where the key says it, else `None`.
    """

    name: str
    own_module: str
    parameter: str
    role: Role
    expert: Expert | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyReading:
    """All keys of a file. ignored: reason -> keys. family: `None` where no key is one of a Wan transformer."""

    family: Family | None
    keys: tuple[LoraKey, ...]
    ignored: Mapping[str, tuple[str, ...]]


def read_keys(names: Collection[str]) -> KeyReading:
    """What each key of a LoRA file means, by the family that most of the keys follow."""
    split = {name: _split(name) for name in names}
    counts = Counter(
        {family.name: sum(family.locate(part[0]) is not None for part in split.values() if part) for family in FAMILIES}
    )
    family = next((each for each in FAMILIES if 0 < counts[each.name] == max(counts.values())), None)
    has_low = bool(family and family.low_prefix) and any(name.startswith(family.low_prefix) for name in names)
    keys: list[LoraKey] = []
    ignored: dict[str, list[str]] = {}
    for name, part in split.items():
        found = _key(name, part, family, has_low=has_low)
        if isinstance(found, LoraKey):
            keys.append(found)
        else:
            ignored.setdefault(found, []).append(name)
    return KeyReading(
        family=family, keys=tuple(keys), ignored={reason: tuple(found) for reason, found in ignored.items()}
    )


def other_model(names: Collection[str]) -> str | None:
    """Which other model keys belong to, as the end of "a LoRA for"; `None` where that is not known."""
    for pattern, model in _OTHER_MODELS:
        if any(re.search(pattern, name[:_MAX_NAME]) for name in names):
            return model
    return None


def _split(name: str) -> tuple[str, Role, Leaf] | None:
    """(module as the file calls it, role, leaf)."""
    match = _KEY.fullmatch(name) if len(name) <= _MAX_NAME else None
    if match is None:
        return None
    _, role, leaf = _PARTS[int(match.lastgroup.removeprefix("p"))]
    return match["module"], role, leaf


def _key(name: str, part: tuple[str, Role, Leaf] | None, family: Family | None, *, has_low: bool) -> LoraKey | str:
    """The key, or the reason why it means nothing here."""
    located = family.locate(part[0]) if part and family else None
    if located is None:
        return next((why for pattern, why in _OTHER_KEYS if re.search(pattern, name[:_MAX_NAME])), UNKNOWN_REASON)
    own_module, role, leaf = part
    prefix, module = located
    if _IMAGE.to_official(module):
        return IMAGE_REASON
    parameter = module if module.endswith("modulation") and leaf == "weight" else f"{module}.{leaf}"
    if TRANSFORMER_OFFICIAL.to_official(parameter) is None:
        return UNKNOWN_REASON
    expert = None
    if has_low:
        expert = Expert.LOW if prefix == family.low_prefix else Expert.HIGH
    return LoraKey(name=name, own_module=own_module, parameter=parameter, role=role, expert=expert)
