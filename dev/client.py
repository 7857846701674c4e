"""A small client of ComfyUI's HTTP and websocket interface, for the tests and the demo."""

from __future__ import annotations

import io
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import websocket
from PIL import Image


class PromptRefused(Exception):
    """The server found a fault before running; `node_errors` maps node ids to what it says of them."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.node_errors: dict[str, Any] = answer.get("node_errors", {})
        details = [
            f"{error['message']}: {error['details']}" for node in self.node_errors.values() for error in node["errors"]
        ]
        super().__init__("; ".join(details) or str(answer.get("error")))


class ExecutionFailed(Exception):
    """A node raised while running; `node_id`, `node_type` and the node's own sentence as `str(error)`."""

    def __init__(self, event: dict[str, Any]) -> None:
        self.node_id: str = event["node_id"]
        self.node_type: str = event["node_type"]
        self.exception_type: str = event["exception_type"]
        self.traceback: str = "".join(event.get("traceback", []))
        super().__init__(event["exception_message"].strip())


class ExecutionInterrupted(Exception):
    """The run was stopped by `Client.interrupt`."""


@dataclass
class Run:
    """What one finished prompt left behind: every websocket event in order and the output nodes' results."""

    prompt_id: str
    events: list[tuple[str, dict[str, Any]]]
    outputs: dict[str, dict[str, Any]]
    refused: dict[str, Any] = field(default_factory=dict)

    @property
    def executed_nodes(self) -> list[str]:
        """Ids of the nodes that really ran (the others came from the cache), in order."""
        return [data["node"] for kind, data in self.events if kind == "executing" and data["node"] is not None]

    def text(self, node_id: str) -> str:
        """The text that a text preview node showed."""
        shown = self.outputs[node_id]["text"]
        return shown if isinstance(shown, str) else "".join(shown)


class Client:
    """One websocket connection to a running server at `address` ("127.0.0.1:8188")."""

    def __init__(self, address: str, timeout: float = 300.0) -> None:
        self.address = address
        self.identity = uuid.uuid4().hex
        self.socket = websocket.create_connection(f"ws://{address}/ws?clientId={self.identity}", timeout=timeout)
        self.timeout = timeout

    def close(self) -> None:
        self.socket.close()

    def _request(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> bytes:
        request = urllib.request.Request(f"http://{self.address}{path}", data=body)
        if body is not None:
            request.add_header("Content-Type", content_type)
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        """Return the JSON that `path` answers."""
        return json.loads(self._request(path))

    def post(self, path: str, value: Any = None) -> Any:
        """Send `value` as JSON and return the JSON answer (None when it is empty)."""
        answer = self._request(path, json.dumps({} if value is None else value).encode())
        return json.loads(answer) if answer else None

    def queue(self, prompt: dict[str, Any], workflow: dict[str, Any] | None = None) -> dict[str, Any]:
        """Queue a graph in API form and return the server's answer; raises PromptRefused.

        `workflow` is the same graph in UI format, for saved pictures to carry.
        """
        extra = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}
        try:
            return self.post("/prompt", {"prompt": prompt, "client_id": self.identity, "extra_data": extra})
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read())
            raise PromptRefused(answer) from None

    def run(
        self,
        prompt: dict[str, Any],
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
        workflow: dict[str, Any] | None = None,
    ) -> Run:
        """Queue a graph and wait for its end; raises PromptRefused, ExecutionFailed or ExecutionInterrupted."""
        answer = self.queue(prompt, workflow)
        prompt_id = answer["prompt_id"]
        events: list[tuple[str, dict[str, Any]]] = []
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            message = self.socket.recv()
            if not isinstance(message, str):  # preview pictures arrive as binary messages
                continue
            event = json.loads(message)
            kind, data = event["type"], event["data"]
            if data.get("prompt_id", prompt_id) != prompt_id:
                continue
            events.append((kind, data))
            if on_event is not None:
                on_event(kind, data)
            if kind == "execution_error":
                raise ExecutionFailed(data)
            if kind == "execution_interrupted":
                raise ExecutionInterrupted(prompt_id)
            if kind == "executing" and data["node"] is None:
                outputs = self.get(f"/history/{prompt_id}")[prompt_id]["outputs"]
                return Run(prompt_id, events, outputs, answer.get("node_errors", {}))
        raise TimeoutError(f"The graph {prompt_id} did not finish within {self.timeout:.0f} s.")

    def interrupt(self) -> None:
        self.post("/interrupt")

    def upload(self, name: str, image: bytes) -> None:
        """Put a picture into the server's input folder under `name`."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        tail = f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n--{boundary}--\r\n'
        body = head.encode() + image + tail.encode()
        self._request("/upload/image", body, f"multipart/form-data; boundary={boundary}")

    def file(self, reference: dict[str, str]) -> bytes:
        """Return the bytes of a file that an output node reported."""
        return self._request("/view?" + urllib.parse.urlencode(reference))

    def pixels(self, run: Run, node_id: str) -> np.ndarray:
        """Return the pictures of an output node as (B, H, W, 3) uint8."""
        images = [self.file(reference) for reference in run.outputs[node_id]["images"]]
        return np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in images])
