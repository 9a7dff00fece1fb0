"""Fused kernels are tried before they are bound; what fails is passed over with its reason."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from wan_core.kernels import block, vae
from wan_core.kernels.bind import bind_kernels, bind_vae_kernels
from wan_core.kernels.block import TORCH, BlockKernels
from wan_core.kernels.decode import KNOWN_BLOCKS
from wan_core.kernels.vae import VaeKernels


@pytest.fixture
def vendor(monkeypatch):
    """Stands a module in for Triton's kernels."""

    def stand_in(kernels: BlockKernels | VaeKernels) -> None:
        errors = ModuleType("triton.errors")
        errors.TritonError = type("TritonError", (Exception,), {})
        part = "block" if isinstance(kernels, BlockKernels) else "vae"
        ours = ModuleType(f"wan_core.kernels.triton_{part}")
        ours.TRITON = kernels
        for module in (ModuleType("triton"), errors, ours):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    return stand_in


def test_kernels_that_compute_the_same_are_bound(vendor):
    kernels = replace(TORCH, name="another")
    vendor(kernels)
    assert bind_kernels("triton", "cpu") == (kernels, None)
    assert bind_kernels("off", "cpu") == (TORCH, None)


def test_a_library_that_is_missing_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton.errors", None)
    bound, problem = bind_kernels("triton", "cpu")
    assert bound is TORCH
    assert problem.startswith("ModuleNotFoundError: ")


@pytest.mark.parametrize("name", ["norm", "add", "add_norm", "rms_norm", "expand"])
def test_one_that_is_wrong_is_a_reason(vendor, name):
    def twice(*arguments):
        result = getattr(block, name)(*arguments)
        return tuple(2 * each for each in result) if isinstance(result, tuple) else 2 * result

    vendor(replace(TORCH, **{name: twice}))
    bound, problem = bind_kernels("triton", "cpu")
    assert bound is TORCH
    assert problem.startswith(f"{name} differs from PyTorch's by 1.0e+00")


@pytest.mark.parametrize("form", ["float8_e4m3fn", "float8_e5m2", "int8", *KNOWN_BLOCKS])
def test_the_codes_that_it_will_decode_are_tried(vendor, form):
    def twice(place, codes, scale, form):
        TORCH.decode(place, codes, scale, form)
        place.mul_(2)

    wrong = replace(TORCH, name="another", decode=twice)
    vendor(wrong)
    assert bind_kernels("triton", "cpu") == (wrong, None), "nothing to decode"
    assert bind_kernels("triton", "cpu", [form]) == (TORCH, f"decode {form} differs from PyTorch's by 1.0e+00")


@pytest.mark.parametrize("fault", [RuntimeError("no image\nfor this card"), torch.OutOfMemoryError("no memory")])
def test_one_that_does_not_run_is_a_reason(vendor, fault):
    def fail(*arguments):
        raise fault

    vendor(replace(TORCH, rms_norm=fail))
    bound, problem = bind_kernels("triton", "cpu")
    assert bound is TORCH
    assert problem == f"{type(fault).__name__}: {str(fault).splitlines()[0]}"


def test_those_of_the_vae_are_tried_in_the_same_way(vendor):
    kernels = replace(vae.TORCH, name="another", prepare=vae.merged_weight, enlarge=vae.enlarge_merged)
    vendor(kernels)
    assert bind_vae_kernels("triton", "cpu") == (kernels, None)
    assert bind_vae_kernels("off", "cpu") == (vae.TORCH, None)


def activate_without_bias(x, bias, gamma, out):
    vae.activate(x, None, gamma, out)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("activate", activate_without_bias),
        ("push", lambda x, bias, gamma, planes: vae.push(x, bias, gamma, planes.clone())),
        ("add", lambda h, bias, x: h + x),
        ("enlarge", lambda frames, weight, bias: vae.enlarge(frames, weight.flip(-1), bias)),
    ],
)
def test_one_of_the_vae_that_is_wrong_is_a_reason(vendor, name, wrong):
    vendor(replace(vae.TORCH, **{name: wrong}))
    bound, problem = bind_vae_kernels("triton", "cpu")
    assert bound is vae.TORCH
    assert problem.startswith(f"{name} differs from PyTorch's by ")
