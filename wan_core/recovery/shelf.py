"""A folder of saved runs: one file per run, named for people and found by its inputs; only the newest few are kept."""

from contextlib import suppress
from pathlib import Path

from ..recipes import SampleRequest
from ..specs import video_frames
from .state import remove_state

# At 1280x720x81 a run in the middle takes 94 MB, a sampled one 36.
KEPT_RUNS = 6
_SUFFIX = ".run.safetensors"


def shelf_path(folder: Path, request: SampleRequest, latent_size: tuple[int, int, int], key: str) -> Path:
    """Where the run with this key has its state, for example "832x480x81 seed 7 0a1b2c3d.run.safetensors"."""
    t, h, w = latent_size
    return folder / f"{w * 8}x{h * 8}x{video_frames(t)} seed {request.seed} {key[:8]}{_SUFFIX}"


def saved_runs(folder: Path) -> list[str]:
    """Names of the saved runs, newest first."""
    return [path.name for path in _newest_first(folder)]


def tidy(folder: Path) -> None:
    """Make the folder, and remove all but the newest runs from it, so that there is room for one more."""
    with suppress(OSError):  # a folder that cannot be made is told when the first state cannot be written
        folder.mkdir(parents=True, exist_ok=True)
    for path in _newest_first(folder)[KEPT_RUNS - 1 :]:
        remove_state(path)


def _newest_first(folder: Path) -> list[Path]:
    found = []
    for path in folder.glob(f"*{_SUFFIX}"):
        with suppress(OSError):  # another process may have removed it
            found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True) if not path.name.startswith(".")]
