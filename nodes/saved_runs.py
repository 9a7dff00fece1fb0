"""Runs of the sampler that did not end, as an artist meets them: the same inputs queued again go on by themselves.

The states lie in the pack's own folder below the host's user folder. The host's folder for temporary files will not do:
the host empties it whenever it starts, and a crash is what a state is for. Wan VAE Decode removes the state of the
latent that it has decoded; of all others the newest few stay.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..wan_core.checkpoint.experts import ExpertPair
from ..wan_core.hardware import Hardware
from ..wan_core.plan import ExecutionPlan
from ..wan_core.profiles import OptimizationProfile
from ..wan_core.recovery.identity import facts_of, run_key
from ..wan_core.recovery.journal import Journal, StateFile
from ..wan_core.recovery.reopen import find_saved, reopen
from ..wan_core.recovery.shelf import saved_runs, shelf_path, tidy
from ..wan_core.recovery.state import read_state, remove_state
from ..wan_core.report import Report
from . import host

AUTOMATIC = "automatic"
NEVER = "never"
# In a LATENT, beside `samples`: the file of the run that it comes from. Native nodes pass it on and do not read it.
_FILE = "wan_velocity_saved_run"
_SHAPE = "wan_velocity_saved_shape"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The widgets of the sampler: whether to go on with an earlier run, and with which where one is named."""

    resume: str = AUTOMATIC
    saved_run: str = ""


def problem(saved_run: str | None) -> str | None:
    """Why a saved run cannot be chosen by this name, in one sentence."""
    if not saved_run or saved_run in (names := saved_runs(host.saved_runs_folder())):
        return None
    there = f"there are {', '.join(map(repr, names))}" if names else "there are none now"
    return f"there is no saved run {saved_run!r} in {str(host.saved_runs_folder())!r}; {there}"


def open_journal(
    choice: Choice,
    pair: ExpertPair,
    plan: ExecutionPlan,
    prompts: Mapping[str, Tensor],
    latent: Tensor,
    machine: tuple[OptimizationProfile, Hardware],
    report: Report,
) -> Journal:
    """The journal of this run, at the position of a saved one where there is one and `choice` allows it.

    Raises `InputError` in one sentence where a run chosen by name is another one.
    """
    profile, hardware = machine
    facts = facts_of(pair, plan, prompts, latent, environment=hardware.environment())
    folder = host.saved_runs_folder()
    tidy(folder)
    request, size = plan.workload.request, plan.workload.latent_size
    path = shelf_path(folder, request, size, run_key(facts, profile))
    saved = None
    if choice.saved_run:
        path = folder / choice.saved_run
        saved = read_state(path)
    elif choice.resume == AUTOMATIC:
        saved = find_saved(path, report)
    file = StateFile(path=path, facts=facts, num_steps=plan.schedule.num_steps, prompts=prompts)
    return reopen(file, saved, report)


def marked(latent: Tensor, journal: Journal) -> dict[str, object]:
    """A LATENT that knows the file of its run."""
    known = {_FILE: str(journal.saved), _SHAPE: tuple(latent.shape)} if journal.saved else {}
    return {"samples": latent, **known}


def decoded(latent: Mapping[str, object]) -> None:
    """A whole LATENT is decoded: what would have been needed to decode it again may go."""
    if _FILE in latent and latent[_SHAPE] == tuple(latent["samples"].shape):
        path = Path(latent[_FILE])
        # The mark may have come from elsewhere, in a file of latents that somebody shared.
        if path.parent == host.saved_runs_folder():
            remove_state(path)
