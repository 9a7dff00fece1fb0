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
    assert seen["see_one_at_a_time"]["moves"] == ["high device", "high host", "low device", "low host", "high device"]
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


@pytest.mark.parametrize(("name", "num_buffers"), [("see_a_switch", 0), ("see_streaming", 2)])
def test_what_moves_is_counted_and_given_back(seen: dict, name: str, num_buffers: int) -> None:
    scene = seen[name]
    assert scene["counted"], "its size is what stays on the device"
    assert scene["buffers are asked for"] == num_buffers
    assert scene["pinned"], "the host page-locks all copies, and counts them"
    assert scene["in the switch"] == {"high": True, "low": True}
    assert scene["broken off"] == {"high": True, "low": False}, "what the host has not listed it could not evict"
    assert scene["back"] and scene["switched"]
    listed, on_device, _ = scene["evicted"]
    assert listed == [] and on_device == {"high": False, "low": False}
    assert scene["again"]


@pytest.mark.parametrize("name", ["see_a_switch", "see_streaming"])
def test_copies_stay_on_the_host_while_it_has_room(seen: dict, name: str) -> None:
    scene = seen[name]
    assert (len(scene["reads"]) == scene["evicted"][2]) is (seen["evicted to"] == "host")
    assert scene["without RAM"] == ["file", True], "one expert's copy is given back, page-locks and all"


def test_unloading_frees_the_ram_of_a_cpu(seen: dict) -> None:
    assert seen["see_on_the_cpu"] == {"loaded": ["vae device"], "unloaded": ["vae file"]}


def test_handles_are_models_to_the_ram_cache(seen: dict) -> None:
    assert seen["see_ram_cache"] == {"is a model": True, "is dynamic": False}
