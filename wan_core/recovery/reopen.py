"""Going on with a saved run: whether it is this one, from which step, and what the report says of it."""

from pathlib import Path

from ..errors import CheckpointError
from ..report import Decision, Report
from .identity import other_ways, refuse_another
from .journal import Journal, StateFile
from .state import RunState, read_state


def find_saved(path: Path, report: Report) -> RunState | None:
    """What a run left at `path`; a file that cannot be read costs a warning, since nobody asked for it."""
    if not path.exists():
        return None
    try:
        return read_state(path)
    except CheckpointError as error:
        report.warnings.append(f"the run starts anew: {error}")
        return None


def reopen(file: StateFile, saved: RunState | None, report: Report) -> Journal:
    """The journal of the run that `file` describes, at the position of the saved one if there is one.

    Raises `InputError` in one sentence where the saved run is another one.
    """
    if saved is None:
        return Journal(file)
    refuse_another(saved, file.facts)
    if warning := other_ways(saved, file.facts):
        report.warnings.append(warning)
    chosen = f"{saved.describe()} before"
    report.decisions.append(Decision(topic="saved run", asked="auto", chosen=chosen, reason=file.path.name))
    return Journal(file, saved.position)
