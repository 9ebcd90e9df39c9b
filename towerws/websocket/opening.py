"""The opening handshake: what a connection is before it is open.

Autobahn's own is not safe where requests come from strangers (each point reproduced in the tests), so:
- the request's head is read, bounded and checked before Autobahn sees it, and nothing behind it is until the client is in;
- a success that comes after the connection was lost opens nothing;
- what refuses a client is a fixed text, never what it sent; Autobahn's own log lines, which repeat it, are dropped.
"""

from __future__ import annotations

from typing import Any, Protocol

from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.auth.base import Refused, Unavailable, takes_tokens
from towerws.core.addresses import UNIX, Proxies
from towerws.core.admission import CROWDED, Admission, Guest
from towerws.core.errors import HandshakeError
from towerws.core.handshake import END, Head, check_route, error_response, parse_head
from towerws.core.identity import Identity
from towerws.core.origins import Origins
from towerws.core.settings import AccessSettings, WebSocketSettings
from towerws.core.wire import SUBPROTOCOL
from towerws.websocket.desk import Desk

_REFUSALS = {400: "not a websocket's opening handshake", 500: "internal error", 505: "HTTP/1.1 is needed"}


class Silent:
    """Stands in for Autobahn's logger: it formats several debug lines for each write, and repeats what clients sent."""

    def _drop(self, *args: Any, **kwargs: Any) -> None:
        pass

    trace = debug = info = warn = error = failure = _drop


class Lobby(Protocol):
    """What a connection needs of its factory while it opens."""

    desk: Desk
    settings: WebSocketSettings
    connections: dict[Any, None]
    access: AccessSettings
    proxies: Proxies
    origins: Origins
    admission: Admission
    refused: dict[int, int]
    refused_for: dict[str, int]


