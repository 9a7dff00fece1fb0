"""Files that are no safetensors files: what they are by their first bytes or their suffix, and what to use instead."""

from collections.abc import Mapping
from pathlib import Path

_SAFETENSORS_INSTEAD = (
    "expected a .safetensors file, such as those of Comfy-Org/Wan_2.2_ComfyUI_Repackaged "
    "(wan2.2_t2v_high_noise_14B_fp16, umt5_xxl_fp16, wan_2.1_vae)"
)
_GGUF = f"is a GGUF file, a format that is not read here; {_SAFETENSORS_INSTEAD}"
_PICKLE = f"is a PyTorch pickle, a format that is not read here; {_SAFETENSORS_INSTEAD}"
_WEB_PAGE = "is a web page that was saved in place of the file; download the file itself again"
_POINTER = "is a Git LFS pointer, not the file that it stands for; fetch it with `git lfs pull` or download it"

_BEGINNINGS: Mapping[bytes, str] = {
    b"GGUF": _GGUF,
    b"PK\x03\x04": _PICKLE,
    b"\x80\x02": _PICKLE,
    b"\x80\x04": _PICKLE,
    b"version https://git-lfs": _POINTER,
    b"<!DOCTYPE": _WEB_PAGE,
    b"<!doctype": _WEB_PAGE,
    b"<html": _WEB_PAGE,
    b"<?xml": _WEB_PAGE,
}
FOREIGN_SUFFIXES: Mapping[str, str] = {
    ".gguf": _GGUF,
    ".pth": _PICKLE,
    ".pt": _PICKLE,
    ".ckpt": _PICKLE,
    ".bin": _PICKLE,
}


def describe_foreign(path: Path, start: bytes) -> str | None:
    """What a file with these first bytes is, as the end of a sentence; `None` where that is not known."""
    for beginning, sentence in _BEGINNINGS.items():
        if start.startswith(beginning):
            return sentence
    return FOREIGN_SUFFIXES.get(path.suffix.lower())
