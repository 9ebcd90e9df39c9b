from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.internet import reactor as _reactor
from twisted.internet import tcp
from twisted.internet.defer import CancelledError, gatherResults
from twisted.internet.error import DNSLookupError
from twisted.python.failure import Failure
from twisted.web._newclient import TransportProxyProducer
from twisted.web.client import ResponseDone
from twisted.web.http_headers import Headers

from tests.auth.tower_kit import now, run
from tests.kit.fake_tower import FakeTower, User
from tests.kit.rows import each_row
from tests.test_outgoing import certificate, resolved_to_loopback, until
from towerws.auth.base import Refused, Unavailable
from towerws.auth.http_client import Response, _BodyCollector
from towerws.auth.tower_api import MAX_BODY_BYTES, Answer, HttpFetcher, Me, _why, api_base, read_me, read_visible
from towerws.core.errors import ConfigError
from towerws.outgoing import MAX_FILE_BYTES

reactor: Any = _reactor

HEADERS = Headers()
BEARER = (("Authorization", "Bearer t"),)


@asynccontextmanager
async def api(files: tuple[Path, Path] | None = None, tls_ca: str = "") -> AsyncIterator[tuple[FakeTower, HttpFetcher]]:
    """The API and a fetcher. At the end no connection is left."""
    tower = FakeTower(tokens={"t": User(7)}).start(files)
    fetcher = HttpFetcher(reactor, 3, tls_ca)
    try:
        yield tower, fetcher
        await fetcher.stop()
        await until(lambda: not tower.connections)
    finally:
        await tower.stop()


def clients(tower: FakeTower) -> int:
    """Count the sockets that are connected to the API."""
    port = int(tower.url.rpartition(":")[2])
    return sum(isinstance(reader, tcp.Client) and reader.getPeer().port == port for reader in reactor.getReaders())


@run
async def test_an_answer_and_a_connection_kept() -> None:
    """Status and body are returned for any answer, and questions in a row share one connection."""
    async with api() as (tower, fetcher):
        first = await fetcher.get(f"{tower.url}/api/v2/me/", (*BEARER, ("X-A", "b")))
        assert first.status == 200
        assert b'"id": 7' in (first.body or b"")
        assert (await fetcher.get(f"{tower.url}/api/v2/me/", ())).status == 401
        assert (await fetcher.get(f"{tower.url}/api/v2/jobs/1/", BEARER)).status == 404
        assert tower.connected == 1
        sent = tower.seen[0].headers
        assert sent.pop("host") == tower.url.removeprefix("http://")
        assert sent == {"authorization": "Bearer t", "x-a": "b"}


@run
async def test_many_at_once_keep_few_connections() -> None:
    """After a burst, connections are closed down to the bound."""
    async with api() as (tower, fetcher):
        answers = await gatherResults([fetcher.get(f"{tower.url}/api/v2/me/", BEARER) for _ in range(10)])
        assert [answer.status for answer in answers] == [200] * 10
        await until(lambda: len(tower.connections) == 3)


@run
async def test_a_connection_that_the_api_closed_meanwhile() -> None:
    """A closed idle connection fails no question."""
    async with api() as (tower, fetcher):
        await fetcher.get(f"{tower.url}/", BEARER)
        tower.drop()
        await until(lambda: not tower.connections)
        assert (await fetcher.get(f"{tower.url}/", BEARER)).status == 404


@run
async def test_redirects_are_not_followed() -> None:
    """A redirect is an answer like any other, and the credential goes to no other address."""
    async with api() as (tower, fetcher):
        for status in ("301", "302", "307"):
            tower.fault = status
            assert (await fetcher.get(f"{tower.url}/a/", BEARER)).status == int(status)
        assert tower.paths() == ["/a/"] * 3


