"""The machine in a result, and what it can do at most."""

import pytest

from wan_core.bench.ceilings import FLOAT8, measure_ceilings
from wan_core.bench.ceilings import _no_float8 as why_no_float8
from wan_core.bench.machine import describe, driver_version
from wan_core.hardware import Hardware


def test_a_description_has_the_hardware_and_the_versions(machine):
    found = describe(machine("cpu"))
    assert found["hardware"]["name"] == "a CPU"
    assert found["environment"]["torch"] == "2.13.0"
    assert "driver" not in found["environment"]
    assert "driver" in describe(machine("h200"))["environment"]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Mon Sep  1 12:00:00 UTC 2026", "580.159.04"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57  Release Build", "575.57"),
        ("nothing", "unknown"),
    ],
)
def test_driver(tmp_path, text, version):
    (tmp_path / "version").write_text(text + "\n", encoding="utf-8")
    assert driver_version(tmp_path / "version") == version
    assert driver_version(tmp_path / "none") == "unknown"


def test_ceilings_of_this_cpu():
    ceilings = measure_ceilings(Hardware.detect("cpu"))
    assert ceilings.copy > 1e8
    assert list(ceilings.products) == ["float32"]
    assert ceilings.products["float32"] > 1e9
    assert ceilings.missing == {FLOAT8: "needs an NVIDIA GPU"}
    assert "no float8_e4m3fn: needs an NVIDIA GPU" in str(ceilings)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("cpu", "needs an NVIDIA GPU"), ("a100", "needs compute capability 8.9, this is 8.0"), ("h200", None)],
)
def test_float8_products_need_hardware_for_them(machine, name, reason):
    assert why_no_float8(machine(name)) == reason
