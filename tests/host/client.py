"""The little of ComfyUI's HTTP and websocket API that the host suite needs."""

import json
import struct
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import websocket

Prompt = dict[str, dict[str, Any]]
RUN_SECONDS = 120


class RejectedError(Exception):
    """The host refused a graph before running it; the text holds each node's message."""


# What the host calls a line of text for a node, among its binary messages.
_TEXT = 3


@dataclass(slots=True, kw_only=True)
class Run:
    """What happened to one queued graph: its events in order, previews counted, texts and outputs by node id."""

    prompt_id: str
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    previews: int = 0
    said: list[tuple[str, str]] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """The last word of the host: "execution_success", "execution_error" or "execution_interrupted"."""
        return self.events[-1][0]

    @property
    def error(self) -> str | None:
        """The message that the user sees, where the run failed."""
        return self.events[-1][1]["exception_message"].strip() if self.status == "execution_error" else None

    def hear(self, message: bytes) -> None:
        """A binary message: its kind, and for a text the length of the node's id, the id, the words."""
        (kind,) = struct.unpack_from(">I", message)
        if kind != _TEXT:
            self.previews += 1
            return
        (length,) = struct.unpack_from(">I", message, 4)
        self.said.append((message[8 : 8 + length].decode(), message[8 + length :].decode()))

    def named(self, kind: str) -> Iterator[dict[str, Any]]:
        return (data for name, data in self.events if name == kind)

    def text(self, node_id: str) -> str:
        return self.outputs[node_id]["text"][0]


class Client:
    """One connected user of the server at `address` (host:port)."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._id = uuid.uuid4().hex
        self._socket: websocket.WebSocket | None = None

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self._address}{path}", timeout=30) as answer:
            return json.load(answer)

    def page(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self._address}{path}", timeout=30) as answer:
            return answer.read().decode()

    def post(self, path: str, body: object) -> Any:
        request = urllib.request.Request(
            f"http://{self._address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            raw = answer.read()
        return json.loads(raw) if raw else None

    def queue(self, prompt: Prompt) -> str:
        """Queue a graph in API format and return its id; raises `RejectedError` where validation refuses any node."""
        self._connect()
        try:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": self._id})
        except urllib.error.HTTPError as error:
            answer = json.load(error)
        # A graph with several ends is run as far as it is valid, and what is refused stands beside its id.
        details = [
            f"{item['message']}: {item['details']}"
            for node in answer.get("node_errors", {}).values()
            for item in node["errors"]
        ]
        if details or "prompt_id" not in answer:
            raise RejectedError("\n".join(details) or str(answer))
        return answer["prompt_id"]

    def run(self, prompt: Prompt, on_event: Callable[[str, dict[str, Any]], None] | None = None) -> Run:
        """Queue a graph and wait until it has ended, however it ended."""
        run = Run(prompt_id=self.queue(prompt))
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            message = self._connect().recv()
            if isinstance(message, bytes):
                run.hear(message)
                continue
            event = json.loads(message)
            kind, data = event["type"], event["data"]
            # Our own events name a node; they reach nobody but the client whose job runs.
            if not kind.startswith("wan_velocity.") and data.get("prompt_id") != run.prompt_id:
                continue
            run.events.append((kind, data))
            if on_event is not None:
                on_event(kind, data)
            if kind in ("execution_success", "execution_error", "execution_interrupted"):
                run.outputs = self._outputs(run.prompt_id)
                return run
        raise TimeoutError(f"the graph did not end within {RUN_SECONDS} s; last events: {run.events[-3:]}")

    def free(self, graph: Prompt, *, cache: bool = False) -> None:
        """Have the host unload its models, and forget what graphs gave (cache); it is done before the next graph runs.

        graph: the last one, which runs again, from the host's cache. The host does this between two graphs, and if it
        is told while it tidies up after one, it sleeps on it until the next.
        """
        self.post("/free", {"unload_models": True, "free_memory": cache})
        assert self.run(graph).status == "execution_success"

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def listen(self, seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
        """Events that have come, or come within some seconds, whoever they are about."""
        connection = self._connect()
        connection.settimeout(seconds)
        try:
            while True:
                message = connection.recv()
                if isinstance(message, str):
                    event = json.loads(message)
                    yield event["type"], event["data"]
        except websocket.WebSocketTimeoutException:
            return
        finally:
            connection.settimeout(RUN_SECONDS)

    def _connect(self) -> websocket.WebSocket:
        if self._socket is None:
            self._socket = websocket.create_connection(
                f"ws://{self._address}/ws?clientId={self._id}", timeout=RUN_SECONDS
            )
        return self._socket

    def _outputs(self, prompt_id: str) -> dict[str, Any]:
        # The event is sent a moment before the history has the entry.
        for _ in range(40):
            if entry := self.get(f"/history/{prompt_id}").get(prompt_id):
                return entry["outputs"]
            time.sleep(0.05)
        raise TimeoutError(f"no history of {prompt_id}")


def unreachable(client: Client) -> bool:
    """Whether the server does not answer yet."""
    try:
        client.get("/system_stats")
    except OSError:
        return True
    return False