@run
async def test_faults_of_the_api() -> None:
    """Any fault of the API is `Unavailable`, with a reason for the operator. An endless body is aborted."""
    async with api() as (tower, fetcher):
        for fault, words in (("garbage", "ParseError"), ("cut", "DataLoss"), ("close", "closed before the answer")):
            tower.fault = fault
            with pytest.raises(Unavailable, match=words):
                await fetcher.get(f"{tower.url}/", BEARER)
        tower.fault = "huge"
        assert await fetcher.get(f"{tower.url}/", BEARER) == Answer(200, None)
        tower.fault = "huge json"
        assert await fetcher.get(f"{tower.url}/", BEARER) == Answer(200, None, is_json=True)
        await until(lambda: not tower.connections)
        await tower.stop()
        with pytest.raises(Unavailable, match="connection refused"):
            await fetcher.get(f"{tower.url}/", BEARER)


@run
@each_row("tls", [False, True])
@each_row("fault", ["hang", "stall"])
async def test_cancelling_lets_go_at_once(tmp_path: Path, fault: str, tls: bool) -> None:
    """A cancelled question closes its connection at once, before or during the answer, over TLS too (pitfall F1)."""
    files = certificate(tmp_path) if tls else None
    async with api(files, str(files[0]) if files else "") as (tower, fetcher):
        tower.fault = fault
        asked = fetcher.get(f"{tower.url}/", BEARER)
        await until(lambda: tower.seen != [])
        for connection in tower.connections:
            connection.transport.pauseProducing()  # a peer that reads nothing any more answers no close of TLS's
        assert clients(tower) == 1
        asked.cancel()
        with pytest.raises((Unavailable, CancelledError)):
            await asked
        await until(lambda: clients(tower) == 0)
        for connection in tower.connections:
            connection.transport.resumeProducing()
        await until(lambda: not tower.connections)


def test_a_body_after_its_end() -> None:
    """A body of exactly the bound is complete, and one byte more is too long. The rest is dropped, also at the end of the connection."""
    body = _BodyCollector(200, HEADERS, MAX_BODY_BYTES)
    body.makeConnection(TransportProxyProducer(None))
    body.dataReceived(b"x" * MAX_BODY_BYTES)
    assert not body.done.called
    body.dataReceived(b"x")
    body.dataReceived(b"x" * MAX_BODY_BYTES * 2)
    body.connectionLost()
    assert now(body.done) == Response(200, HEADERS, None)
    whole = _BodyCollector(200, HEADERS, MAX_BODY_BYTES)
    whole.dataReceived(b"x" * MAX_BODY_BYTES)
    whole.connectionLost(Failure(ResponseDone()))
    assert now(whole.done) == Response(200, HEADERS, b"x" * MAX_BODY_BYTES)


@run
async def test_certificates_are_verified(tmp_path: Path) -> None:
    """With an unknown authority or a certificate for another host, no credential is sent. With a known authority it is."""
    files = certificate(tmp_path)
    async with api(files) as (tower, fetcher):
        with pytest.raises(Unavailable, match="TLS failed: certificate verify failed"):
            await fetcher.get(f"{tower.url}/", BEARER)
        assert tower.seen == []
    async with api(files, str(files[0])) as (tower, fetcher):
        assert (await fetcher.get(f"{tower.url}/", BEARER)).status == 404
    other = certificate(tmp_path, address="127.0.0.2")
    async with api(other, str(other[0])) as (tower, fetcher):
        with pytest.raises(Unavailable, match="TLS failed"):
            await fetcher.get(f"{tower.url}/", BEARER)
        assert tower.seen == []


@each_row(
    ("error", "words"),
    [
        (DNSLookupError("canary"), "the host's name can't be resolved"),
        (SSL.Error(), "TLS failed: no reason given"),
        (SSL.SysCallError(-1, "Unexpected EOF"), "TLS failed: no reason given"),
        (SSL.Error([("SSL routines", "", "wrong version number")]), "TLS failed: wrong version number"),
        (ValueError("canary"), "ValueError"),
    ],
)
def test_reasons_in_words(error: Exception, words: str) -> None:
    """A failure has a short reason of our own words."""
    assert _why(Failure(error)) == words


