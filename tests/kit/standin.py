"""A stand-in for the daemon: `towerws.v1` as docs/protocol.md describes it, over the `websockets` library, controlled by a test."""

from __future__ import annotations

import http
import json
import queue
import threading
from collections.abc import Callable
from typing import Any, Self

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve
from websockets.typing import Subprotocol


class StandIn:
    """Listens on its own port until `stop`. `requests` has the clients' requests in order, with the connection's number."""

    def __init__(
        self, port: int = 0, *, log: str = "standin", refuse: int | None = None, why: str = "no", deny: tuple[str, ...] = ()
    ) -> None:
        self.requests: queue.Queue[dict[str, Any]] = queue.Queue()
        self.headers: list[Headers] = []
        self.closes: queue.Queue[int | None] = queue.Queue()
        """The codes of close frames that clients sent, None for a connection that ended without one."""
        self.history: list[tuple[str, bytes]] = []
        self.unavailable: set[str] = set()
        """Topics that can't be checked now."""
        self.answers_pings = True
        self.before_subscribed: Callable[[], None] | None = None
        """Called once, just before the next request is answered."""
        self._log = log
        self._refuse = refuse
        self._why = why
        self._deny = deny
        self._lock = threading.RLock()
        self._clients: dict[ServerConnection, list[str]] = {}
        self._server: Server = serve(
            self._handle,
            "127.0.0.1",
            port,
            subprotocols=[Subprotocol("towerws.v1")],
            process_request=self._opening,
        )
        self.port: int = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"ws://127.0.0.1:{self.port}/websocket/"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every connection and stop listening."""
        self._server.shutdown()
        self.drop()
        self._thread.join()

    def publish(self, topic: str, payload: bytes) -> None:
        """Put an event into history, and send it to all clients."""
        with self._lock:
            self.history.append((topic, payload))
            for client, topics in self._clients.items():
                if topic in topics:
                    self._send(client, self._frame(len(self.history) - 1))

    def say(self, frame: object) -> None:
        """Send a frame to all clients."""
        with self._lock:
            for client in self._clients:
                self._send(client, json.dumps(frame))

    def topics(self) -> list[str]:
        """The topics that clients have now."""
        with self._lock:
            return [topic for topics in self._clients.values() for topic in topics]

    def drop(self) -> None:
        """End every connection without a close frame."""
        with self._lock:
            for client in self._clients:
                client.socket.shutdown(2)

    def _position(self) -> str:
        return f"{len(self.history)}-{self._log}"

    def _frame(self, index: int) -> str:
        topic, payload = self.history[index]
        group, _, event = topic.partition(".")
        head = {"type": "event", "position": f"{index + 1}-{self._log}", "group": group, "event": event}
        return f'{json.dumps(head)[:-1]}, "payload": {payload.decode()}}}'

    def _send(self, client: ServerConnection, frame: str) -> None:
        try:
            client.send(frame)
        except ConnectionClosed:
            return  # its own thread notices

    def _opening(self, client: ServerConnection, request: Request) -> Response | None:
        self.headers.append(request.headers)
        if self._refuse is not None:
            return client.respond(http.HTTPStatus(self._refuse), f"{self._why}\n")
        return None

    def _handle(self, client: ServerConnection) -> None:
        with self._lock:
            self._clients[client] = []
            self._send(client, json.dumps({"type": "welcome", "user": "standin", "position": self._position(), "ping_s": 20}))
        try:
            for message in client:
                if "ping" not in (request := json.loads(message)):
                    self._subscribe(client, request)
                elif self.answers_pings:
                    with self._lock:
                        self._send(client, json.dumps({"type": "pong", "ping": request["ping"], "position": self._position()}))
        except ConnectionClosed:
            pass
        finally:
            self.closes.put(None if client.protocol.close_rcvd is None else client.protocol.close_rcvd.code)
            with self._lock:
                del self._clients[client]

    def _subscribe(self, client: ServerConnection, request: dict[str, Any]) -> None:
        hook, self.before_subscribed = self.before_subscribed, None
        if hook is not None:
            hook()
        asked = [f"{group}.{event}" for group, items in request["groups"].items() for event in items]
        since = request.get("since", "")
        known = since.endswith(f"-{self._log}")
        start = int(since.partition("-")[0]) if known else len(self.history)
        with self._lock:
            refused = {**dict.fromkeys(self._deny, "not yours"), **dict.fromkeys(self.unavailable, "unavailable")}
            topics = [topic for topic in asked if topic not in refused]
            added = set(topics) - set(self._clients[client])
            self._clients[client] = topics
            answer = {
                "type": "subscribed",
                "id": request.get("id"),
                "groups_current": topics,
                "groups_joined": list(added),
                "groups_left": [],
                "denied": [{"topic": topic, "reason": refused[topic]} for topic in asked if topic in refused],
                "position": since if known else self._position(),
                "recovered": known if since else None,
            }
            self.requests.put(request)  # before the answer, which a test may wait for
            self._send(client, json.dumps(answer))
            for index in range(start, len(self.history)):
                if self.history[index][0] in added:
                    self._send(client, self._frame(index))
