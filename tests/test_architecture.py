"""The import law and the shape of the house, held by reading the source; no module is imported.

A file of wan_core may import from its own layer and the layers above it in LAYERS, with the exceptions below the
table. Every rule is shown to catch a violation, at the end of this file.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent

# Unit (file or folder of wan_core) by layer, the most basic first. A new unit needs a place here.
LAYERS = {
    "facts": {"errors", "files", "hooks", "placement", "profiles", "recipes", "report", "specs"},
    "machine": {
        "allocator", "hardware", "host_ram", "history", "importing", "kernels", "live_bytes", "machine_file", "measure",
        "meta", "precision",
    },
    "mechanisms": {
        "attention", "compilation", "frames", "linear", "metrics", "offload", "pacing", "parallel", "step_cache",
        "video",
    },
    "wan": {"models", "sampling", "checkpoint"},
    "composition": {
        "activations", "adaptation", "build", "choices", "component_plan", "components", "countdown", "demand",
        "estimate", "footprint", "live", "lora_plan", "memory_plan", "native", "outlook", "placing", "plan", "predict",
        "recovery", "run_plan", "storage", "workload",
    },
    "surface": {"__init__", "__main__", "bench", "cli", "pipeline", "sample", "steps"},
}  # fmt: skip
# Mechanisms know tensors, never each other.
NO_SIDEWAYS = "mechanisms"
# The model sees never a prompt, a file or a seed.
NEVER = {("models", "sampling"), ("models", "checkpoint"), ("sampling", "checkpoint")}

HOST = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "folder_paths",
    "latent_preview",
    "server",
    "execution",
}
OURS = {"wan_core", "nodes", "miniature", "benchmarks", "tests"}
# The adapter (files, messages, progress, routes), memory management, and what works on the host's own model.
HOST_FILES = {
    "nodes/host.py", "nodes/live.py", "nodes/native_blocks.py", "nodes/native_model.py", "nodes/patcher.py",
    "nodes/routes.py",
}  # fmt: skip
# A verb of the command line is called what the verb is called; the file is never on sys.path.
STDLIB_NAMES_ALLOWED = {"wan_core/cli/inspect.py"}
MAX_LINES = {"__init__.py": 15, "nodes/host.py": 150}
MAX_LINES_ELSEWHERE = 400


def layer_of(unit: str) -> int | None:
    return next((index for index, units in enumerate(LAYERS.values()) if unit in units), None)


def imports(tree: ast.Module) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import at any depth, and whether it stands under `if TYPE_CHECKING`."""

    def walk(node: ast.AST, *, typing_only: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, typing_only
        under = typing_only or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
        for child in ast.iter_child_nodes(node):
            yield from walk(child, typing_only=under)

    return walk(tree, typing_only=False)


def absolute_targets(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Top-level names of an absolute import; none for a relative one."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    return [] if node.level else [(node.module or "").partition(".")[0]]


def relative_targets(path: PurePosixPath, node: ast.Import | ast.ImportFrom) -> list[tuple[str, ...]]:
    """Full paths of the modules that a relative import in the file `path` names, from the checkout's root."""
    if isinstance(node, ast.Import) or not node.level:
        return []
    package = path.parent.parts
    if node.level > len(package) + 1:
        return [("<outside>",)]
    base = (*package[: len(package) - node.level + 1], *((node.module or "").split(".") if node.module else ()))
    return [(*base, alias.name) for alias in node.names]


def violations(name: str, source: str) -> list[str]:
    """What the file called `name` (from the checkout's root, with slashes) does against the law."""
    path, tree = PurePosixPath(name), ast.parse(source)
    found = list(_shape(name, source))
    for node, typing_only in imports(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            found.append(f"{name}:{node.lineno} star import")
        if path.parts[0] == "wan_core":
            found += [f"{name}:{node.lineno} {text}" for text in _core(path, node, typing_only=typing_only)]
        elif path.parts[0] == "nodes":
            found += [f"{name}:{node.lineno} {text}" for text in _nodes(path, node)]
    if name == "__init__.py":
        found += [f"{name}:{node.lineno} imports when ComfyUI loads it" for node in tree.body if _is_import(node)]
    return found


def _is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _shape(name: str, source: str) -> Iterator[str]:
    path, num_lines = PurePosixPath(name), len(source.splitlines())
    limit = MAX_LINES.get(name, MAX_LINES_ELSEWHERE)
    if num_lines > limit:
        yield f"{name} has {num_lines} lines, its limit is {limit}"
    if path.stem in sys.stdlib_module_names and path.stem != "__init__" and name not in STDLIB_NAMES_ALLOWED:
        yield f"{name} is called like a module of the standard library"


def _core(path: PurePosixPath, node: ast.Import | ast.ImportFrom, *, typing_only: bool) -> Iterator[str]:
    unit = path.parts[1].removesuffix(".py")
    layer = layer_of(unit)
    if layer is None:
        yield f"{unit} has no layer"
        return
    for target in absolute_targets(node):
        if target in HOST:
            yield f"imports the host's {target}"
        elif target in OURS:
            yield f"imports {target} by absolute name"
        elif layer == 0 and not typing_only and target not in sys.stdlib_module_names:
            yield f"imports {target}: facts stand on the standard library alone"
    for target in relative_targets(path, node):
        if target[0] != "wan_core":
            yield f"reaches outside wan_core to {'.'.join(target)}"
            continue
        other = target[1] if layer_of(target[1]) is not None else "__init__"
        if other != unit and not typing_only and (reason := _forbidden(unit, layer, other)):
            yield reason


def _forbidden(unit: str, layer: int, other: str) -> str | None:
    names, other_layer = list(LAYERS), layer_of(other)
    if other_layer > layer:
        return f"{unit} ({names[layer]}) imports upwards from {other} ({names[other_layer]})"
    if other_layer == layer and names[layer] == NO_SIDEWAYS:
        return f"{unit} imports {other}: mechanisms never know each other"
    return f"{unit} must not know {other}" if (unit, other) in NEVER else None


def _nodes(path: PurePosixPath, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    for target in absolute_targets(node):
        if target in HOST - {"comfy_api"} and str(path) not in HOST_FILES:
            yield f"imports the host's {target}: only {', '.join(sorted(HOST_FILES))} may"
        elif target in OURS:
            yield f"imports {target} by absolute name"
    for target in relative_targets(path, node):
        if target[0] not in ("nodes", "wan_core"):
            yield f"reaches to {'.'.join(target)}; nodes know wan_core and each other"


def source_files() -> list[str]:
    folders = ("wan_core", "nodes", "miniature", "benchmarks", "assets", "tests")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found += [path for path in (ROOT / "__init__.py", ROOT / "quickstart.py") if path.exists()]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def test_the_house_keeps_its_law():
    files = source_files()
    assert len(files) > 30, "the files were not found"
    found = [text for name in files for text in violations(name, (ROOT / name).read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_every_folder_of_code_is_a_package():
    folders = {path.parent for folder in ("wan_core", "nodes") for path in (ROOT / folder).rglob("*.py")}
    assert [folder.name for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_requirements_say_the_same_twice():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert project["dependencies"] == [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("wan_core/plan.py", "from .pipeline import sample", "plan (composition) imports upwards from pipeline"),
        ("wan_core/plan.py", "from . import pipeline", "imports upwards from pipeline"),
        ("wan_core/plan.py", "from . import WanPipeline", "imports upwards from __init__"),
        (
            "wan_core/attention/backends/flash.py",
            "from ...plan import resolve",
            "attention (mechanisms) imports upwards",
        ),
        ("wan_core/attention/interface.py", "def f():\n    from ..models.t5 import x", "interface.py:2 attention"),
        ("wan_core/attention/interface.py", "from ..linear.bf16 import x", "mechanisms never know each other"),
        ("wan_core/offload.py", "from .compilation import compile_blocks", "mechanisms never know each other"),
        ("wan_core/models/t5.py", "from ..checkpoint.read import x", "models must not know checkpoint"),
        ("wan_core/specs.py", "import torch", "facts stand on the standard library alone"),
        ("wan_core/specs.py", "from .hardware import Hardware", "specs (facts) imports upwards from hardware"),
        ("wan_core/pipeline.py", "import comfy.model_management", "imports the host's comfy"),
        ("wan_core/pipeline.py", "if True:\n    from comfy_api.latest import io", "imports the host's comfy_api"),
        ("wan_core/pipeline.py", "import os, folder_paths", "imports the host's folder_paths"),
        ("wan_core/pipeline.py", "from wan_core.plan import resolve", "imports wan_core by absolute name"),
        ("wan_core/pipeline.py", "import nodes", "imports nodes by absolute name"),
        ("wan_core/pipeline.py", "from ..nodes import host", "reaches outside wan_core to nodes.host"),
        ("wan_core/pipeline.py", "from ... import x", "reaches outside wan_core to <outside>"),
        ("wan_core/novelty.py", "import os", "novelty has no layer"),
        ("wan_core/models/types.py", "", "called like a module of the standard library"),
        ("nodes/sample.py", "import comfy.utils", "imports the host's comfy"),
        ("nodes/sample.py", "from wan_core import plan", "imports wan_core by absolute name"),
        ("nodes/sample.py", "from ..tests import x", "reaches to tests.x"),
        ("nodes/host.py", "\n" * 151, "nodes/host.py has 151 lines, its limit is 150"),
        ("__init__.py", "from .nodes import WanExtension", "imports when ComfyUI loads it"),
        ("__init__.py", "#\n" * 16, "__init__.py has 16 lines, its limit is 15"),
        ("tests/unit/test_x.py", "from os.path import *", "star import"),
        ("miniature/scenes.py", "\n" * 401, "its limit is 400"),
    ],
)
def test_each_rule_catches_its_violation(name, source, expected):
    (found,) = violations(name, source)
    assert expected in found


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("wan_core/plan.py", "from .attention.interface import survivors\nfrom . import specs\nimport torch"),
        ("wan_core/attention/backends/__init__.py", "from . import sdpa\nfrom ...hardware import Hardware"),
        ("wan_core/sampling/guidance.py", "from ..models.transformer import TextContext"),
        ("wan_core/hooks.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor"),
        ("wan_core/cli/doctor.py", "from ..hardware import Hardware\nfrom .progress import TerminalProgress"),
        ("wan_core/cli/inspect.py", "import json"),
        ("nodes/sample.py", "from comfy_api.latest import io\nfrom ..wan_core.plan import resolve\nfrom . import host"),
        ("nodes/host.py", "import comfy.model_management\nimport folder_paths"),
        (
            "__init__.py",
            "async def comfy_entrypoint():\n    from .nodes import WanExtension\n    return WanExtension()",
        ),
        ("tests/unit/test_x.py", "from wan_core.plan import resolve"),
    ],
)
def test_what_is_lawful_passes(name, source):
    assert violations(name, source) == []


def test_the_law_is_written_down_as_it_is_checked() -> None:
    law = (
        (ROOT / "docs" / "DEVELOPING.md").read_text(encoding="utf-8").split("## The law of imports")[1].split("```")[1]
    )
    layer, written = "", {}
    for line in law.strip("\n").splitlines():
        if not line.startswith(" "):
            layer = line.split()[0]
            written[layer] = set()
        else:
            written[layer] |= {unit.rstrip("/") for unit in line.split()}
    there = {path.stem for path in (ROOT / "wan_core").iterdir()}
    assert written == {layer: units & there for layer, units in LAYERS.items()}