@each_row(
    "content",
    [None, b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", b" " * (MAX_FILE_BYTES + 1)],
    ids=["missing", "empty", "none", "damaged", "huge"],
)
def test_a_ca_file_that_cannot_be_used(tmp_path: Path, content: bytes | None) -> None:
    """An authorities file that can't be used is an error at the start that names it."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^tower\.tls_ca = '.*ca\.pem': [^\n]+$") as caught:
        HttpFetcher(reactor, 3, str(path))
    assert str(caught.value).count(str(path)) == 1


@each_row(
    ("url", "base"),
    [
        ("http://127.0.0.1:8052", "http://127.0.0.1:8052"),
        ("https://tower.example/", "https://tower.example"),
        ("https://[::1]:8053/awx/", "https://[::1]:8053/awx"),
    ],
)
def test_addresses_of_an_api(url: str, base: str) -> None:
    """The address may have a port and a path, with or without a slash at the end."""
    assert api_base(url) == base


@each_row(
    "url",
    [
        *("", "tower", "ftp://h", "http://", "http:///a", "http://h:x", "http://h:0", "http://h:70000", "http://[::1"),
        *("http://user:canary@h", "http://h/?a=b", "http://h/#a", "http://h/ b", "http://h/\n", "http://h\u00e4"),
    ],
)
def test_what_is_no_address_of_an_api(url: str) -> None:
    """Another address is refused with the rule, and the error does not repeat a password."""
    with pytest.raises(ConfigError, match=r"tower\.url = .*: must be http://") as caught:
        api_base(url)
    assert "canary" not in str(caught.value)


@each_row(
    ("url", "rule"),
    [
        ("https://awx_web", "TLS can't check a certificate for a name with _"),
        ("https://awx-.example", "TLS can't check"),
        ("http://user:canary@a..b", "the host's name"),
    ],
)
def test_host_names_that_cannot_be_used(url: str, rule: str) -> None:
    """A name that can't be resolved, or that no certificate can be checked for, is refused with the reason."""
    with pytest.raises(ConfigError, match=rf"^tower\.url: .*{rule}") as caught:
        api_base(url)
    assert "canary" not in str(caught.value)


@run
async def test_a_host_name_with_an_underscore() -> None:
    """A name that only /etc/hosts or Docker's DNS knows may hold `_`."""
    async with api() as (tower, fetcher), resolved_to_loopback("awx_web"):
        answer = await fetcher.get(f"{tower.url.replace('127.0.0.1', 'awx_web')}/api/v2/me/", BEARER)
        assert answer.status == 200


@run
async def test_a_request_that_cannot_begin() -> None:
    """An error before the request is sent is a failure like any other. It isn't raised."""
    fetcher = HttpFetcher(reactor, 1)
    with pytest.raises(Unavailable, match="can't be reached"):
        await fetcher.get("https://awx_web/", ())
    await fetcher.stop()


def answer(content: object, status: int = 200) -> Answer:
    """Return an answer with JSON."""
    return Answer(status, json.dumps(content).encode())


@each_row(
    ("user", "expected"),
    [
        ({"id": 7, "is_superuser": False, "is_system_auditor": False}, Me(7, reads_all=False)),
        ({"id": 7}, Me(7, reads_all=False)),
        ({"id": 1, "is_superuser": True}, Me(1, reads_all=True)),
        ({"id": 2, "is_system_auditor": True}, Me(2, reads_all=True)),
        ({"id": 2, "is_superuser": "true", "is_system_auditor": 1}, Me(2, reads_all=False)),
    ],
)
def test_who_it_is(user: dict[str, object], expected: Me) -> None:
    """The user has its id, and reads everything only if a flag is exactly `true`."""
    assert read_me(answer({"count": 1, "next": None, "previous": None, "results": [user]})) == expected


@each_row("refusal", [answer({"detail": "x"}, 401), answer({}, 403), answer({"count": 0, "results": []}), Answer(401, None)])
def test_a_bad_credential(refusal: Answer) -> None:
    """401, 403 and an empty list mean that the credential is not valid."""
    with pytest.raises(Refused):
        read_me(refusal)


@each_row(
    "odd",
    [
        *(Answer(status, b"") for status in (201, 204, 301, 302, 307, 400, 404, 405, 429, 500, 502, 503, 504)),
        Answer(200, None),
        Answer(200, b""),
        Answer(200, b"<html>"),
        Answer(200, b"\xff\xfe"),
        Answer(200, b"[" * 500_000),
        Answer(200, b'{"count": ' + b"1" * 5000 + b"}"),
        answer([]),
        answer(None),
        answer({}),
        answer({"count": 1}),
        answer({"count": 1, "results": []}),
        answer({"count": 1, "results": [7]}),
        answer({"count": 1, "results": {"0": {"id": 7}}}),
        answer({"count": 1, "results": [{"id": "7"}]}),
        answer({"count": 1, "results": [{"id": True}]}),
        answer({"count": 1, "results": [{}]}),
        answer({"count": 2, "results": [{"id": 7}, {"id": 8}]}),
        answer({"count": False, "results": []}),
    ],
)
def test_other_answers_are_unavailable(odd: Answer) -> None:
    """Any other answer is `Unavailable`, and the error does not repeat the body."""
    with pytest.raises(Unavailable) as caught:
        read_me(odd)
    assert "html" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_redirect_is_explained() -> None:
    """The error for a redirect names its two causes: a migration of AWX, or the wrong address."""
    for read in (read_me, read_visible):
        with pytest.raises(Unavailable, match=r"302, a redirect: AWX is migrating its database, or tower\.url"):
            read(Answer(302, b""))


def test_whether_an_object_is_visible() -> None:
    """200 with a JSON object is yes, 403 and 404 are no, 401 is the end of the credential. Other answers are `Unavailable`."""
    assert read_visible(Answer(200, b'{"id": 42}'))
    assert read_visible(Answer(200, b" \r\n{}"))
    assert read_visible(Answer(200, None, is_json=True)), "a job with large artifacts"
    assert not read_visible(Answer(403, b""))
    assert not read_visible(Answer(404, b""))
    with pytest.raises(Refused):
        read_visible(Answer(401, b""))
    for status in (204, 302, 400, 429, 500, 503):
        with pytest.raises(Unavailable):
            read_visible(Answer(status, b""))


@each_row("page", [Answer(200, b"<!doctype html>"), Answer(200, b""), Answer(200, b"[{}]"), Answer(200, b'"{"'), Answer(200, None)])
def test_a_page_shows_no_object(page: Answer) -> None:
    """A page with status 200, as a gateway's login page, says nothing about the object. The reason names what to check."""
    with pytest.raises(Unavailable, match=r"answered 200 without the JSON of an object.*tower\.url the API's own address\?"):
        read_visible(page)


def test_which_statuses_count_as_the_apis_fault() -> None:
    """5xx is the API's fault. Redirects and 4xx may come from the client or a gateway."""
    assert [status for status in (200, 204, 301, 302, 400, 401, 404, 429, 500, 503) if Answer(status, b"").is_fault] == [500, 503]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["count", "results", "id", "is_superuser"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.binary(max_size=50) | JSON.map(lambda content: json.dumps(content).encode()), st.sampled_from([200, 200, 200, 401, 500]))
def test_whatever_the_api_answers(body: bytes, status: int) -> None:
    """An answer is a user, a refusal or unavailable, and never another error."""
    with contextlib.suppress(Refused, Unavailable):
        user = read_me(Answer(status, body))
        assert type(user.user_id) is int
        assert status == 200
