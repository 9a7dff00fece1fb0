"""Our weights under the host's memory management: counted, loaded, evicted and forgotten as its own are.

The scenes are played by `probe_patcher.py` in ComfyUI's Python, in each of the host's VRAM states.
"""

import json
import subprocess

import pytest

from tests.host.server import PACK_ROOT, ComfyInstall, environment

GB = 10**9
EXPERTS = [["high", 28 * GB, 28 * GB], ["low", 28 * GB, 28 * GB]]
# Where evicted weights go: with --highvram the host keeps nothing in RAM.
EVICTED_TO = {"NORMAL_VRAM": "host", "LOW_VRAM": "host", "NO_VRAM": "host", "HIGH_VRAM": "file"}


@pytest.fixture(scope="module")
def scenes(install: ComfyInstall) -> dict[str, dict]:
    command = [install.python, PACK_ROOT / "tests/host/probe_patcher.py", install.root, PACK_ROOT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=install.root)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(params=EVICTED_TO)
def seen(request: pytest.FixtureRequest, scenes: dict[str, dict]) -> dict:
    return scenes[request.param] | {"evicted to": EVICTED_TO[request.param]}


def test_both_experts_load_once_and_are_counted(seen: dict) -> None:
    scene = seen["see_resident"]
    assert sorted(scene["first"]) == ["high device", "low device"]
    assert scene["counted"] == EXPERTS
    assert {what for what, _, _ in scene["said"]} == {"high noise expert", "low noise expert"}
    assert scene["again"] == [], "a switch between resident experts moves nothing"
    assert scene["available"] == 80 * GB, "what is ours counts as free"


def test_the_host_evicts_and_loads_again(seen: dict) -> None:
    scene = seen["see_resident"]
    assert sorted(scene["evicted"]) == [f"{name} {seen['evicted to']}" for name in ("high", "low")]
    assert scene["left"] == []
    assert sorted(scene["back"]) == ["high device", "low device"]


def test_a_dropped_handle_leaves_nothing_in_the_hosts_list(seen: dict) -> None:
    assert seen["see_resident"]["after the handle died"] == 0


def test_one_expert_at_a_time(seen: dict) -> None:
    gone = seen["evicted to"]
    assert seen["see_one_at_a_time"]["moves"] == [
        "high device", f"high {gone}", "low device", f"low {gone}", "high device"
    ]  # fmt: skip
    assert seen["see_one_at_a_time"]["counted"] == EXPERTS[:1]


def test_others_make_room_for_us_and_we_for_others(seen: dict) -> None:
    scene = seen["see_others_evicted"]
    assert scene["moves"][:2] == ["text device", f"text {seen['evicted to']}"]
    # 20 GB of RAM cannot take an expert of 28, so it is read from its file again.
    assert scene["for another"] == ["high file"]
    assert scene["free"] >= 40 * GB


def test_an_interrupted_load_leaves_nothing_and_can_be_repeated(seen: dict) -> None:
    scene = seen["see_failed_load"]
    assert scene == {
        "raised": "InterruptProcessingException", "place": "file", "counted": [], "callback": False, "then": "device"
    }  # fmt: skip


def test_unloading_frees_the_ram_of_a_cpu(seen: dict) -> None:
    assert seen["see_on_the_cpu"] == {"loaded": ["vae device"], "unloaded": ["vae file"]}


def test_handles_are_models_to_the_ram_cache(seen: dict) -> None:
    assert seen["see_ram_cache"] == {"is a model": True, "is dynamic": False}
