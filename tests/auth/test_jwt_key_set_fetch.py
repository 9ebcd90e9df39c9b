from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet import reactor as _reactor
from twisted.internet import ssl
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.web._newclient import ResponseNeverReceived
from twisted.web.client import Agent
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from zope.interface import implementer

from tests.auth.jwt_kit import CANARY, NOW, head, jwk, jwks, make_method, sign
from tests.kit.rows import each_row
from tests.test_outgoing import certificate, run, until
from towerws.auth.base import Refused, Unavailable
from towerws.auth.jwt_key_set import MAX_BODY_BYTES, RETRY_S, FetchError, check_key_set_url, fetch, make_agent
from towerws.core.errors import ConfigError

reactor: Any = _reactor


class KeyServer(Resource):
    """Answers `GET /keys` as a test says, and counts requests."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.body = jwks()
        self.code = 200
        self.headers: dict[str, str] = {}
        self.answer: Callable[[Any], object] | None = None
        self.requests: list[Any] = []
        self.connections: set[Any] = set()
        self.port: Any = None
        self.scheme = "http"

    @property
    def url(self) -> str:
        """Return its URL."""
        return f"{self.scheme}://127.0.0.1:{self.port.getHost().port}/keys"

    def render_GET(self, request: Any) -> Any:
        """Answer one request."""
        self.requests.append(request)
        request.setResponseCode(self.code)
        for name, value in self.headers.items():
            request.setHeader(name, value)
        return self.body if self.answer is None else self.answer(request)


@asynccontextmanager
async def key_server(tls: tuple[Path, Path] | None = None) -> AsyncIterator[KeyServer]:
    """A key server on loopback. At the end no connection is left."""
    server = KeyServer()
    site: Any = Site(server)
    build = site.buildProtocol

    def building(address: Any) -> Any:
        channel = build(address)
        server.connections.add(channel)
        lost = channel.connectionLost

        def forget(reason: Any) -> None:
            server.connections.discard(channel)
            lost(reason)

        channel.connectionLost = forget
        return channel

    site.buildProtocol = building
    if tls is None:
        server.port = reactor.listenTCP(0, site, interface="127.0.0.1")
    else:
        context = ssl.DefaultOpenSSLContextFactory(str(tls[1]), str(tls[0]))
        server.port, server.scheme = reactor.listenSSL(0, site, context, interface="127.0.0.1"), "https"
    try:
        yield server
        await until(lambda: not server.connections)
    finally:
        await server.port.stopListening()


async def get(server: KeyServer, *, ca_file: str = "", clock: Any = reactor) -> Any:
    """Fetch from it once."""
    return await fetch(make_agent(reactor, ca_file), server.url, clock)


@run
async def test_what_is_asked_and_had() -> None:
    """The GET has no credential. The body and the max-age are returned."""
    async with key_server() as server:
        server.body, server.headers = jwks(jwk("ES256")), {"Cache-Control": "public, Max-Age=77"}
        fetched = await get(server)
        assert (fetched.body, fetched.max_age_s) == (server.body, 77)
        (request,) = server.requests
        assert request.method == b"GET"
        assert {name.lower() for name, _ in request.requestHeaders.getAllRawHeaders()} == {b"host", b"user-agent", b"accept", b"connection"}


@run
@each_row(
    ("said", "max_age_s"),
    [
        ("", None), ("public", None), ("max-age=0", 0), ('max-age="5"', 5), ("s-maxage=9", None), ("max-age=x", None),
        ("no-store, max-age=9", 0), ("no-cache", 0), ("max-age=-1", None), ("max-age=99999999999", None),
        ("private,max-age=3", 3), ("x-max-age=5", None),
    ],
)  # fmt: skip
async def test_max_age(said: str, max_age_s: int | None) -> None:
    """`Cache-Control` is read as in RFC 9111 section 5.2.2, and other text is ignored."""
    async with key_server() as server:
        server.headers = {"Cache-Control": said} if said else {}
        assert (await get(server)).max_age_s == max_age_s


@run
@each_row("code", [204, 301, 302, 307, 401, 404, 500, 503])
async def test_other_answers_are_failures(code: int) -> None:
    """Only the status 200 counts, and no redirect is followed."""
    async with key_server() as server:
        server.code, server.headers = code, {"Location": server.url}
        with pytest.raises(FetchError, match=f"{code}, not 200"):
            await get(server)
        assert len(server.requests) == 1


@run
@each_row("announced", [True, False])
async def test_the_body_is_bounded(announced: bool) -> None:
    """256 KiB are read. A longer answer ends the connection."""
    async with key_server() as server:
        server.body = b" " * MAX_BODY_BYTES
        assert len((await get(server)).body) == MAX_BODY_BYTES
        if announced:
            server.body = b" " * (MAX_BODY_BYTES + 1)
        else:

            def endless(request: Any) -> object:
                request.registerProducer(Endless(request), False)
                return NOT_DONE_YET

            server.answer = endless
        with pytest.raises(FetchError, match="longer than 262144"):
            await get(server)


class Watched:
    """An agent that reports when the head of an answer arrived."""

    answered = False

    def request(self, *arguments: Any) -> Any:
        """Send a request."""
        return make_agent(reactor, "").request(*arguments).addCallback(self._saw)

    def _saw(self, response: Any) -> Any:
        self.answered = True
        return response


class Endless:
    """Writes whenever it may."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def resumeProducing(self) -> None:
        """Write more."""
        self._request.write(b" " * 65536)

    def stopProducing(self) -> None:
        """Stop writing."""


