"""Unloading for a measurement: asked for again while a host sleeps on it, waited for, and given up."""

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from benchmarks import comfy_server
from benchmarks.comfy_server import GIB, Memory, Server, memory, unload_models


class Host(HTTPServer):
    """Answers as ComfyUI does; what it holds on a GPU goes when it has been asked `heeds` times."""

    def __init__(self, heeds: int) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.heeds = heeds
        self.asked: list[object] = []


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        held = 0 if len(self.server.asked) >= self.server.heeds else 5 * GIB
        device = {"type": "cuda", "torch_vram_total": 6 * GIB, "torch_vram_free": 6 * GIB - held}
        self._answer(json.dumps({"devices": [device]}).encode())

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(b"")

    def log_message(self, *words: object) -> None: ...

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(params=[2])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with Host(request.param) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def server(host: Host) -> Server:
    return Server(address=f"127.0.0.1:{host.server_port}", pid=os.getpid())


def is_gone(held: Memory) -> bool:
    return held.device < 1


def test_it_is_asked_for_again_until_it_is_done(host):
    assert memory(server(host)).device == 5
    seconds, held = unload_models(server(host), cache=True, is_done=is_gone)
    assert host.asked == 2 * [{"unload_models": True, "free_memory": True}]
    assert 1 < seconds < 3 and held.device == 0 and held.host > 0.01


@pytest.mark.parametrize("host", [1 << 30], indirect=True)
def test_a_host_that_never_does_it_is_given_up(host, monkeypatch):
    monkeypatch.setattr(comfy_server, "UNLOAD_SECONDS", 0.2)
    seconds, held = unload_models(server(host), cache=False, is_done=is_gone)
    assert seconds is None and held.device == 5
    assert host.asked == [{"unload_models": True, "free_memory": False}]
