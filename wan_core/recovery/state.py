"""The state of a run in one safetensors file: where it stands, and what is needed to go on from there bit for bit.

Tensors: `latent` and `history.*` (model space, float32) and the embeddings of the prompts. A sampled run keeps its
last latent in the same form, so that a failed decode loses nothing. Everything else is JSON in the metadata. The file
is written beside its place and moved there, so nobody ever finds half of one, and it holds no code: reading it is safe.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import CheckpointError
from ..files import replacing
from ..sampling.loop import SolverStep
from ..sampling.solvers import History

FORMAT = "wan_velocity.run.1"
_KEY = "wan_velocity"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Position:
    """Between two steps: the latent (B, C, T, H, W) in model space at the noise level of `next_step`."""

    next_step: int
    latent: Tensor
    history: History = field(default_factory=History)

    @classmethod
    def after(cls, step: SolverStep) -> "Position":
        return cls(next_step=step.index + 1, latent=step.latent, history=step.history)

    def tensors(self) -> dict[str, Tensor]:
        """Everything there is to save, by name."""
        return {"latent": self.latent, **{f"history.{name}": each for name, each in self.history.tensors().items()}}

    @classmethod
    def from_tensors(cls, next_step: int, tensors: Mapping[str, Tensor]) -> "Position":
        """The position whose `tensors()` these are."""
        prefix = "history."
        named = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
        return cls(next_step=next_step, latent=tensors["latent"], history=History.from_tensors(named))

    def to(self, device: str) -> "Position":
        return Position.from_tensors(self.next_step, {name: each.to(device) for name, each in self.tensors().items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a run is, in words that can be compared. what: must agree for a run to be continued. how: where this
    differs, the continued run is as good, but its last bits are not those of the uninterrupted one. driver: the words
    of whoever drives the run (options of the command line), as JSON; the core does not read them."""

    what: Mapping[str, str]
    how: Mapping[str, str]
    driver: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunState:
    """A saved run. prompts: embeddings "positive" and "negative", each (B, L, D) float32."""

    facts: Facts
    num_steps: int
    position: Position
    prompts: Mapping[str, Tensor]

    @property
    def is_sampled(self) -> bool:
        """Whether only the decode is left."""
        return self.position.next_step >= self.num_steps

    def describe(self) -> str:
        done = self.position.next_step
        return "all steps done" if self.is_sampled else f"{done} of {self.num_steps} steps done"


def write_state(path: Path, state: RunState) -> None:
    """Write a state whole or not at all; raises `InputError` in one sentence where the file system refuses."""
    words = {
        "format": FORMAT,
        "next_step": state.position.next_step,
        "num_steps": state.num_steps,
        "what": dict(state.facts.what),
        "how": dict(state.facts.how),
        "driver": dict(state.facts.driver),
    }
    tensors = state.position.tensors() | {f"prompt.{name}": each for name, each in state.prompts.items()}
    tensors = {name: each.detach().cpu().contiguous() for name, each in tensors.items()}
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            file.write(save(tensors, metadata={_KEY: json.dumps(words)}))
            file.flush()
            os.fsync(file.fileno())  # a name that outlives a power cut before its bytes do would be worth nothing


def remove_state(path: Path) -> None:
    """Remove a state, and what a process that was killed while it wrote one left of that."""
    for each in (path, *path.parent.glob(f".{escape(path.name)}.*.part")):
        with suppress(OSError):
            each.unlink(missing_ok=True)


def read_state(path: Path) -> RunState:
    """The run saved in a file; raises `CheckpointError` in one sentence for anything else."""
    if not path.is_file():
        raise CheckpointError(f"there is no saved run {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()} if text else {}
        words = json.loads(text) if text else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read as a saved run: {error}") from error
    if words.get("format") != FORMAT:
        raise CheckpointError(f"{str(path)!r} is no saved run of this version, expected a file that generate left")
    prefix = "prompt."
    prompts = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
    try:
        return RunState(
            facts=Facts(what=words["what"], how=words["how"], driver=words["driver"]),
            num_steps=words["num_steps"],
            position=Position.from_tensors(words["next_step"], tensors),
            prompts=prompts,
        )
    except KeyError as error:
        raise CheckpointError(f"the saved run {str(path)!r} lacks {error}") from error
