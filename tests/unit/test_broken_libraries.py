"""A library that is installed and cannot be imported costs a line in `doctor`, and what it is for; nothing else."""

import ast
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from wan_core.attention.backends import BACKENDS
from wan_core.attention.interface import AttentionProblem, KernelChoice, bind
from wan_core.checkpoint.gguf_blocks import decode_by_package
from wan_core.cli import doctor
from wan_core.errors import BROKEN_LIBRARY, CheckpointError, InputError, UnsupportedError
from wan_core.kernels.bind import bind_kernels
from wan_core.metrics import _load_ssim
from wan_core.models.tokenizer import _load, _text_fixer
from wan_core.video import _pyav

ROOT = Path(__file__).parents[2]
MODULES = {name: doctor.MODULES.get(name, name) for name in doctor.LIBRARIES}
# As they were reported by users of such libraries.
ERRORS = (
    ImportError("/home/alice/env/lib/flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E\nand a page more"),
    OSError("libcudart.so.12: cannot open shared object file"),
    ValueError("numpy.dtype size changed, may indicate binary incompatibility"),
    AttributeError("module 'numpy' has no attribute 'bool'"),
    SyntaxError("invalid syntax (wheel for another Python)"),
    RuntimeError("no driver"),
)


class Breaker:
    """A finder that raises for one top-level package, installed or not."""

    def __init__(self, package: str, error: Exception) -> None:
        self._package, self._error = package, error

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == self._package:
            raise self._error


@pytest.fixture
def break_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    def broken(library: str, error: Exception) -> None:
        package = MODULES[library].partition(".")[0]
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Breaker(package, error), *sys.meta_path])
        version = importlib.metadata.version
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == library else version(name))

    yield broken


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("library", [*MODULES])
def test_doctor_says_it_in_one_line(break_library, library: str, error: Exception, machine) -> None:
    break_library(library, error)
    reason = doctor.why_not(library)
    assert reason == f"{type(error).__name__}: {str(error).splitlines()[0]}"
    diagnosis = doctor.Diagnosis(
        system="", python="", hardware=machine("cpu"), attention_shape="", attention=(),
        libraries={library: doctor._version(library)}, broken={library: reason},
    )  # fmt: skip
    (line,) = [line for line in doctor.to_text(diagnosis).splitlines() if "cannot be imported" in line]
    assert line.split()[0] == library and "9.9" in line and type(error).__name__ in line


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_needs_it_says_so_and_the_rest_goes_on(break_library, error: Exception) -> None:
    for library in ("ftfy", "kornia", "gguf", "sentencepiece", "av", "triton"):
        break_library(library, error)
    assert _text_fixer()[0]("a  b") == "a  b"
    assert _load_ssim(64, 64)[0] is None
    with pytest.raises(CheckpointError, match="need the package gguf"):
        decode_by_package(torch.zeros(1, 84, dtype=torch.uint8), "Q2_K")
    with pytest.raises(InputError, match="need the package sentencepiece"):
        _load(b"", "a file")
    with pytest.raises(UnsupportedError, match="need the library PyAV"):
        _pyav()
    _, reason = bind_kernels("triton", "cpu")
    assert reason and type(error).__name__ in reason


@pytest.mark.parametrize("library", ["flash-attn", "flash-attn-3", "flash-attn-4", "xformers"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_kernel_is_passed_over_with_its_reason(break_library, machine, library: str, error: Exception) -> None:
    break_library(library, error)
    problem = AttentionProblem(batch=1, q_len=64, kv_len=64, num_heads=2, head_dim=16, dtype="float32")
    name = "flash-attn-2" if library == "flash-attn" else library
    named = [backend for backend in BACKENDS if backend.name in (name, "sdpa")]
    choice = KernelChoice(topic="attention", asked="auto", accepted=tuple(named), rejected=(), problem=problem)
    _, decision = bind(choice, machine("cpu"))
    assert decision.chosen == "sdpa"
    (rejection,) = decision.rejected
    assert rejection.name == name and "\n" not in rejection.reason


def test_no_optional_library_is_imported_with_the_code() -> None:
    """At the top of a file, an import decides whether the pack loads; only files that are imported late may."""
    packages = {module.partition(".")[0] for module in MODULES.values()}
    late = {"wan_core/kernels/triton_"}
    for path in [*ROOT.glob("wan_core/**/*.py"), *ROOT.glob("nodes/*.py")]:
        name = path.relative_to(ROOT).as_posix()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found = packages & {each.partition(".")[0] for each in names}
            assert not found or name.startswith(tuple(late)), f"{name} imports {found}"


def test_defects_of_ours_are_not_taken_for_broken_libraries() -> None:
    assert not issubclass(AssertionError, BROKEN_LIBRARY) and not issubclass(KeyError, BROKEN_LIBRARY)
