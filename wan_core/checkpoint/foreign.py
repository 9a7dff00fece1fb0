"""Files that are none of the formats read here: what they are by their first bytes or their suffix, and what to do."""

from collections.abc import Mapping
from pathlib import Path

_OLD_PICKLE = (
    "is a PyTorch pickle of the old form, which can only be read whole and is refused; save it again with the "
    "torch.save of PyTorch 1.6 or newer, or use a .safetensors version"
)
_WEB_PAGE = "is a web page that was saved in place of the file; download the file itself again"
_POINTER = "is a Git LFS pointer, not the file that it stands for; fetch it with `git lfs pull` or download it"

_BEGINNINGS: Mapping[bytes, str] = {
    b"\x80\x02": _OLD_PICKLE,
    b"\x80\x04": _OLD_PICKLE,
    b"version https://git-lfs": _POINTER,
    b"<!DOCTYPE": _WEB_PAGE,
    b"<!doctype": _WEB_PAGE,
    b"<html": _WEB_PAGE,
    b"<?xml": _WEB_PAGE,
}
_NO_PYTORCH_FILE = "is called a PyTorch file but does not begin like one: it is damaged, or something else"
_EXPECTED: Mapping[str, str] = {
    ".gguf": "is called a GGUF but does not begin like one: it is damaged, or something else",
    ".pth": _NO_PYTORCH_FILE,
    ".pt": _NO_PYTORCH_FILE,
    ".ckpt": _NO_PYTORCH_FILE,
    ".bin": _NO_PYTORCH_FILE,
    ".onnx": "is an ONNX model, expected a checkpoint",
}


def describe_foreign(path: Path, start: bytes) -> str | None:
    """What a file with these first bytes is, as the end of a sentence; `None` where that is not known."""
    for beginning, sentence in _BEGINNINGS.items():
        if start.startswith(beginning):
            return sentence
    return _EXPECTED.get(path.suffix.lower())