@run
@each_row("start", [b"", b"some of it"])
async def test_the_deadline(start: bytes) -> None:
    """An answer that is missing or incomplete after 2 s fails, and its connection is closed."""

    def hang(request: Any) -> object:
        if start:
            request.write(start)
        return NOT_DONE_YET

    async with key_server() as server:
        server.answer = hang
        clock, watched = Clock(), Watched()
        asked = fetch(cast("Agent", watched), server.url, clock)
        await until(lambda: watched.answered if start else bool(server.requests))
        clock.advance(1.9)
        assert len(clock.getDelayedCalls()) == 1
        clock.advance(0.1)
        with pytest.raises(FetchError, match="no answer within 2 s"):
            await asked
        assert clock.getDelayedCalls() == []


@run
async def test_an_answer_that_is_cut_short() -> None:
    """A body that is shorter than announced is an error."""

    def cut(request: Any) -> object:
        request.setHeader("Content-Length", "1000")
        request.write(b"{")
        request.transport.loseConnection()
        return NOT_DONE_YET

    async with key_server() as server:
        server.answer = cut
        with pytest.raises(FetchError, match="cut short"):
            await get(server)


@run
async def test_cancelling() -> None:
    """A cancelled fetch closes its connection at once."""
    async with key_server() as server:
        server.answer = lambda request: NOT_DONE_YET
        asked = fetch(make_agent(reactor, ""), server.url, reactor)
        await until(lambda: bool(server.requests))
        asked.cancel()
        with pytest.raises(ResponseNeverReceived):
            await asked


