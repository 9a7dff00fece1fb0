"""What `doctor --report` prints: a diagnosis in Markdown, to be pasted into an issue, without anything private.

Left out are the names of folders (also inside the messages of other libraries), of the user and of the machine.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..hardware import Hardware

# "/a/b/name.so" and "C:\a\b\name.dll": all but the last part.
_FOLDERS = re.compile(r"""(?:[A-Za-z]:)?[\\/](?:[^\\/:'"<>|\n]+[\\/])+""")
_QUESTIONS = "**What I did, what I expected, what happened:**\n\n"
_MORE = (
    "**If it concerns a run:** the text of the node's report (or `--report FILE.json`), the ComfyUI version, and the "
    "flags that it was started with.\n"
)


def issue_text(version: str, rows: Mapping[str, str], kernels: Mapping[str, str], libraries: Mapping[str, str]) -> str:
    """Markdown: what is to be filled in, then tables of the machine, the attention kernels and the libraries."""
    parts = [
        f"### Wan Velocity {version}\n\n{_QUESTIONS}",
        _table("machine", "", rows),
        _table("attention", "", kernels),
        _table("library", "version", libraries),
        _MORE,
    ]
    return "\n".join(parts)


def pack_version() -> str:
    """The version of this pack, from its own pyproject.toml."""
    try:
        text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return "(version unknown)"
    found = re.search(r'^version = "([^"]+)"', text, re.M)
    return found[1] if found else "(version unknown)"


def without_folders(text: str) -> str:
    """Messages with file names in place of whole paths, and without the user's home."""
    for home in _homes():
        text = text.replace(home, "~")
    return _FOLDERS.sub(".../", text)


def machine_rows(hardware: Hardware, system: str, python: str) -> dict[str, str]:
    """The machine as somebody needs it who is to repeat something: no host name, no serial numbers."""
    memory = f"{hardware.total_memory / 2**30:.0f} GiB, {hardware.free_memory / 2**30:.0f} free"
    return {
        "system": system,
        "Python": python,
        "torch": f"{hardware.torch_version}, CUDA {hardware.cuda_version}, cuDNN {hardware.cudnn_version}",
        "device": hardware.name,
        "device memory": memory,
        "host memory": f"{hardware.host_memory / 2**30:.0f} GiB, {hardware.host_free_memory / 2**30:.0f} free",
    }


def _homes() -> Iterator[str]:
    try:
        yield str(Path.home())
    except RuntimeError:  # a user without a home
        return


def _table(first: str, second: str, rows: Mapping[str, str]) -> str:
    lines = [f"| {first} | {second} |", "|---|---|"]
    lines += [f"| {name} | {without_folders(value).replace('|', '/')} |" for name, value in rows.items()]
    return "\n".join(lines) + "\n"