class OpeningConnection(WebSocketServerProtocol):  # type: ignore[misc]
    """A client at the door. The open connection derives from it and says what `opened`, `octets` and `left` do."""

    log = Silent()
    _log = Logger()

    factory: Lobby
    closeHandshakeTimeoutCall: Any  # Autobahn's

    # the open connection's part

    def opened(self) -> None:
        """The client is in, and the 101 is written."""
        raise NotImplementedError

    def octets(self, data: bytes) -> None:
        """Octets from a client that is in, or on its way out."""
        raise NotImplementedError

    def left(self) -> None:
        """The connection is gone, or to be taken for gone. Called more than once."""
        raise NotImplementedError

    # Twisted calls these

    def connectionMade(self) -> None:
        """A client has connected; it is nobody yet."""
        self._head: bytes | None = b""
        self._early = b""
        self._request: Head | None = None
        self._asking: Deferred[Any] | None = None
        self._timer: Any = None
        self._denial: HandshakeError | None = None
        self._crowd: str | None = None
        self.identity: Identity | None = None
        self.address = self._peer_address()
        """Where the client is, as far as is known: in front of trusted proxies once the request's head is read."""
        self.factory.connections[self] = None
        admission = self.factory.admission
        self._guest: Guest = admission.arrive()
        super().connectionMade()
        if admission.overflowing:
            self._count_refusal(_crowded("connections"))
            self.dropConnection(abort=True)
        elif admission.full:
            # Told once it has said something: what was not read when the socket closes would make the answer a reset.
            self._crowd = "connections"
            self.arm(self.factory.settings.linger_s, self.transport.abortConnection)
        elif not self.factory.proxies.trust(self.address):
            self._crowd = admission.locate(self._guest, self.address)

    def dataReceived(self, data: bytes) -> None:
        """Octets from the client: to its end the request's head, which is ours; then Autobahn's."""
        if self._crowd is not None:
            reason, self._crowd = self._crowd, None
            self._refuse(_crowded(reason))
        elif self._head is not None:
            self._read_head(self._head + data)
        elif self.state == self.STATE_CONNECTING:
            self._keep_early(data)
        elif self.state != self.STATE_CLOSED:  # Autobahn would keep what nobody reads any more
            self.octets(data)

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone, however it went."""
        if self in self.factory.connections:
            del self.factory.connections[self]
            self.factory.admission.leave(self._guest)
        self.disarm()
        asking, self._asking = self._asking, None
        if self.closeHandshakeTimeoutCall is not None:
            self.closeHandshakeTimeoutCall.cancel()  # Autobahn lets it run, and holds the connection until then
            self.closeHandshakeTimeoutCall = None
        super().connectionLost(reason)
        if asking is not None:
            asking.cancel()
        self.left()

    # the request

    def _read_head(self, data: bytes) -> None:
        settings = self.factory.settings
        end = data.find(END)
        if (len(data) if end < 0 else end) > settings.head_octets:
            self._refuse(HandshakeError(431, f"the request's head is longer than {settings.head_octets} octets"))
            return
        if end < 0:
            self._head = data
            return
        self._head = None
        block = data[: end + len(END)]
        try:
            self._request = parse_head(block, settings.head_count)
            check_route(self._request)
            self._locate(self._request)
        except HandshakeError as error:
            self._refuse(error)
            return
        self._keep_early(data[end + len(END) :])
        self._dataReceived(block)

    def _keep_early(self, data: bytes) -> None:
        self._early += data
        if len(self._early) > self.factory.settings.head_octets:
            self._early = b""
            self.dropConnection(abort=True)

    def _refuse(self, error: HandshakeError) -> None:
        self._head, self._early = None, b""
        if self.state != self.STATE_CONNECTING:
            return
        self._count_refusal(error)
        self.transport.write(error_response(error))
        self.dropConnection(abort=False)

    def _count_refusal(self, error: HandshakeError) -> None:
        factory = self.factory
        factory.admission.dismiss(self._guest)
        factory.refused[error.status] = factory.refused.get(error.status, 0) + 1
        factory.refused_for[error.reason] = factory.refused_for.get(error.reason, 0) + 1

    def _locate(self, head: Head) -> None:
        """Find out for whom a trusted proxy speaks; `HandshakeError` when there are too many of those."""
        proxies = self.factory.proxies
        if proxies.trust(self.address):
            self.address = proxies.client(self.address, head.headers.get("x-forwarded-for"))
            if (reason := self.factory.admission.locate(self._guest, self.address)) is not None:
                raise _crowded(reason)

    # Autobahn calls these

    def onConnect(self, request: ConnectionRequest) -> Deferred[str | None]:
        """Who is it? Fires with the subprotocol to speak; Autobahn then answers 101."""
        assert self._request is not None
        head, self._request = self._request, None
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in request.protocols else None
        began = self.factory.desk.reactor.seconds()

        def accepted(identity: Identity | None) -> str | None:
            self._asking = None
            if identity is None and takes_tokens(self.factory.desk.auth):
                return subprotocol  # nobody yet: its first message has to say who it is
            if identity is None:
                raise self._deny(HandshakeError(403, "no credential was brought", "no_credential"))
            if self.factory.desk.guard.was_revoked(identity, began):
                raise self._deny(HandshakeError(403, "the credential was refused", "revoked"))
            self._admit(identity, head)
            self.identity = identity
            return subprotocol

        def refused(failure: Failure) -> None:
            self._asking = None
            if failure.check(Refused):
                raise self._deny(HandshakeError(403, "the credential was refused", "credential"))
            if failure.check(Unavailable):
                raise self._deny(HandshakeError(503, "the credential can't be checked just now", "unavailable"))
            if self.state == self.STATE_CONNECTING:
                self._log.failure("authentication failed unexpectedly", failure)
            raise self._deny(HandshakeError(500, _REFUSALS[500], "error"))

        self._asking = maybeDeferred(self.factory.desk.auth.authenticate, head, self.address)
        return self._asking.addCallbacks(accepted, refused)

    def _admit(self, identity: Identity, head: Head) -> None:
        factory = self.factory
        if identity.ambient and factory.access.check_origin and not factory.origins.allow(head.headers.get("origin"), self._hosts(head)):
            raise self._deny(HandshakeError(403, "a page of this origin may not use what its browser knows", "origin"))
        if (reason := factory.admission.admit(self._guest, identity.user)) is not None:
            raise self._deny(_crowded(reason))

    def _hosts(self, head: Head) -> list[str]:
        """The hosts that the browser may have asked for. Of a chain of trusted proxies the first to be asked knows best."""
        forwarded = head.headers.get("x-forwarded-host") if self.factory.proxies.trust(self._peer_address()) else None
        return [head.headers["host"], *(forwarded.split(",") if forwarded else [])]

    def _deny(self, error: HandshakeError) -> ConnectionDeny:
        self._denial = error
        return ConnectionDeny(error.status, str(error))

    def succeedHandshake(self, res: Any) -> None:
        """Answer 101, unless the connection was lost while the credential was checked."""
        if self.state != self.STATE_CONNECTING:
            return
        try:
            super().succeedHandshake(res)
        except Exception:  # noqa: BLE001 - Autobahn would leave a connection half open whose `onOpen` failed
            self._log.failure("a connection could not be opened")
            self.left()
            self.dropConnection(abort=True)
            return
        early, self._early = self._early, b""
        if early:
            self.dataReceived(early)

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        """Refuse with a fixed text: Autobahn's own would repeat the request line, tokens in it and all."""
        known = code if code in _REFUSALS else 400
        self._refuse(self._denial or HandshakeError(known, _REFUSALS[known]))

    def onOpen(self) -> None:
        """The 101 is written."""
        self.opened()

    def dropConnection(self, abort: bool = False) -> None:
        """End the TCP connection; one that does not end by itself is aborted after the linger time."""
        super().dropConnection(abort)
        if not abort and self.transport is not None:
            self.arm(self.factory.settings.linger_s, self.transport.abortConnection)

    # for both parts

    def _peer_address(self) -> str:
        return getattr(self.transport.getPeer(), "host", UNIX)

    def arm(self, delay_s: float, call: Any) -> None:
        """Call this after a while; in place of what was armed before."""
        self.disarm()
        self._timer = self.factory.desk.reactor.callLater(delay_s, call)

    def disarm(self) -> None:
        """Call nothing."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


def _crowded(reason: str) -> HandshakeError:
    return HandshakeError(503, CROWDED[reason], reason)