@run
async def test_tls_is_verified(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A certificate of an unknown authority or for another name is refused. One of the configured authority is accepted."""
    folder, other_folder = tmp_path_factory.mktemp("tls"), tmp_path_factory.mktemp("other")
    pair, other = certificate(folder), certificate(other_folder, address="127.0.0.2")
    async with key_server(pair) as server:
        server.body = jwks(jwk("ES256"))
        assert (await get(server, ca_file=str(pair[0]))).body == server.body
        for ca_file in ("", str(other[0])):
            with pytest.raises(Exception, match="certificate verify failed"):
                await get(server, ca_file=ca_file)
    async with key_server(other) as server:
        with pytest.raises(Exception, match="VerificationError"):
            await get(server, ca_file=str(other[0]))


@each_row(
    ("url", "text"),
    [
        ("", "https://host"), ("keys", "https://host"), ("https:///keys", "https://host"), ("https://[::1/keys", "https://host"),
        ("https://a:99999/", "https://host"), ("https://a b/", "https://host"), ("https://\u00e9/", "https://host"),
        ("https://a/\n", "https://host"),
        ("https://key_cloak/certs", "TLS can't check a certificate for a name with _"), ("https://a..b/", "the host's name"),
        ("http://issuer.example/keys", "must be https"), ("http://10.0.0.1/keys", "must be https"),
        ("http://127.0.0.1.example/", "must be https"), ("http://localhost.example/", "must be https"),
        ("ftp://127.0.0.1/", "must be https"), ("file://localhost/etc/passwd", "must be https"),
        (f"https://user:{CANARY}@a/", "password"), (f"https://{CANARY}@a/", "password"), (f"http://a/?key={CANARY}", "must be https"),
    ],
)  # fmt: skip
def test_urls_that_cannot_be_used(url: str, text: str) -> None:
    """Only https is accepted, or http to this machine, without a password. The error does not repeat secrets."""
    with pytest.raises(ConfigError, match=rf"^jwt\.jwks_url.*{text}") as caught:
        check_key_set_url(url)
    assert CANARY not in str(caught.value)


@each_row(
    "url", ["https://issuer.example/keys?p=1", "https://[2001:db8::1]:8443/", "http://127.0.0.1:80/", "http://[::1]/", "http://localhost/x"]
)
def test_urls_that_can(url: str) -> None:
    """https is accepted for any host, and http on loopback."""
    assert check_key_set_url(url).geturl() == url


def test_authorities_that_cannot_be_used(tmp_path: Path) -> None:
    """A file that is missing, has no certificate or a damaged one is an error of the configuration."""
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for path in (tmp_path / "none.pem", empty, broken):
        with pytest.raises(ConfigError, match=r"jwks_ca_file"):
            make_agent(Clock(), str(path))


class Time:
    """The reactor, with a clock that a test moves."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def seconds(self) -> float:
        """Return the reactor's time and the seconds that the test added."""
        return float(reactor.seconds()) + self.ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


@implementer(ILogObserver)
class Log:
    """Collects all log events of every level."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        """Keep the event."""
        self.events.append(event)


@run
async def test_keys_of_a_real_server(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keys of a real server are fetched once, rotated, used while it is down or sends nonsense, and fetched again. No secret is logged."""
    clock, log = Time(), Log()
    globalLogPublisher.addObserver(log)
    try:
        async with key_server() as server:
            server.headers = {"Cache-Control": "max-age=100"}
            server.body = jwks(jwk("ES256", kid="old"), {"kty": "unheard of"})
            folder = tmp_path_factory.mktemp("method")
            method = make_method(folder, clock, wall=NOW, algorithms=("ES256",), jwks_url=server.url, jwks_stale_s=1000)
            old = sign(algorithm="ES256", header={"kid": "old", "jku": f"{server.url}/{CANARY}", "x5u": server.url})
            new = sign(algorithm="ES256", number=1, header={"kid": "new"})

            async def user(token: str) -> object:
                identity = await method.authenticate(head(authorization=f"Bearer {token}"), "192.0.2.1")
                assert identity is not None
                return identity.user_id

            assert [await user(old), await user(old)] == ["anna", "anna"]
            assert [request.uri for request in server.requests] == [b"/keys"]

            server.body = jwks(jwk("ES256", kid="old"), jwk("ES256", 1, kid="new"))
            assert await user(new) == "anna"
            forged = sign(algorithm="ES256", number=2, header={"kid": "new", "jwk": jwk("ES256", 2)})
            with pytest.raises(Refused, match="signature"):
                await user(forged)
            assert len(server.requests) == 2

            for body, code in ((b" " * (MAX_BODY_BYTES + 1), 200), (b"<html>", 200), (b"", 302), (CANARY.encode(), 500)):
                server.body, server.code = body, code
                clock.ahead += 101 + RETRY_S
                assert await user(old) == "anna"
            assert method.figures()["keys"] == {"fetched": 2, "failed": 4, "stale": 4, "limited": 0}
            clock.ahead += 1001
            with pytest.raises(Unavailable):
                await user(old)

            server.body, server.code = jwks(jwk("ES256", 1, kid="new")), 200
            clock.ahead += RETRY_S
            assert await user(new) == "anna"
            with pytest.raises(Refused, match="there is no key"):
                await user(old)

            clock.ahead += 101
            server.answer = lambda request: NOT_DONE_YET
            waiting = method.identify(new)
            await until(lambda: len(server.connections) > 0)
            await method.stop()
            assert (await waiting).user_id == "anna"  # the keys that are there still serve
    finally:
        globalLogPublisher.removeObserver(log)
    logged = str(log.events)
    for secret in (CANARY, old, new, forged, old.split(".")[1], "anna"):
        assert secret not in logged
