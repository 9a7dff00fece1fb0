"""The vendors' backends: what each refuses and where, what it calls, and what a broken library costs."""

import importlib.util
import os
import sys
import warnings
from dataclasses import replace

import pytest
import torch

from tests.unit.attention.fakes import VENDORS, attend, failing, install, install_broken
from wan_core.attention.backends import BACKENDS, sdpa
from wan_core.attention.interface import AttentionBackend, AttentionProblem, bind, survivors
from wan_core.cli import doctor

REAL = AttentionProblem(batch=1, q_len=75_600, kv_len=75_600, num_heads=40, head_dim=128, dtype="bfloat16")
SMALL = replace(REAL, q_len=100, kv_len=100, num_heads=2, head_dim=16)
ALL = tuple((package, "1.0") for package, _, _ in VENDORS.values())
UNTIL_9 = "is made for compute capabilities up to 9.0, this is 10.0"
NEEDS_9 = "needs compute capability 9.0, this is "
IN_HALF = "needs bfloat16 or float16, the plan computes in float32"


def vendor_backend(name: str) -> AttentionBackend:
    return next(backend for backend in BACKENDS if backend.name == name)


@pytest.mark.parametrize(
    ("name", "problem", "capability", "reason"),
    [
        ("flash-attn-4-wide", REAL, (9, 0), None),
        ("flash-attn-4-wide", REAL, (10, 0), UNTIL_9),
        ("flash-attn-4", REAL, (9, 0), None),
        ("flash-attn-4", replace(REAL, dtype="float16"), (10, 0), None),
        ("flash-attn-4", REAL, (8, 0), NEEDS_9 + "8.0"),
        ("flash-attn-4", replace(REAL, dtype="float32"), (9, 0), IN_HALF),
        ("flash-attn-4", replace(REAL, head_dim=256), (9, 0), "needs a head dimension up to 128, got 256"),
        ("flash-attn-4", replace(REAL, head_dim=100), (9, 0), "needs a head dimension in multiples of 8, got 100"),
        ("flash-attn-3", REAL, (9, 0), None),
        ("flash-attn-3", REAL, (10, 0), UNTIL_9),
        ("flash-attn-3", REAL, (8, 9), NEEDS_9 + "8.9"),
        ("flash-attn-3", replace(REAL, head_dim=512), (9, 0), "needs a head dimension up to 256, got 512"),
        ("flash-attn-2", REAL, (8, 0), None),
        ("flash-attn-2", REAL, (12, 0), None),
        ("flash-attn-2", replace(REAL, dtype="float16"), (7, 5), "needs compute capability 8.0, this is 7.5"),
        ("flash-attn-2", replace(REAL, dtype="float32"), (9, 0), IN_HALF),
        ("xformers", REAL, (8, 0), None),
        ("xformers", replace(REAL, dtype="float32"), (7, 5), None),
        (
            "xformers",
            REAL,
            (7, 5),
            "needs float16 or float32 below compute capability 8.0, the plan computes in bfloat16",
        ),
    ],
)
def test_refusals_by_card(machine, name, problem, capability, reason):
    hardware = replace(machine("h200", libraries=ALL), capability=capability)
    assert vendor_backend(name).rejects(problem, hardware) == reason


@pytest.mark.parametrize("name", VENDORS)
def test_a_missing_library_is_named_where_installing_it_would_help(machine, name):
    backend, package = vendor_backend(name), VENDORS[name][0]
    assert backend.rejects(REAL, machine("h200")) == f"the library {package} is not installed"
    assert backend.rejects(REAL, machine("cpu")) == "needs an NVIDIA GPU"
    assert "not installed" not in backend.rejects(REAL, machine("2080ti"))


def test_order_of_preference_with_everything_installed(machine):
    names = survivors("attention", "auto", REAL, machine("h200", libraries=ALL), BACKENDS).names
    assert names == (
        "flash-attn-4-wide", "flash-attn-4", "flash-attn-3", "cudnn", "flash-attn-2", "flash", "xformers", "efficient",
        "sdpa",
    )  # fmt: skip
    names = survivors("attention", "auto", REAL, machine("a100", libraries=ALL), BACKENDS).names
    assert names == ("flash-attn-2", "flash", "xformers", "efficient", "sdpa")


def test_equal_reasons_are_said_once(machine):
    choice = survivors("self attention", "auto", replace(REAL, dtype="float32"), machine("cpu"), BACKENDS)
    assert str(choice.decision) == (
        "self attention: flash; "
        "not flash-attn-4-wide, flash-attn-4, flash-attn-3, cudnn, flash-attn-2: needs an NVIDIA GPU"
    )


