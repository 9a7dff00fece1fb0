"""What a new process does not import before it has to: each of these is some tenths of a second to some seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# PyTorch's compiler and what comes with it: 2.1 seconds of CPU time, for who does not compile.
COMPILER = {"torch._dynamo", "torch._inductor", "sympy", "torch.fx.experimental.symbolic_shapes"}
VENDORS = {"triton", "flash_attn", "flash_attn_interface", "xformers", "cutlass", "quack"}
OPTIONAL = {"av", "PIL", "sentencepiece", "ftfy", "gguf", "kornia", "transformers", "diffusers", "skimage", "scipy"}

IMPORTED = "import wan_core.pipeline, wan_core.sample, wan_core.cli.generate, wan_core.cli.plan"
# A plan for a card, and a run on the CPU: planned, built, two steps, with PyTorch's own kernels.
STEPS = """
from dataclasses import replace
from tests.unit.test_plan import H200
from wan_core.bench.choose import contestant
from wan_core.bench.task import TINY_TRANSFORMER, Task
from wan_core.plan import resolve
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.specs import T2V_A14B_TRANSFORMER
from wan_core.workload import Workload

size = VideoSize(width=832, height=480, num_frames=81)
request = SampleRequest(recipe=recipe("official"))
resolve(preset("exact"), H200, T2V_A14B_TRANSFORMER, Workload(request=request, latent_size=size.latent_size))
small = VideoSize(width=64, height=64, num_frames=5)
prepared = contestant(PROFILE).prepare("step", Task(size=small, device="cpu", transformer=TINY_TRANSFORMER))
prepared.run()
prepared.run()
"""


# A vendor's library that does what one below FlashAttention 4 does.
VENDOR = """
import gc
import torch

assert not gc.isenabled()

class Tuner:
    @torch.compiler.disable
    def __call__(self):
        return 1

    @torch.compiler.disable(recursive=False, reason="not for graphs")
    def once(self):
        return 2

def flash_attn_func(q, k, v):
    return q
"""


def loaded(code: str) -> set[str]:
    """Modules of a new process after `code`."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("code", "allowed"),
    [("import wan_core, wan_core.__main__, wan_core.cli", set()), (IMPORTED, {"torch", "numpy", "tqdm"})],
)
def test_importing_imports_nothing_heavy(code, allowed):
    assert not loaded(code) & (({"torch", "numpy", "tqdm"} | COMPILER | VENDORS | OPTIONAL) - allowed)


@pytest.mark.parametrize("profile", ["exact"])
def test_planning_building_and_running_do_not_import_the_compiler(profile):
    modules = loaded(STEPS.replace("PROFILE", repr(profile)))
    assert "wan_core.build" in modules
    assert not modules & (COMPILER | VENDORS | OPTIONAL)


def test_compiling_imports_the_compiler_at_once_without_collecting():
    code = """
import gc, torch
from wan_core.compilation import compile_blocks
collected = []
gc.callbacks.append(lambda phase, info: collected.append(info["generation"]))
compile_blocks([torch.nn.Linear(2, 2)])
print(len(collected))
assert gc.isenabled() and len(collected) < 10
"""
    assert COMPILER | {"torch._inductor.compile_fx"} <= loaded(code)


def test_a_vendor_that_keeps_the_compiler_away_does_not_import_it(tmp_path):
    package = tmp_path / "flash_attn" / "cute"
    package.mkdir(parents=True)
    (tmp_path / "flash_attn" / "__init__.py").touch()
    (package / "__init__.py").write_text(VENDOR, encoding="utf-8")
    code = f"""
import sys, torch
sys.path.insert(0, {str(tmp_path)!r})
before = torch.compiler.disable
from wan_core.attention.backends import flash_attention_4
flash_attention_4.BACKEND.load()
assert torch.compiler.disable is before
assert not {COMPILER!r} & set(sys.modules)
flash_attention_4.BACKEND.load()  # where it is imported already
import gc
assert gc.isenabled()
tuner = sys.modules["flash_attn.cute"].Tuner()
assert (tuner(), tuner.once()) == (1, 2)
"""
    assert {"flash_attn.cute", "torch._dynamo"} <= loaded(code)
