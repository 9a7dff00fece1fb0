"""Our weights under the host's memory management: counted, loaded, evicted and forgotten as its own are.

The scenes are played by `probe_patcher.py` in ComfyUI's Python, in each of the host's VRAM states.
"""

import pytest

GB = 10**9
EXPERTS = [["high", 28 * GB, 28 * GB], ["low", 28 * GB, 28 * GB]]
STATES = ("NORMAL_VRAM", "LOW_VRAM", "NO_VRAM", "HIGH_VRAM")
GONE = {"listed": 0, "on device": 0, "copies": 0, "read": []}
BOTH = ["high", "low"]


@pytest.fixture(scope="module")
def scenes(probed: dict[str, dict]) -> dict[str, dict]:
    return probed["patcher"]


@pytest.fixture(params=STATES)
def seen(request: pytest.FixtureRequest, scenes: dict[str, dict]) -> dict:
    return scenes[request.param]


def test_both_experts_load_once_and_are_counted(seen: dict) -> None:
    scene = seen["see_resident"]
    assert sorted(scene["first"]) == ["high device", "low device"]
    assert scene["counted"] == EXPERTS
    assert {what for what, _, _ in scene["said"]} == {"high noise expert", "low noise expert"}
    assert scene["again"] == [], "a switch between resident experts moves nothing"
    assert scene["available"] == 80 * GB, "what is ours counts as free"


@pytest.mark.parametrize("way", ["evicted", "unloaded"])
def test_the_host_evicts_and_loads_again(seen: dict, way: str) -> None:
    scene = seen["see_resident"]
    assert sorted(scene[way]) == ["high file", "low file"], "nothing is copied to the host"
    assert scene[f"left when {way}"] == []
    assert sorted(scene[f"back when {way}"]) == ["high device", "low device"]


def test_a_dropped_handle_leaves_nothing_in_the_hosts_list(seen: dict) -> None:
    assert seen["see_resident"]["after the handle died"] == 0


def test_one_expert_at_a_time(seen: dict) -> None:
    scene = seen["see_one_at_a_time"]
    assert scene["moves"] == ["high device", "high host", "low device", "low host", "high device"]
    assert scene["counted"] == EXPERTS[:1]
    assert scene["evicted"] == ["high host"] and scene["back"] == ["high device"]
    assert sorted(scene["unloaded"]) == ["high file", "low file"], "the one that waited goes with the listed one"
    assert scene["left"] == []


def test_others_make_room_for_us_and_we_for_others(seen: dict) -> None:
    scene = seen["see_others_evicted"]
    assert scene["moves"][:2] == ["text device", "text file"]
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
    assert scene["again"]


@pytest.mark.parametrize("name", ["resident", "turns", "streaming"])
def test_same_bits_after_every_eviction(seen: dict, name: str) -> None:
    first, *others = seen[f"see_left_by_{name}"]["latents"]
    assert len(others) == 6 and all(latent == first for latent in others)
    assert first[0] != first[1] and 0.0 not in first


def test_what_stays_on_the_card_is_read_again_and_never_copied(seen: dict) -> None:
    scene = seen["see_left_by_resident"]
    assert scene["new"]["read"] == BOTH and scene["new"]["copies"] == 0
    assert scene["evicted"] == GONE
    for way in ("evicted again", "unloaded", "unloaded again", "without RAM", "without RAM again"):
        assert scene[way] == GONE | {"read": BOTH}, way


@pytest.mark.parametrize("name", ["turns", "streaming"])
def test_copies_outlive_a_graphs_evictions_and_no_unloading(seen: dict, name: str) -> None:
    scene = seen[f"see_left_by_{name}"]
    assert scene["new"]["read"] == BOTH
    kept = GONE | {"copies": 1}
    assert scene["evicted"] == scene["evicted again"] == kept, "another model of the same graph needs the card, no more"
    assert scene["unloaded"] == GONE, "POST /free gives back what is page-locked as well, of both experts"
    assert scene["unloaded again"] == GONE | {"read": BOTH}
    for way in ("without RAM", "without RAM again"):
        assert scene[way] == GONE | {"read": BOTH}, "where there is no room for copies, none are made on the way out"


def test_copies_leave_the_memory_that_the_hosts_cache_wants(seen: dict) -> None:
    assert seen["see_ram_kept_free"] == {"a little": 1, "all": 0}


def test_unloading_frees_the_ram_of_a_cpu(seen: dict) -> None:
    assert seen["see_on_the_cpu"] == {"loaded": ["vae device"], "unloaded": ["vae file"]}


def test_handles_are_models_to_the_ram_cache(seen: dict) -> None:
    assert seen["see_ram_cache"] == {"is a model": True, "is dynamic": False}
