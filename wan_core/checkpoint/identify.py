"""What a file or a folder is, in one description: for `inspect`, for bug reports, and for whoever lists files.

Never raises for what a file holds: a broken file has a description too, with its problems in it.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from ..errors import CheckpointError
from ..specs import T2V_A14B, T2V_A14B_TRANSFORMER, UMT5_XXL, WAN21_VAE, TextEncoderSpec, TransformerSpec, VaeSpec
from .codes import coding_of
from .expert_name import expert_of
from .experts import expert_candidates
from .find import (
    EXPERT_PLACES,
    TEXT_ENCODER_PLACES,
    VAE_PLACES,
    checkpoints_in,
    find_model,
    is_model_folder,
    models_root,
)
from .locate import holds_weights, is_sharded
from .look import LookKind, look
from .lora import lora_of
from .partner import find_partner
from .read import Checkpoint, open_checkpoint
from .sentences import counted
from .text_encoder import has_vocabulary, text_encoder_spec
from .transformer import transformer_spec, variant
from .vae import is_wan22, vae_spec

Spec = TransformerSpec | TextEncoderSpec | VaeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What is at a path.

    family: the released model with these dimensions, or what else it is. expert: "high" or "low" where something says
    so. layout: "file", "folder" or "sharded"; format: of the files; naming: whose tensor names. dtypes: stored dtype
    -> number of tensors.
    spec: dimensions, `None` where the file cannot be used. notes and problems: one sentence each.
    parts: descriptions of what a folder holds.
    """

    path: Path
    kind: LookKind | Literal["folder"]
    family: str = ""
    expert: str = ""
    layout: str = ""
    format: str = ""
    naming: str = ""
    dtypes: Mapping[str, int] = field(default_factory=dict)
    num_tensors: int = 0
    nbytes: int = 0
    spec: Spec | None = None
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    parts: tuple["Description", ...] = ()

    @property
    def is_usable(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, object]:
        """Plain values only."""
        data = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        data |= {"path": str(self.path), "spec": asdict(self.spec) if self.spec else None, "dtypes": dict(self.dtypes)}
        return data | {"parts": [part.to_dict() for part in self.parts]}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def to_text(self) -> str:
        """For people: what it is, what it holds, what is wrong with it; parts indented below."""
        lines = [f"{self.path}: {self.family or self.kind}"]
        facts = {
            "kind": self.kind.replace("_", " "),
            "expert": self.expert and f"{self.expert} noise",
            "layout": ", ".join(filter(None, (self.layout, self.format, self.naming))),
            "tensors": f"{self.num_tensors} ({', '.join(f'{count} {name}' for name, count in self.dtypes.items())})"
            if self.num_tensors
            else "",
            "size": _size(self.nbytes) if self.nbytes else "",
            "dimensions": ", ".join(f"{name} {value}" for name, value in asdict(self.spec).items())
            if self.spec
            else "",
        }
        lines += [f"  {name}: {value}" for name, value in facts.items() if value]
        lines += [f"  note: {note}" for note in self.notes] + [f"  problem: {problem}" for problem in self.problems]
        lines += [f"  {line}" for part in self.parts for line in part.to_text().splitlines()]
        return "\n".join(lines)


def identify(path: Path | str) -> Description:
    """Describe a file, a checkpoint's folder, or a folder of models, broken ones included."""
    path = Path(path)
    try:
        if path.is_dir() and _holds_several(path):
            return _describe_folder(path)
        return _describe(open_checkpoint(path))
    except CheckpointError as error:
        return Description(path=path, kind="unknown", problems=(str(error),))
    except OSError as error:
        return Description(path=path, kind="unknown", problems=(f"cannot be read: {error.strerror or error}",))