def in_wide_blocks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, tile_mn: tuple[int, int], mma_pv_is_rs: bool
) -> tuple[torch.Tensor, None, None]:
    assert tile_mn[0] == 192 and not mma_pv_is_rs, "the probabilities of so wide a block do not fit the registers"
    return attend(q, k, v), None, None


def with_log_sum_exp(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, None]:
    return attend(q, k, v), None


@pytest.mark.parametrize(
    ("name", "function"),
    [
        *((name, in_wide_blocks if name == "flash-attn-4-wide" else attend) for name in VENDORS),
        ("flash-attn-4", with_log_sum_exp),
        ("flash-attn-3", with_log_sum_exp),
    ],
)
def test_the_vendor_is_called_in_our_layout_and_compiles_into_one_graph(monkeypatch, name, function):
    install(monkeypatch, name, function)
    run = vendor_backend(name).load()
    q, k, v = replace(SMALL, kv_len=37, dtype="float32").tensors("cpu", max_len=100)
    expected = attend(q, k, v)
    torch.testing.assert_close(run(q, k, v), expected, rtol=0, atol=0)
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k, v: run(2 * q, k, v) + 1, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), attend(2 * q, k, v) + 1, rtol=0, atol=0)
    torch._dynamo.reset()


BROKEN = [
    (ImportError("libcudart.so.12: cannot open shared object file"), "ImportError: libcudart.so.12: cannot open"),
    (OSError("undefined symbol: _ZN3c10\nand a page"), "OSError: undefined symbol: _ZN3c10"),
    (AssertionError("CUDA driver is too old"), "RuntimeError: AssertionError: CUDA driver is too old"),
]


@pytest.mark.parametrize(("error", "reason"), BROKEN)
@pytest.mark.parametrize("name", VENDORS)
def test_a_broken_library_is_one_rejection_and_a_fallback(monkeypatch, machine, name, error, reason):
    install_broken(monkeypatch, name, error)
    choice = survivors("self attention", name, SMALL, machine("h200", libraries=ALL), (vendor_backend(name), sdpa.ANY))
    attend, decision = bind(choice, machine("cpu"))
    assert (decision.chosen, decision.degraded) == ("sdpa", True)
    (rejection,) = decision.rejected
    assert rejection.name == name
    assert rejection.reason.startswith(reason) and "\n" not in rejection.reason
    assert attend(*SMALL.tensors("cpu")).shape == (1, 64, 2, 16)


@pytest.mark.parametrize("name", VENDORS)
def test_a_library_that_is_listed_but_not_there_is_one_rejection(monkeypatch, machine, name):
    if importlib.util.find_spec(VENDORS[name][1].partition(".")[0]):
        pytest.skip("it is there")
    choice = survivors("self attention", name, SMALL, machine("h200", libraries=ALL), (vendor_backend(name), sdpa.ANY))
    _, decision = bind(choice, machine("cpu"))
    assert decision.rejected[0].reason.startswith("ModuleNotFoundError: No module named")


def test_a_kernel_that_refuses_at_its_first_call_is_passed_over(monkeypatch, machine):
    install(monkeypatch, "flash-attn-4", failing(AssertionError("inputs must be on CUDA device")))
    backends = (vendor_backend("flash-attn-4"), sdpa.ANY)
    choice = survivors("self attention", "auto", SMALL, machine("h200", libraries=ALL), backends)
    _, decision = bind(choice, machine("cpu"))
    assert str(decision) == (
        "self attention: sdpa; not flash-attn-4: RuntimeError: AssertionError: inputs must be on CUDA device"
    )


@pytest.mark.parametrize("name", VENDORS)
def test_doctor_shows_what_is_broken(monkeypatch, machine, name):
    install_broken(monkeypatch, name, OSError("undefined symbol: _ZN3c10"))
    tensors = AttentionProblem.tensors
    monkeypatch.setattr(AttentionProblem, "tensors", lambda self, device: tensors(self, "cpu"))
    backend = vendor_backend(name)
    verdict = doctor.judge(backend, (backend, sdpa.ANY), SMALL, machine("h200", libraries=ALL))
    assert verdict.problem == "OSError: undefined symbol: _ZN3c10"


def test_flash_attention_4_keeps_its_kernels_in_our_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("WAN_VELOCITY_CACHE", str(tmp_path))
    for name in ("ENABLED", "DIR"):
        monkeypatch.setenv(f"FLASH_ATTENTION_CUTE_DSL_CACHE_{name}", "")  # so that it is put back
        monkeypatch.delenv(f"FLASH_ATTENTION_CUTE_DSL_CACHE_{name}")
    monkeypatch.setitem(sys.modules, "flash_attn.cute", None)
    with pytest.raises(ImportError), warnings.catch_warnings():
        vendor_backend("flash-attn-4").load()
    assert os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"] == "1"
    assert os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"] == str(tmp_path / "flash-attn-4")
