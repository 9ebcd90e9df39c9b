"""A page may send several session cookies, and only AWX knows which one is its own. A revocation of any of them counts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from tests.auth.tower_kit import Bench, me
from tests.kit.rows import each_row
from tests.kit.ws_kit import Edges, edges, request
from towerws.core.identity import Revocation


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


def named(value: str) -> str:
    """The name of a credential in a revocation."""
    return hashlib.sha256(value.encode()).hexdigest()[:32]


CASES = [
    ("sessionid=other; awx_sessionid=s20", "s20", True),
    ("sessionid=other; awx_sessionid=s20", "other", True),
    ("awx_sessionid=s20; sessionid=other", "s20", True),
    ('awx_sessionid="s20";sessionid=other;', "s20", True),
    ("sessionid=a; awx_sessionid=b; awxsessionid=s20", "s20", True),
    ("sessionid=a; awx_sessionid=b; awxsessionid=s20", "b", True),
    ("sessionid=s20; awx_sessionid=s20", "s20", True),
    ("sessionid=old; sessionid=s20", "s20", True),  # Django takes the last of equal names, so that is the one sent on
    ("sessionid=s20; sessionid=old", "s20", False),
    ("sessionid=other; unknown=s20", "s20", False),
    ("sessionid=other; csrftoken=s20", "s20", False),
    ("sessionid=other", "s20", False),
]


@each_row(("cookies", "revoked", "counts"), CASES, make=edges)
def test_an_open_connection_is_found_by_any_of_them(make: Edges, cookies: str, revoked: str, counts: bool) -> None:
    """`POST /disconnect` with the hash of any session cookie that was sent to AWX closes the connection."""
    bench = Bench()
    bench.fetcher.answers = {"/me/": me()}
    edge = make(bench.method)
    client = edge.connect().send(request(added=[f"Cookie: {cookies}"]))
    assert client.take()
    assert edge.context.credential_monitor.disconnect(Revocation(session=named(revoked))) == int(counts)
    assert client.close_code() == (1008 if counts else None)


@each_row(("cookies", "revoked", "counts"), CASES, make=edges)
def test_a_handshake_that_was_under_way(make: Edges, cookies: str, revoked: str, counts: bool) -> None:
    """The handshake is refused if any of its cookies was revoked meanwhile. The cached answer no longer counts."""
    bench = Bench()
    edge = make(bench.method)
    client = edge.connect().send(request(added=[f"Cookie: {cookies}"]))
    edge.clock.advance(1)
    bench.clock.advance(1)
    edge.context.credential_monitor.disconnect(Revocation(session=named(revoked)))
    ((_, _, asked),) = bench.fetcher.asked
    bench.fetcher.paths()
    asked.callback(me())
    assert client.status == (403 if counts else 101)
    bench.clock.advance(1)
    bench.fetcher.answers = {"/me/": me()}
    edge.connect().send(request(added=[f"Cookie: {cookies}"]))
    assert bench.fetcher.paths() == (["/api/v2/me/"] if counts else [])
