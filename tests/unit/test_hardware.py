"""The machine's description: true of this machine, inventable for tests."""

import importlib.metadata
import tempfile
from pathlib import Path

import pytest
import torch

from wan_core import hardware as module
from wan_core.errors import UnsupportedError
from wan_core.hardware import Hardware


def test_cpu_is_described_with_its_host():
    found = Hardware.detect("cpu")
    assert (found.device, found.capability, found.is_cuda, found.has_bfloat16) == ("cpu", None, False, False)
    assert 0 < found.free_memory <= found.total_memory == found.host_memory
    assert found.torch_version == torch.__version__
    assert found.name
    assert found.rate("float32") > 0
    assert found.rate("bfloat16") is None


def test_free_memory_may_be_told():
    assert Hardware.detect("cpu", free_memory=123).free_memory == 123


@pytest.mark.parametrize("device", ["cuda:99", "mps", "gpu", ""])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(device):
    with pytest.raises(UnsupportedError, match="expected one that this machine has: cpu"):
        Hardware.detect(device)


def test_the_first_nvidia_card_is_preferred(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert module._existing_device(None) == "cuda:0"
    assert module._existing_device("cuda") == "cuda:0"
    assert module._existing_device("cuda:1") == "cuda:1"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert module._existing_device(None) == "cpu"


def test_descriptions_are_hashable_values(machine):
    assert hash(machine("h200")) == hash(machine("h200"))
    assert machine("h200") != machine("h200", free_gib=20)


def test_bfloat16_is_native_from_ampere_on(machine):
    verdicts = {name: machine(name).has_bfloat16 for name in ("cpu", "2080ti", "a100", "h200")}
    assert verdicts == {"cpu": False, "2080ti": False, "a100": True, "h200": True}


def test_libraries_are_looked_up_without_importing_them(monkeypatch, machine):
    def version(name: str) -> str:
        if name == "triton":
            return "3.6.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert module._installed_libraries.__wrapped__() == (("triton", "3.6.0"),)
    assert machine("h200", libraries=(("triton", "3.6.0"),)).library("triton") == "3.6.0"
    assert machine("h200").library("triton") is None


@pytest.mark.gpu
def test_gpu_is_described_and_measured():
    found = Hardware.detect("cuda:0")
    assert found.is_cuda
    assert found.capability == torch.cuda.get_device_capability(0)
    assert 0 < found.free_memory <= found.total_memory
    assert found.rate("float32") > 1


def test_environment_tells_what_a_report_needs(machine):
    told = machine("h200", libraries=(("triton", "3.6.0"),)).environment()
    assert (told["device"], told["torch"], told["CUDA"], told["triton"]) == ("NVIDIA H200", "2.13.0", "13.0", "3.6.0")
    assert (machine("cpu").environment()["CUDA"], machine("cpu").environment()["cuDNN"]) == ("none", "none")


@pytest.mark.parametrize(
    ("platform", "given", "expected"),
    [
        ("linux", {}, "/home/me/.cache/wan-velocity"),
        ("linux", {"XDG_CACHE_HOME": "/data/cache"}, "/data/cache/wan-velocity"),
        ("linux", {"XDG_CACHE_HOME": "here"}, "/home/me/.cache/wan-velocity"),
        ("linux", {"XDG_CACHE_HOME": "/data", "WAN_VELOCITY_CACHE": "/mine"}, "/mine"),
        ("linux", {"LOCALAPPDATA": "/local"}, "/home/me/.cache/wan-velocity"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/wan-velocity"),
        ("win32", {}, "/home/me/AppData/Local/wan-velocity"),
    ],
)
def test_the_cache_is_where_the_user_expects_it(monkeypatch, platform, given, expected):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "WAN_VELOCITY_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module.sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    assert module.cache_folder() == Path(expected)


def test_a_user_without_a_home_has_a_cache_too(monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("WAN_VELOCITY_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert module.cache_folder() == Path(tempfile.gettempdir()) / "wan-velocity"


def test_a_look_at_a_device_that_is_at_work_measures_nothing() -> None:
    assert Hardware.detect("cpu", measure=False).tflops == ()
