"""The parts of AWX's REST API that towerws uses, on a loopback port, with faults that a test can switch on.

Source: AWX 9.3.0 and 24.6: awx/api/authentication.py, awx/api/views (detail views), awx/main/middleware.py.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet import ssl
from twisted.protocols.policies import WrappingFactory
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from towerws.auth.base import parse_cookies

SESSION_COOKIE = "sessionid"


@dataclass(frozen=True)
class User:
    """A row of `/api/v2/users/`."""

    id: int
    is_superuser: bool = False
    is_system_auditor: bool = False

    def as_json(self) -> dict[str, object]:
        """The user as `/api/v2/me/` shows it."""
        flags = {"is_superuser": self.is_superuser, "is_system_auditor": self.is_system_auditor}
        return {"id": self.id, "type": "user", "username": f"user{self.id}"} | flags


@dataclass
class Seen:
    """A request as it arrived. Header names are in lower case."""

    path: str
    headers: dict[str, str]


@dataclass
class FakeTower:
    """The API. Its tables and `fault` may be changed at any time.

    `fault` is "" for none, "302", "500" or any other status. Other faults: "slow" (`delay_s` before the answer), "hang" (no answer),
    "stall" (an answer that stops half-way), "malformed" (200 without JSON) and "garbage" (not HTTP).
    Or "huge" (2 MiB), "huge json" (the same with JSON's Content-Type), "cut" (closed half-way) and "close" (closed without an answer).
    """

    sessions: dict[str, User] = field(default_factory=dict)
    tokens: dict[str, User] = field(default_factory=dict)
    old_tokens: dict[str, User] = field(default_factory=dict)
    passwords: dict[str, User] = field(default_factory=dict)
    visible: dict[str, set[int]] = field(default_factory=dict)
    """For each path of an object, the users who may see it. An object that is not listed does not exist."""
    fault: str = ""
    delay_s: float = 0.2
    session_cookie: str = SESSION_COOKIE
    seen: list[Seen] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    url: str = ""
    _port: Any = None
    _factory: Any = None

    def start(self, certificate: tuple[Path, Path] | None = None, port: int = 0) -> FakeTower:
        """Listen on 127.0.0.1, with TLS if there is a certificate and a key."""
        reactor: Any = _reactor
        self._factory = _Connections(_Site(_Api(self)))
        if certificate is None:
            self._port = reactor.listenTCP(port, self._factory, interface="127.0.0.1")
        else:
            context = ssl.DefaultOpenSSLContextFactory(str(certificate[1]), str(certificate[0]))
            self._port = reactor.listenSSL(port, self._factory, context, interface="127.0.0.1")
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self._port.getHost().port}"
        return self

    async def stop(self) -> None:
        """Stop listening, so that connections are refused, and drop all clients."""
        port, self._port = self._port, None
        if port is not None:
            await port.stopListening()
        self.drop()

    def drop(self) -> None:
        """Abort all connections."""
        for connection in self.connections:
            connection.abortConnection()

    @property
    def connections(self) -> list[Any]:
        """The open connections."""
        return list(self._factory.protocols)

    @property
    def connected(self) -> int:
        """How many connections were ever opened."""
        return int(self._factory.connected)

    def paths(self) -> list[str]:
        """The paths that were requested since the last call."""
        seen, self.seen = self.seen, []
        return [request.path for request in seen]

    def user(self, headers: Mapping[str, str]) -> User | None:
        """The user of a request, in the order of AWX's authentication classes."""
        scheme, _, value = headers.get("authorization", "").partition(" ")
        cookies = parse_cookies(headers.get("cookie", ""))
        if scheme == "Bearer":
            return self.tokens.get(value)
        if scheme == "Token":
            return self.old_tokens.get(value)
        if scheme == "Basic":
            return self.passwords.get(base64.b64decode(value).decode())
        return self.sessions.get(cookies.get(self.session_cookie, ""))

    def answer(self, path: str, headers: Mapping[str, str]) -> tuple[int, object]:
        """The status and the body."""
        user = self.user(headers)
        if user is None:
            return 401, {"detail": "Authentication credentials were not provided."}
        if path == "/api/v2/me/":
            return 200, {"count": 1, "next": None, "previous": None, "results": [user.as_json()]}
        if path not in self.visible:
            return 404, {"detail": "Not found."}
        if user.id not in self.visible[path]:
            return 403, {"detail": "You do not have permission to perform this action."}
        return 200, {"id": path.split("/")[-2], "extra_vars": "x" * 5000}


class _Site(Site):
    noisy = False

    def log(self, request: Any) -> None:
        """Write no access log."""


class _Connections(WrappingFactory):
    """Knows the open connections, and counts all of them."""

    noisy = False
    connected = 0

    def registerProtocol(self, p: Any) -> None:
        self.connected += 1
        super().registerProtocol(p)


class _Api(Resource):
    isLeaf = True

    def __init__(self, tower: FakeTower) -> None:
        super().__init__()
        self._tower = tower

    def render_GET(self, request: Any) -> Any:
        tower = self._tower
        headers = {
            name.decode().lower(): b", ".join(values).decode("latin-1") for name, values in request.requestHeaders.getAllRawHeaders()
        }
        path = request.uri.decode()
        tower.seen.append(Seen(path, headers))
        tower.at_once += 1
        tower.most_at_once = max(tower.most_at_once, tower.at_once)
        request.notifyFinish().addBoth(self._over)
        if tower.fault == "slow":
            reactor: Any = _reactor
            timer = reactor.callLater(tower.delay_s, self._write, request, path, headers)
            request.notifyFinish().addErrback(lambda _: timer.active() and timer.cancel())
        elif not self._fail(request):
            self._write(request, path, headers)
        return NOT_DONE_YET

    def _over(self, _: object) -> None:
        self._tower.at_once -= 1

    def _fail(self, request: Request) -> bool:
        fault = self._tower.fault
        connection: Any = request.transport
        if fault == "close":
            connection.loseConnection()
        elif fault in {"stall", "cut"}:
            request.setHeader("Content-Length", "100")
            request.write(b'{"count": 1')
            if fault == "cut":
                connection.loseConnection()
        elif fault == "garbage":
            connection.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
            connection.loseConnection()
        elif fault == "malformed":
            self._finish(request, 200, b"<html>Welcome</html>")
        elif fault in {"huge", "huge json"}:
            if fault == "huge json":
                request.setHeader("Content-Type", "Application/JSON; charset=utf-8")
            self._finish(request, 200, b" " * 2 * 1024**2)
        elif fault.isdigit():
            if fault.startswith("3"):
                request.setHeader("Location", "/migrations_notran/")
            self._finish(request, int(fault), b"<html>fault</html>")
        elif fault != "hang":
            return False
        return True

    def _write(self, request: Request, path: str, headers: Mapping[str, str]) -> None:
        status, body = self._tower.answer(path, headers)
        request.setHeader("Content-Type", "application/json")
        self._finish(request, status, json.dumps(body).encode())

    def _finish(self, request: Any, status: int, body: bytes) -> None:
        request.setResponseCode(status)
        request.setHeader("Content-Length", str(len(body)))
        request.write(body)
        request.finish()
