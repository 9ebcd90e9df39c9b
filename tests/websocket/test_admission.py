from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.defer import Deferred, succeed

from tests.kit.rows import each_row
from tests.kit.ws_kit import Client, Edge, Edges, SlowMethod, edges, request
from towerws.auth.chain import Open
from towerws.core.http_head import Head
from towerws.core.identity import Identity, Revocation
from towerws.core.limits import MAX_SURPLUS
from towerws.core.settings import AccessSettings, LimitSettings


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


class Named(Open):
    """Takes the user from the query, and notes the addresses."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires at once."""
        self.addresses.append(address)
        return succeed(Identity(int(head.query)))


def many(edge: Edge, number: int, *, peer: str = "192.0.2.1", path: str = "/websocket/", added: list[str] | None = None) -> list[Client]:
    """Open this many clients, one after the other."""
    return [edge.connect(peer).send(request(path, added=added or [])) for _ in range(number)]


def statuses(clients: list[Client]) -> list[int]:
    """The HTTP status that each client got."""
    return [client.status for client in clients]


def test_too_many_in_all(make: Edges) -> None:
    """Beyond the limit the answer is 503 with Retry-After. Open connections notice nothing, and one that closes makes room."""
    edge = make(limits={"connections": 3})
    clients = many(edge, 4)
    assert statuses(clients) == [101, 101, 101, 503]
    assert b"Retry-After: " in clients[3].response
    assert edge.factory.refused == {503: 1}
    assert edge.factory.refused_for == {"connections": 1}
    edge.advance(0.5)
    assert clients[3].transport.lost
    clients[0].hang_up()
    assert statuses(many(edge, 2)) == [101, 503]


def test_a_refused_client_that_sends_nothing_is_cut(make: Edges) -> None:
    """A refused client that sends nothing holds its descriptor for the linger time at most. Beyond a number of them it is cut at once."""
    edge = make(limits={"connections": 1})
    silent = [edge.connect() for _ in range(1 + MAX_SURPLUS + 1)]
    edge.advance(0)
    assert [client.transport.lost for client in silent[-2:]] == [False, True]
    edge.advance(edge.settings.linger_s + 0.5)
    assert [client.transport.lost for client in silent] == [False] + [True] * (MAX_SURPLUS + 1)


def test_too_many_from_an_address(make: Edges) -> None:
    """Promise 33: the 201st connection of an address gets a 503 before the upgrade. Other addresses are not affected."""
    edge = make(limits={"per_address": 200})
    assert statuses(many(edge, 201)) == [101] * 200 + [503]
    assert edge.factory.refused_for == {"address": 1}
    assert statuses(many(edge, 1, peer="192.0.2.2")) == [101]


def test_too_many_of_a_user(make: Edges) -> None:
    """Promise 33: the 51st connection of a user gets a 503 before the upgrade, from any address. Other users are not affected."""
    edge = make(Named(), limits={"per_user": 50})
    clients = [*many(edge, 25, path="/websocket/?7"), *many(edge, 26, peer="192.0.2.2", path="/websocket/?7")]
    assert statuses(clients) == [101] * 50 + [503]
    assert edge.factory.refused_for == {"user": 1}
    assert statuses(many(edge, 1, path="/websocket/?8")) == [101]


def test_the_defaults_are_for_an_office() -> None:
    """A shared account behind one address: 250 people with four pages each (contract 5.3: two to four sockets in a tab)."""
    assert (LimitSettings().per_user, LimitSettings().per_address, LimitSettings().half_open) == (1000, 1000, 1000)


class Method(Open):
    """Takes the user and the method's name from the query."""

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires at once."""
        method, user = head.query.split("-")
        return succeed(Identity(int(user) if method == "tower" else user, method, session="5e55"))


@each_row(("other", "status"), [("jwt-7", 101), ("tower-8", 101), ("saml-7", 101), ("tower-7", 503)], make=edges)
def test_users_of_two_methods_are_two(make: Edges, other: str, status: int) -> None:
    """The same id under two methods is two users: one can't use up the other's connections."""
    edge = make(Method(), limits={"per_user": 2})
    assert statuses(many(edge, 2, path="/websocket/?tower-7")) == [101, 101]
    assert statuses(many(edge, 1, path=f"/websocket/?{other}")) == [status]
    assert edge.context.credential_monitor.disconnect(Revocation(user=7)) == 2 + (status == 101 and other.endswith("-7")), (
        "ended by the id, whoever gave it"
    )


def test_pending_handshakes_are_limited_per_address(make: Edges) -> None:
    """Pending handshakes count more than open connections, and do not keep other addresses out."""
    method = SlowMethod(slow_handshake=True)
    edge = make(method, limits={"half_open": 2})
    waiting = many(edge, 3)
    assert statuses(waiting) == [0, 0, 503]
    assert edge.factory.refused_for == {"half_open": 1}
    assert statuses(many(edge, 1, peer="192.0.2.2")) == [0]
    method.handshakes[0][1].callback(Identity(7))
    assert statuses(many(edge, 2)) == [0, 503]


def test_forged_address(make: Edges) -> None:
    """Promise 33: without a trusted proxy a client is known by its own address, whichever headers it sends."""
    method = Named()
    edge = make(method, limits={"per_address": 2}, access=AccessSettings(trusted_proxies=("127.0.0.1",)))
    clients = [client for number in range(3) for client in many(edge, 1, path="/websocket/?1", added=[f"X-Forwarded-For: 10.0.0.{number}"])]
    assert statuses(clients) == [101, 101, 503]
    assert method.addresses == ["192.0.2.1"] * 2


def test_behind_a_proxy(make: Edges) -> None:
    """Clients behind a trusted proxy are counted and checked by their own addresses, never all as the proxy's."""
    method = Named()
    edge = make(method, limits={"per_address": 1, "half_open": 1}, access=AccessSettings(trusted_proxies=("127.0.0.1",)))
    clients = [
        client
        for address in ("203.0.113.1", "203.0.113.2", "203.0.113.1", "127.0.0.1, 203.0.113.2")
        for client in many(edge, 1, peer="127.0.0.1", path="/websocket/?1", added=[f"X-Forwarded-For: {address}"])
    ]
    assert statuses(clients) == [101, 101, 503, 503]
    assert method.addresses == ["203.0.113.1", "203.0.113.2"]
    assert edge.factory.refused_for == {"address": 2}
