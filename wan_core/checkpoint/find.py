"""From a folder to the files of a whole model: experts, text encoder, tokenizer and VAE.

Three layouts: the official release (`high_noise_model/`, `low_noise_model/`, and the encoder and the VAE beside them),
that of diffusers (`transformer/`, `transformer_2/`, `text_encoder/`, `tokenizer/`, `vae/`), and ComfyUI's `models`
folder (`diffusion_models/`, `text_encoders/`, `vae/`), or the folder of ComfyUI above it.
Experts are found by name, since nothing else tells them apart; the encoder and the VAE by what their headers say, so
that their names are free. Nothing is guessed: where two files would do, both are named; where none does, the places.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ..errors import CheckpointError
from .experts import ExpertPair, choose_experts, expert_candidates, open_experts
from .keys import Kind
from .locate import holds_weights, is_sharded
from .look import look
from .read import open_checkpoint
from .sentences import label, listing, quoted
from .text_encoder import open_text_encoder
from .vae import open_vae

EXPERT_PLACES = ("diffusion_models", "unet")
TEXT_ENCODER_PLACES = ("text_encoders", "clip", "text_encoder")
VAE_PLACES = ("vae",)

# ComfyUI lists files in subfolders too; nobody nests them deeper.
_MAX_DEPTH = 3
_MAX_REASONS = 3

Source = TypeVar("Source")


@dataclass(frozen=True, slots=True)
class _Part(Generic[Source]):
    """A part that is found by its header: its kind, its name in sentences, its places, and what opens it."""

    kind: Kind
    what: str
    places: tuple[str, ...]
    open: Callable[[Path], Source]


_TEXT_ENCODER = _Part("text_encoder", "text encoder", TEXT_ENCODER_PLACES, open_text_encoder)
_VAE = _Part("vae", "VAE", VAE_PLACES, open_vae)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """Where the parts of one model are. tokenizer: `None` where the text encoder's file carries it."""

    high: Path
    low: Path
    text_encoder: Path
    tokenizer: Path | None
    vae: Path

    @property
    def weights(self) -> tuple[Path, ...]:
        """The checkpoints, experts first."""
        return self.high, self.low, self.text_encoder, self.vae


def find_model(folder: Path | str) -> ModelFiles:
    """The parts of the model in a folder; raises `CheckpointError` with a clause for each missing or doubtful one."""
    root = models_root(Path(folder))
    problems: list[str] = []
    pair = _attempt(problems, lambda: _experts(root))
    encoder = _attempt(problems, lambda: _the_one(root, _TEXT_ENCODER))
    vae = _attempt(problems, lambda: _the_one(root, _VAE))
    if pair is None or encoder is None or vae is None:
        raise CheckpointError("; ".join(problems))
    return ModelFiles(
        high=pair.high.path,
        low=pair.low.path,
        text_encoder=encoder.checkpoint.path,
        tokenizer=encoder.tokenizer,
        vae=vae.checkpoint.path,
    )


def is_model_folder(folder: Path) -> bool:
    """Whether a folder looks like one that holds a whole model rather than one checkpoint."""
    places = (*EXPERT_PLACES, *TEXT_ENCODER_PLACES, *VAE_PLACES, "models")
    experts = (path for paths in expert_candidates(folder).values() for path in paths)
    return any((folder / place).is_dir() for place in places) or any(path.is_dir() for path in experts)


def folders_of(root: Path, places: Sequence[str]) -> Iterator[Path]:
    """The folder itself, then the given subfolders of it and all that is in them."""
    yield root
    for place in places:
        for path, subfolders, _ in os.walk(root / place):
            here = Path(path)
            if len(here.relative_to(root).parts) >= _MAX_DEPTH:
                subfolders.clear()
            subfolders.sort()
            yield here


def checkpoints_in(root: Path, places: Sequence[str]) -> Iterator[Path]:
    """Files in a folder and in the given subfolders that may be checkpoints, and folders of shards in these."""
    for folder in folders_of(root, places):
        if folder != root and is_sharded(folder):
            yield folder
        else:
            yield from (entry for entry in sorted(folder.iterdir()) if entry.is_file() and holds_weights(entry))


def models_root(folder: Path) -> Path:
    """The folder that the places are in: the one given or, where that is ComfyUI's own, its `models`."""
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(f"{str(folder)!r} {kind}, expected the folder of a model")
    inside = folder / "models"
    return inside if any((inside / place).is_dir() for place in EXPERT_PLACES) else folder


def _experts(root: Path) -> ExpertPair:
    return open_experts(*choose_experts(expert_candidates(*folders_of(root, EXPERT_PLACES)), label(root)))


def _attempt(problems: list[str], find: Callable[[], Source]) -> Source | None:
    try:
        return find()
    except CheckpointError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"{quoted(error.filename)} cannot be read: {error.strerror or error}")
    return None


def _the_one(root: Path, part: _Part[Source]) -> Source:
    """The only file in the places of a part that opens as that part."""
    usable, refused = [], []
    for entry in checkpoints_in(root, part.places):
        try:
            usable.append((entry, part.open(entry)))
        except CheckpointError as error:
            refused += [str(error)] if _is_meant(entry, part.kind) else []
    if len(usable) == 1:
        return usable[0][1]
    if usable:
        names = listing(label(entry) for entry, _ in usable)
        raise CheckpointError(f"{label(root)} holds several files for the {part.what} ({names}); give the files to use")
    looked = " and ".join(("the folder itself", *(repr(place) for place in part.places)))
    found = f"; not usable: {'; '.join(refused[:_MAX_REASONS])}" if refused else ""
    raise CheckpointError(f"{label(root)} holds no {part.what} (looked in {looked}){found}")


def _is_meant(entry: Path, kind: Kind) -> bool:
    """Whether a file that does not open as a part may have been meant as one, since it is unreadable or of its kind."""
    try:
        return look(open_checkpoint(entry)).kind == kind
    except CheckpointError:
        return True
