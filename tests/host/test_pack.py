"""The pack as ComfyUI sees it: it loads without a word, and every node is there with its contract."""

from tests.host.client import Client
from tests.host.server import PACK_FOLDER, ComfyServer

NODES = {
    "WanVelocityLoadExperts", "WanVelocityProfile", "WanVelocityLoadTextEncoder", "WanVelocityEncodeText",
    "WanVelocityEmptyLatent", "WanVelocitySampler", "WanVelocityLoadVAE", "WanVelocityDecode", "WanVelocityEncode",
    "WanVelocityPlan",
}  # fmt: skip


def test_loads_without_a_warning(server: ComfyServer) -> None:
    log = server.log
    assert PACK_FOLDER in log, "the pack was not tried"
    ours = [line for line in log.splitlines() if PACK_FOLDER in line or "wan_core" in line.lower()]
    assert not [line for line in ours if "WARNING" in line or "ERROR" in line or "FAILED" in line], ours


def test_every_node_is_listed(client: Client) -> None:
    info = client.get("/object_info")
    listed = {name for name in info if name.startswith("WanVelocity")}
    assert listed == NODES
    assert {info[name]["category"] for name in NODES} == {"Wan Velocity"}
    assert all(info[name]["description"] and info[name]["search_aliases"] for name in NODES)