def _describe(checkpoint: Checkpoint) -> Description:
    found = look(checkpoint)
    problems, notes, spec = [], [], None
    try:
        spec = _spec(checkpoint, found.kind)
    except CheckpointError as error:
        problems.append(str(error))
    evidence = None
    if found.kind in ("transformer", "lora"):
        try:
            evidence = expert_of(checkpoint)
        except CheckpointError as error:
            problems.append(str(error))
    if found.kind == "unknown":
        problems.append(f"{checkpoint.label} looks like {found.what}; nothing here uses it")
    if spec == T2V_A14B_TRANSFORMER and evidence is None:
        notes.append("nothing says which expert it is; Wan 2.1 T2V-14B has the same names and shapes")
    if found.kind == "text_encoder" and spec:
        notes.append("carries its tokenizer" if has_vocabulary(checkpoint) else "carries no tokenizer")
    if how := checkpoint.encoding.text:
        notes.append(f"stores {how}" + ("" if problems else f"; decoded {_when_decoded(checkpoint, found.kind)}"))
    naming = str(checkpoint.namings[0]) if checkpoint.namings else ""
    if found.kind == "lora":
        naming = _describe_lora(checkpoint, notes, problems)
    dtypes = Counter(info.dtype for info in checkpoint.tensors.values())
    return Description(
        path=checkpoint.path,
        kind=found.kind,
        family=_family(checkpoint, found.kind, spec) or found.what,
        expert=evidence.expert.value if evidence else "",
        layout=checkpoint.layout,
        format=checkpoint.format,
        naming=naming,
        dtypes=dict(dtypes.most_common()),
        num_tensors=len(checkpoint.tensors),
        nbytes=checkpoint.nbytes,
        spec=spec,
        notes=tuple(notes),
        problems=tuple(problems),
    )


def _when_decoded(checkpoint: Checkpoint, kind: str) -> str:
    may_stay = kind == "transformer" and any(coding_of(info) for info in checkpoint.tensors.values())
    return "when they are loaded" + (", or before each product where that saves memory" if may_stay else "")


def _describe_lora(checkpoint: Checkpoint, notes: list[str], problems: list[str]) -> str:
    """Add what a LoRA changes, or why it cannot be used; returns how its keys are named."""
    try:
        lora = lora_of(checkpoint)
        partner = find_partner(checkpoint.path)
    except CheckpointError as error:
        problems.append(str(error))
        return ""
    notes += [f"changes {lora.describe()}", *filter(None, (lora.describe_ignored(),)), *lora.notes]
    notes += [f"its partner by name is {partner.name}"] if partner else []
    return f"{lora.family} keys"


def _spec(checkpoint: Checkpoint, kind: LookKind) -> Spec | None:
    """Dimensions of a checkpoint of a kind that has some; raises `CheckpointError` where it cannot be used."""
    readers = {"transformer": transformer_spec, "text_encoder": text_encoder_spec, "vae": vae_spec}
    return readers[kind](checkpoint) if kind in readers else None


def _family(checkpoint: Checkpoint, kind: LookKind, spec: Spec | None) -> str:
    released = {T2V_A14B_TRANSFORMER: f"Wan 2.2 {T2V_A14B.name}", UMT5_XXL: "UMT5-XXL", WAN21_VAE: "Wan 2.1 VAE"}
    if spec in released:
        return released[spec]
    if isinstance(spec, TransformerSpec):
        return f"Wan text to video, {spec.num_parameters / 1e6:.3g} million parameters"
    if isinstance(spec, TextEncoderSpec):
        return f"UMT5, {spec.num_parameters / 1e6:.3g} million parameters"
    if isinstance(spec, VaeSpec):
        return f"Wan 2.1 VAE of width {spec.dim}"
    if kind == "vae" and is_wan22(checkpoint):
        return "Wan 2.2 VAE"
    return (variant(checkpoint) or "") if kind == "transformer" else ""


def _holds_several(folder: Path) -> bool:
    num_files = sum(entry.is_file() and holds_weights(entry) for entry in folder.iterdir())
    return is_model_folder(folder) or (not is_sharded(folder) and num_files > 1)


def _describe_folder(folder: Path) -> Description:
    parts = tuple(identify(path) for path in _entries(folder))
    notes, problems = [f"holds {counted(len(parts), 'part')}"], []
    try:
        files = find_model(folder)
        notes.append(f"a complete model: {', '.join(path.name for path in files.weights)}")
    except CheckpointError as error:
        # A folder of loose files need not be a model.
        problems += [str(error)] if is_model_folder(folder) else []
    return Description(
        path=folder,
        kind="folder",
        nbytes=sum(part.nbytes for part in parts),
        notes=tuple(notes),
        problems=tuple(problems),
        parts=parts,
    )


def _entries(folder: Path) -> Iterator[Path]:
    """What a folder holds that can be described: experts that are folders, and everything in the usual places."""
    root = models_root(folder)
    experts = (path for paths in expert_candidates(root).values() for path in paths)
    yield from (path for path in experts if path.is_dir())
    yield from checkpoints_in(root, (*EXPERT_PLACES, *TEXT_ENCODER_PLACES, *VAE_PLACES))


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.2f} MB"
