"""The nodes as saved workflows know them: ids, inputs, types, defaults, positions and outputs."""

from tests.host.client import Client
from tests.surface import surface


def test_nodes(client: Client) -> None:
    assert surface.check("nodes", surface.nodes(client.get("/object_info"))) == []
