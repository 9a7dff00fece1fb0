"""How much a low-rank change counts at strength 1: alpha / rank, from where the file keeps its alpha.

In order: the tensor `.alpha` of the module; the training settings in the file's metadata (`lora_adapter_metadata` of
diffusers, or plain entries) or in PEFT's `adapter_config.json` beside the file, whose rank-stabilised form
(arXiv:2312.03732) divides by the square root of the rank; else 1, as every other reader takes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, sqrt
from pathlib import Path

from ..errors import CheckpointError
from .json_text import parse_object, read_object
from .read import Checkpoint
from .sentences import label, quoted

_DIFFUSERS_KEY = "lora_adapter_metadata"
_CONFIG_FILE = "adapter_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedTraining:
    """What is said of a LoRA's training outside its tensors; alpha_pattern: end of a module's name -> its own alpha."""

    alpha: float | None = None
    rank_stabilised: bool = False
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def scale(self, module: str, rank: int) -> float | None:
        """alpha / rank of a module by the file's own name for it, `None` where nothing says it."""
        ends = (end for end in self.alpha_pattern if module == end or module.endswith("." + end))
        end = max(ends, key=len, default=None)
        alpha = self.alpha if end is None else self.alpha_pattern[end]
        return None if alpha is None else alpha / (sqrt(rank) if self.rank_stabilised else rank)


def stated_training(checkpoint: Checkpoint) -> StatedTraining:
    """Read the settings; raises `CheckpointError` where they are there and make no sense."""
    metadata = checkpoint.metadata
    if _DIFFUSERS_KEY in metadata:
        what = f"{_DIFFUSERS_KEY} in the metadata of {checkpoint.label}"
        entries = parse_object(metadata[_DIFFUSERS_KEY].encode("utf-8", "replace"), what)
        # Settings of the transformer and of the text encoder stand side by side, told apart by a prefix.
        parts = {name.partition(".")[0] for name in entries if name.startswith("transformer")}
        part = min(parts, default="")
        own = {name.removeprefix(f"{part}."): value for name, value in entries.items() if name.startswith(f"{part}.")}
        return _read(own or entries, what)
    if "lora_alpha" in metadata:
        stated = {"lora_alpha": metadata["lora_alpha"], "use_rslora": metadata.get("use_rslora", "").lower() == "true"}
        return _read(stated, f"the metadata of {checkpoint.label}")
    config = _config_file(checkpoint)
    return _read(read_object(config, label(config)), label(config)) if config else StatedTraining()


def _config_file(checkpoint: Checkpoint) -> Path | None:
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    path = folder / _CONFIG_FILE
    is_own = checkpoint.layout == "folder" or checkpoint.path.name.startswith("adapter_model")
    return path if is_own and path.is_file() else None


def _read(entries: Mapping[str, object], what: str) -> StatedTraining:
    pattern = entries.get("alpha_pattern") or {}
    if not isinstance(pattern, dict):
        raise CheckpointError(f"{what} says alpha_pattern {quoted(pattern)}, expected numbers by module")
    alpha = entries.get("lora_alpha")
    return StatedTraining(
        alpha=None if alpha is None else _number(alpha, what),
        rank_stabilised=entries.get("use_rslora") is True,
        alpha_pattern={str(name): _number(value, what) for name, value in pattern.items()},
    )


def _number(value: object, what: str) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) else float("nan")
    except ValueError:
        number = float("nan")
    if not isfinite(number):
        raise CheckpointError(f"{what} says alpha {quoted(value)}, expected a number")
    return number
