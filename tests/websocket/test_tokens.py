from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from tests.auth.jwt_kit import SECRET, claims, sign
from tests.kit.rows import each_row
from tests.kit.ws_kit import BINARY, PING, PONG, WALL, Client, Edge, Edges, SlowMethod, edges, frame, request, text
from towerws.auth.base import Refused, Unavailable
from towerws.auth.chain import Chain, Open
from towerws.auth.jwt import JwtMethod
from towerws.core.errors import CloseReason
from towerws.core.http_head import Head
from towerws.core.identity import Identity, Revocation
from towerws.core.settings import AccessSettings, JwtSettings
from towerws.websocket.waits import ANSWER_S


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


@pytest.fixture
def jwt(make: Edges, tmp_path: Path) -> Chain:
    """The real JWT method, with the edges' wall clock."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    settings = JwtSettings(algorithms=("HS256",), secret_file=str(path), cookie="portal", leeway_s=0)
    return Chain([JwtMethod(settings, make.clock, wall=lambda: WALL + make.clock.seconds())])


class Issuer:
    """A method that takes tokens and answers when the test says so. A token is the user's name."""

    name = "issuer"
    takes_tokens = True

    def __init__(self) -> None:
        self.asked: list[tuple[str, Deferred[Identity]]] = []
        self.rechecks: list[Deferred[Identity]] = []
        self.cancelled: list[Deferred[Identity]] = []
        self.broken = False
        self.topics_asked: Deferred[dict[str, str]] | None = None
        """What answers a question about topics, if it is set."""

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """The user that the query names, or None without one."""
        return succeed(Identity(head.query, "issuer", session=f"first-{head.query}") if head.query else None)

    def identify(self, token: str, address: str) -> Deferred[Identity]:
        """Note the question."""
        self.asked.append((token, Deferred(self.cancelled.append)))
        return self.asked[-1][1]

    def answer(self, number: int = -1) -> None:
        """Accept the token."""
        token, asked = self.asked[number]
        asked.callback(Identity(token, "issuer", session=f"new-{token}"))

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Nothing is refused."""
        return self.topics_asked or (fail(ValueError("a bug")) if self.broken else succeed({}))

    def revalidate(self, identity: Identity) -> Deferred[Identity]:
        """Note the question."""
        self.rechecks.append(Deferred(self.cancelled.append))
        return self.rechecks[-1]

    def forget(self, revocation: Revocation | None) -> None:
        """Nothing is cached."""

    def stop(self) -> Deferred[None]:
        """Nothing to close."""
        return succeed(None)


def visit(edge: Edge, *, v1: bool = True) -> Client:
    """A client that sent no credential, and got no message yet."""
    client = edge.connect().send(request(v1=v1))
    assert client.status == 101
    assert client.take() == []
    return client


def enter(edge: Edge, token: str, *, v1: bool = True) -> Client:
    """A client whose connection is open."""
    client = edge.connect().send(request(v1=v1, added=[f"Authorization: Bearer {token}"]))
    assert len(client.take()) == 1
    return client


def lasting(seconds: float, user: str = "anna", **more: object) -> str:
    """A token that expires this many seconds after the edge's start."""
    return sign(claims(sub=user, iat=WALL - 10, exp=WALL + seconds, **more))


def watch(edge: Edge, seconds: float) -> None:
    """Let the credential monitor run its rounds for some time."""
    edge.context.credential_monitor.start()
    edge.advance(seconds, 0.5)
    edge.context.credential_monitor.stop()


def code(client: Client) -> Any:
    """The code of the single error that arrived."""
    (error,) = client.take()
    assert error["type"] == "error"
    return error["code"]


# The first message


@pytest.mark.parametrize(("v1", "welcome"), [(True, {"type": "welcome", "user": "anna"}), (False, {"accept": True, "user": 0})])
def test_the_token_in_the_first_message(make: Edges, jwt: Chain, v1: bool, welcome: dict[str, object]) -> None:
    """A client without a credential gets no message before it sends a good token. After that it is served like any other."""
    edge = make(jwt)
    client = visit(edge, v1=v1)
    assert (edge.hub.subscribers, edge.factory.opened) == ({}, 0)
    client.send(text({"token": lasting(100), "id": 1}))
    (first,) = client.take()
    assert {key: first[key] for key in welcome} == welcome
    edge.advance(9.75)
    client.send(frame(PING, b"x"))
    client.ask({"jobs": ["status_changed", "summary"]}).take()
    edge.publish("jobs.summary", {"n": 1})
    edge.publish("jobs.status_changed", {"n": 2})
    (event,) = client.take()
    assert event.get("payload", event) == {"n": 2}
    assert client.control(PONG) == [b"x"]
    assert edge.context.credential_monitor.disconnect(Revocation(user="anna")) == 1


@pytest.mark.parametrize("v1", [True, False])
def test_no_token_in_time(make: Edges, jwt: Chain, v1: bool) -> None:
    """A client that sends nothing for ten seconds is closed with 1008, and not before. Pings do not extend the time."""
    edge = make(jwt)
    client = visit(edge, v1=v1)
    for _ in range(9):
        edge.advance(1)
        client.send(frame(PING))
    edge.advance(0.75)
    assert (client.take(), client.close_code()) == ([], None)
    edge.advance(0.25)
    assert [(bye["type"], bye["action"], bye["reason"]) for bye in client.take()] == [("bye", "authenticate", "no credential")][: int(v1)]
    assert client.close_code() == 1008
    assert edge.factory.refused_for == {"no_token": 1}
    assert (edge.factory.opened, edge.factory.closed) == (0, 0)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (text({"groups": {"jobs": ["summary"]}}), "no_token"),
        (text({"groups": {}, "token": "a.b.c"}), "bad_token"),
        (text({"token": 7}), "bad_token"),
        (text("{"), "not_json"),
        (frame(BINARY, b"{}"), "binary"),
    ],
)
def test_anything_else_first(make: Edges, jwt: Chain, message: bytes, said: str) -> None:
    """A client whose first message is not a token gets one error and a close with 1008. Nothing that it sent is handled."""
    edge = make(jwt)
    client = visit(edge).send(message + text({"token": lasting(100)}))
    error, bye = client.take()
    assert (error["type"], error["code"], bye["type"]) == ("error", said, "bye")
    assert client.close_code() == 1008
    assert (edge.hub.subscribers, edge.factory.opened) == ({}, 0)


def test_bad_tokens_first(make: Edges, jwt: Chain) -> None:
    """A bad token gets an error, and the client may send another. The third bad one closes with 1008."""
    edge = make(jwt)
    bad = text({"token": lasting(-1), "id": "a"})
    client = visit(edge).send(bad, text({"token": "x" * 9000}))
    assert [(error["code"], error["id"]) for error in client.take()] == [("token", "a"), ("token", None)]
    client.send(text({"token": lasting(100)}))
    assert client.take()[0]["type"] == "welcome"
    other = visit(edge).send(bad, bad, bad, text({"token": lasting(100)}))
    assert [answer["type"] for answer in other.take()] == ["error", "error", "error", "bye"]
    assert other.close_code() == 1008
    assert edge.factory.refused_for == {"credential": 1}


def test_what_is_sent_behind_the_token(make: Edges) -> None:
    """A client need not wait for the answer. Messages that it sends while its token is checked are handled afterwards, in order."""
    issuer = Issuer()
    edge = make(issuer)
    client = edge.connect().send(request() + text({"token": "anna"}) + text({"groups": {"jobs": ["summary"]}}))
    client.ask({"job_events": [1]})
    assert client.take() == []
    issuer.answer()
    welcome, *answers = client.take()
    assert welcome["accept"] is True
    assert [answer["groups_current"] for answer in answers] == [["jobs-summary"], ["job_events-1"]]


def test_what_waits_is_bounded(make: Edges) -> None:
    """A client that floods while its token is checked is closed with 1008. Its token then opens nothing."""
    issuer = Issuer()
    edge = make(issuer)
    client = visit(edge).send(text({"token": "anna"}))
    client.send(*[frame(BINARY, bytes(60_000))] * 2)
    assert client.close_code() == 1008
    assert issuer.cancelled == [issuer.asked[0][1]]
    assert edge.hub.subscribers == {}


def test_a_token_that_cannot_be_checked(make: Edges) -> None:
    """It gets 1013, not 1008: on the third in a row, or if a check is still pending at the timeout."""
    issuer = Issuer()
    edge = make(issuer)
    client = visit(edge)
    for _ in range(3):
        client.send(text({"token": "anna"}))
        issuer.asked[-1][1].errback(Unavailable("down"))
    assert [answer.get("code", answer["type"]) for answer in client.take()] == [*["unavailable"] * 3, "bye"]
    assert client.close_code() == 1013
    late = visit(edge).send(text({"token": "anna"}))
    edge.advance(10)
    (bye,) = late.take()
    assert (bye["reason"], bye["reconnect_after_ms"] > 0) == ("credential can't be checked", True)
    assert late.close_code() == 1013
    assert edge.factory.refused_for == {"unavailable": 2}


def test_a_client_that_is_gone_before_its_token_is_checked(make: Edges) -> None:
    """A check that succeeds after the client is gone opens nothing."""
    issuer = Issuer()
    edge = make(issuer)
    client = visit(edge).send(text({"token": "anna"}))
    client.hang_up()
    assert issuer.cancelled == [issuer.asked[0][1]]
    assert (edge.hub.subscribers, edge.factory.opened) == ({}, 0)


def test_a_user_who_is_revoked_while_the_token_is_checked(make: Edges) -> None:
    """An answer from before the revocation opens and renews nothing. One from after it does."""
    issuer = Issuer()
    edge = make(issuer)
    client = visit(edge).send(text({"token": "anna"}))
    edge.clock.advance(1)
    assert edge.context.credential_monitor.disconnect(Revocation(user="anna")) == 0
    issuer.answer()
    assert code(client) == "token"
    edge.clock.advance(1)
    client.send(text({"token": "anna"}))
    issuer.answer()
    assert client.take()[0]["type"] == "welcome"
    client.send(text({"token": "anna"}))
    edge.clock.advance(1)
    assert edge.context.credential_monitor.disconnect(Revocation(session="new-eve")) == 0
    issuer.answer()
    assert client.take()[0]["type"] == "renewed"


def test_a_token_that_is_revoked_while_its_topics_are_checked(make: Edges) -> None:
    """Nothing is renewed. The connection goes on with its old credential."""
    issuer = Issuer()
    edge = make(issuer)
    client = visit(edge).send(text({"token": "anna"}))
    issuer.answer()
    client.ask({"job_events": [1]}).take()
    asked: Deferred[dict[str, str]] = Deferred()
    issuer.topics_asked = asked
    client.send(text({"token": "anna"}))
    issuer.asked[-1][1].callback(Identity("anna", "issuer", session="newer-anna"))
    edge.clock.advance(1)
    assert edge.context.credential_monitor.disconnect(Revocation(session="newer-anna")) == 0
    asked.callback({})
    assert code(client) == "token"
    assert edge.context.renewed == 0
    assert edge.context.credential_monitor.disconnect(Revocation(session="new-anna")) == 1


def test_a_bug_in_the_method(make: Edges) -> None:
    """A bug opens nothing, reveals nothing to the client, and is logged."""
    issuer = Issuer()
    edge = make(issuer)
    client = visit(edge).send(text({"token": "anna"}))
    issuer.asked[0][1].errback(ValueError("canary"))
    assert code(client) == "unavailable"
    assert "canary" in make.failures()[0]


def test_an_unauthenticated_connection_counts_as_a_pending_handshake(make: Edges, jwt: Chain) -> None:
    """Until its token is accepted, a connection counts among its address's pending handshakes. Acceptance or its end frees that slot."""
    edge = make(jwt, limits={"half_open": 2})
    first, second = visit(edge), visit(edge)
    assert edge.connect().send(request()).status == 503
    first.send(text({"token": lasting(100)}))
    third = visit(edge)
    second.send(text({"groups": {}}))
    assert second.close_code() == 1008
    visit(edge)
    assert edge.connect().send(request()).status == 503
    assert (len(first.take()), third.close_code()) == (1, None)


def test_one_connection_too_many_of_a_user(make: Edges, jwt: Chain) -> None:
    """The limit of a user's connections also holds for late tokens: 1013, and the user's other connections stay."""
    edge = make(jwt, limits={"per_user": 1})
    first = visit(edge).send(text({"token": lasting(100)}))
    second = visit(edge).send(text({"token": lasting(100)}))
    (bye,) = second.take()
    assert (bye["reason"], second.close_code()) == ("too many connections", 1013)
    assert edge.factory.refused_for == {"user": 1}
    assert (len(first.take()), first.close_code()) == (1, None)
    first.hang_up()
    third = visit(edge).send(text({"token": lasting(100)}))
    assert third.take()[0]["type"] == "welcome"


def test_a_restart_while_a_token_is_awaited(make: Edges, jwt: Chain) -> None:
    """A connection that still has to send its token is closed like all others."""
    edge = make(jwt)
    client = visit(edge)
    client.connection.end(CloseReason.RESTART)
    assert client.close_code() == 1012
    assert edge.factory.refused_for == {}


def test_without_a_method_that_takes_tokens(make: Edges) -> None:
    """A handshake without a credential is refused. A token sent on an open connection is answered, and changes nothing."""
    slow = SlowMethod(slow_handshake=True)
    refused = make(Chain([slow])).connect().send(request())
    slow.handshakes[0][1].callback(None)
    assert refused.status == 403
    edge = make(Chain([Open()]))
    client = edge.open(v1=True).listen(1).send(text({"token": lasting(100)}))
    assert code(client) == "token"
    edge.publish("job_events.1", {"n": 1})
    assert client.take()[0]["payload"] == {"n": 1}


# A new token on the open connection


@pytest.mark.parametrize("v1", [True, False])
def test_a_new_token_moves_the_end(make: Edges, jwt: Chain, v1: bool) -> None:
    """The connection lives until its newest token expires by the wall clock. Revocations then use that token's name."""
    edge = make(jwt, ping_s=3600)
    client = enter(edge, lasting(30), v1=v1).listen(1)
    identity = client.connection.identity
    assert identity is not None
    client.send(text({"token": lasting(90), "id": [1]}))
    assert client.take() == [{"type": "renewed", "id": [1], "user": "anna"} if v1 else {"accept": True, "user": 0}]
    watch(edge, 89)
    assert client.close_code() is None
    assert edge.context.credential_monitor.disconnect(Revocation(session=identity.session)) == 0
    edge.publish("job_events.1", {"n": 1})
    assert len(client.take()) == 1
    watch(edge, 2)
    assert client.close_code() == 1008
    assert edge.context.renewed == 1


def test_a_new_token_that_ends_sooner(make: Edges, jwt: Chain) -> None:
    """The newest token counts, not the one that lasts longest. Revocations use its name."""
    edge = make(jwt, ping_s=3600)
    client, other = enter(edge, lasting(300)), enter(edge, lasting(300))
    client.send(text({"token": lasting(5)}))
    other.send(text({"token": lasting(200, jti="a")})).take()
    watch(edge, 6)
    assert (client.close_code(), other.close_code()) == (1008, None)
    (session,) = next(iter(edge.context.credential_monitor._registry._names.values()))[1]
    assert edge.context.credential_monitor.disconnect(Revocation(session=session)) == 1
    assert other.close_code() == 1008


def test_a_new_token_replaces_what_is_granted(make: Edges, jwt: Chain) -> None:
    """Topics that the new token does not grant are removed before the answer. New ones can be subscribed, and the rest has no gap."""
    edge = make(jwt)
    client = enter(edge, lasting(30)).ask({"jobs": ["status_changed"], "job_events": [1]})
    tower = enter(edge, lasting(30), v1=False).ask({"jobs": ["status_changed"], "job_events": [1]})
    client.take()
    tower.take()
    token = lasting(60, groups=["job_events.1", "jobs.summary"])
    client.send(text({"token": token}))
    withdrawn, renewed = client.take()
    assert (withdrawn["groups_current"], withdrawn["groups_left"]) == (["job_events.1"], ["jobs.status_changed"])
    assert withdrawn["denied"] == [{"topic": "jobs.status_changed", "reason": "not granted"}]
    assert renewed["type"] == "renewed"
    tower.send(text({"token": token}))
    assert tower.take() == [
        {"error": "access denied to channel jobs for resource id status_changed"},
        {"accept": True, "user": 0},
    ]
    edge.publish("jobs.status_changed", {"n": 0})
    edge.publish("job_events.1", {"n": 1})
    assert (client.take()[0]["payload"], tower.take()) == ({"n": 1}, [{"n": 1}])
    client.ask({"job_events": [1, 2], "jobs": ["summary"]})
    (answer,) = client.take()
    assert answer["groups_current"] == ["job_events.1", "jobs.summary"]


@pytest.mark.parametrize(
    "token",
    [lasting(100, user="eve"), lasting(-1), sign(claims(), key=b"y" * 64), "anything"],
    ids=["other", "expired", "forged", "no"],
)
def test_a_new_token_that_is_not_good(make: Edges, jwt: Chain, token: str) -> None:
    """A bad new token changes nothing: the old one is valid until its expiry. The third bad one in a row ends the connection."""
    edge = make(jwt, ping_s=3600)
    client = enter(edge, lasting(30)).listen(1)
    for _ in range(2):
        client.send(text({"token": token}))
        assert code(client) == "token"
    edge.publish("job_events.1", {"n": 1})
    assert client.take()[0]["payload"] == {"n": 1}
    assert edge.context.credential_monitor.disconnect(Revocation(user="eve")) == 0
    other = enter(edge, lasting(40))
    other.send(text({"token": token})).take()
    for _ in range(3):
        other.send(text({"token": lasting(40)}), text({"token": token}))
        assert [answer["type"] for answer in other.take()] == ["renewed", "error"]
    watch(edge, 31)
    assert client.close_code() == 1008
    assert other.close_code() is None
    other.send(text({"token": token}), text({"token": token}))
    assert other.close_code() == 1008


def test_a_name_is_only_the_same_within_one_method(make: Edges, jwt: Chain) -> None:
    """User 7 of one method is not user 7 of another."""

    class Tower(SlowMethod):
        name = "tower"

        def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
            return succeed(Identity("7", "tower", session="s"))

    (method,) = jwt._methods
    edge = make(Chain([Tower(), method]))
    client = edge.open(v1=True).send(text({"token": lasting(100, user="7")}))
    assert code(client) == "token"


def test_messages_wait_for_the_token_before_them(make: Edges) -> None:
    """Messages behind a token are decided by that token, however long its check takes."""
    issuer = Issuer()
    edge = make(issuer)
    client = edge.connect().send(request("/websocket/?anna", v1=True))
    client.take()
    client.send(text({"token": "anna", "id": 1})).ask({"jobs": ["summary"]}, id=2)
    assert client.take() == []
    issuer.answer()
    assert [(answer["type"], answer["id"]) for answer in client.take()] == [("renewed", 1), ("subscribed", 2)]
    client.send(text({"token": "anna"})).ask({}, id=3)
    issuer.asked[-1][1].errback(Unavailable("down"))
    assert [answer.get("code", answer["id"]) for answer in client.take()] == ["unavailable", 3]
    client.send(text({"token": "anna"}))
    client.hang_up()
    assert issuer.cancelled == [issuer.asked[-1][1]]


def test_a_check_of_the_token_before(make: Edges) -> None:
    """A pending check of a replaced credential neither restores it nor ends the connection. The new credential is checked instead."""
    issuer = Issuer()
    edge = make(issuer)
    client = edge.connect().send(request("/websocket/?anna", v1=True))
    client.take()
    edge.context.credential_monitor.recheck_user("anna")
    client.send(text({"token": "anna"}))
    issuer.answer()
    assert client.take()[0]["type"] == "renewed"
    assert issuer.cancelled == [issuer.rechecks[0]]
    assert len(issuer.rechecks) == 2, "an answer about it may be older than the reason for the check"
    issuer.rechecks[1].errback(Refused("gone"))
    assert client.close_code() == 1008


def test_topics_that_are_not_checked_in_time(make: Edges, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renewal keeps a ping waiting for 8 s at most: clients give up at 10 s. The topics are checked afterwards."""
    issuer = Issuer()
    edge = make(issuer)
    client = edge.connect().send(request("/websocket/?anna", v1=True)).listen(1, 2)
    client.take()
    questions: list[Deferred[dict[str, str]]] = []

    def refusals(identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        questions.append(Deferred())
        return questions[-1]

    monkeypatch.setattr(issuer, "refusals", refusals)
    client.send(text({"token": "anna"}), text({"ping": 1}))
    issuer.answer()
    edge.clock.advance(ANSWER_S - 1)
    assert client.take() == []
    edge.clock.advance(1)
    assert [answer["type"] for answer in client.take()] == ["renewed", "pong"]
    edge.publish("job_events.1", {"n": 1})
    assert client.take()[0]["payload"] == {"n": 1}
    questions[1].callback({"job_events.1": "not visible to this user"})
    (revoked,) = client.take()
    assert (revoked["type"], revoked["groups_current"]) == ("revoked", ["job_events.2"])
    client.send(text({"token": "anna"}))
    issuer.answer()
    client.hang_up()
    edge.clock.advance(ANSWER_S)
    assert edge.context.renewed == 1


def test_a_bug_while_a_token_is_replaced(make: Edges) -> None:
    """If the grants of the new token can't be determined, nothing changes, and the log says why."""
    issuer = Issuer()
    edge = make(issuer)
    client = edge.connect().send(request("/websocket/?anna", v1=True))
    client.take()
    issuer.broken = True
    client.send(text({"token": "anna"}))
    issuer.answer()
    assert code(client) == "unavailable"
    assert "a bug" in make.failures()[0]
    assert edge.context.credential_monitor.disconnect(Revocation(session="first-anna")) == 1


def test_a_token_in_place_of_a_cookie(make: Edges, jwt: Chain) -> None:
    """A page that has sent a token needs no `xrftoken`: the connection no longer depends on a cookie that the browser sent by itself."""
    edge = make(jwt, access=AccessSettings(check_origin=False))
    client = edge.connect().send(request(v1=True, added=[f"Cookie: portal={lasting(100)}"]))
    client.take()
    client.ask({"job_events": [1]})
    assert code(client) == "xrftoken"
    client.send(text({"token": lasting(200)})).take()
    client.ask({"job_events": [1]})
    assert client.take()[0]["groups_current"] == ["job_events.1"]


# A wall clock that is set


class Wall:
    """The wall clock of both the method and the monitor. It runs with the reactor's clock, and the test can set it."""

    def __init__(self, clock: Clock) -> None:
        self.ahead_s = 0.0
        self._clock = clock

    def __call__(self) -> float:
        """Seconds since 1970."""
        return WALL + self.ahead_s + self._clock.seconds()


def with_wall(make: Edges, folder: Path) -> tuple[Edge, Wall]:
    """An edge whose users send tokens, and its wall clock."""
    path = folder / "secret"
    path.write_bytes(SECRET)
    settings = JwtSettings(algorithms=("HS256",), secret_file=str(path), leeway_s=10)
    wall = Wall(make.clock)
    edge = make(Chain([JwtMethod(settings, make.clock, wall=wall)]), ping_s=3600)
    edge.context.credential_monitor._wall = wall
    return edge, wall


@each_row("back_s", [5.0, 3600.0, 86400.0], make=edges)
def test_a_renewed_token_under_a_clock_that_is_put_back(make: Edges, tmp_path: Path, back_s: float) -> None:
    """A renewal gives the new token's lifetime at that moment. Setting the clock back before or after it adds nothing."""
    edge, wall = with_wall(make, tmp_path)
    client = enter(edge, lasting(60))
    watch(edge, 30)
    client.send(text({"token": lasting(90)})).take()
    wall.ahead_s = -back_s
    watch(edge, 59)
    assert client.close_code() is None
    watch(edge, 2)
    assert client.close_code() == 1008


@each_row("back_s", [5.0, 3600.0, 86400.0], make=edges)
def test_a_first_token_under_a_clock_that_is_put_back(make: Edges, tmp_path: Path, back_s: float) -> None:
    """The same for a token in the first message."""
    edge, wall = with_wall(make, tmp_path)
    client = edge.connect().send(request(v1=True))
    client.send(text({"token": lasting(60)}))
    assert [message["type"] for message in client.take()][-1] == "welcome"
    wall.ahead_s = -back_s
    watch(edge, 59)
    assert client.close_code() is None
    watch(edge, 2)
    assert client.close_code() == 1008


def test_a_clock_that_is_put_forward_ends_what_has_ended(make: Edges, tmp_path: Path) -> None:
    """When the wall clock is set forward, a renewed token and a first one both expire at once."""
    edge, wall = with_wall(make, tmp_path)
    renewed, first = enter(edge, lasting(60)), edge.connect().send(request(v1=True))
    renewed.send(text({"token": lasting(90)})).take()
    first.send(text({"token": lasting(90)})).take()
    wall.ahead_s = 91
    watch(edge, 1)
    assert renewed.close_code() == first.close_code() == 1008


@each_row("claim", ["nbf", "iat"], make=edges)
def test_a_token_of_the_future(make: Edges, tmp_path: Path, claim: str) -> None:
    """Setting the clock back can make a token valid only later. It opens nothing until then, but an open connection stays."""
    edge, wall = with_wall(make, tmp_path)
    token = sign(claims(**{"sub": "anna", "iat": WALL - 10, "exp": WALL + 7200, claim: WALL}))
    client = enter(edge, token)
    wall.ahead_s = -60
    late = edge.connect().send(request(v1=True))
    late.take()
    late.send(text({"token": token}))
    assert code(late) == "token"
    client.send(text({"token": token}))
    assert code(client) == "token"
    watch(edge, 40)
    assert client.close_code() is None
    wall.ahead_s = 0
    assert edge.connect().send(request(v1=True, added=[f"Authorization: Bearer {token}"])).status == 101
    assert client.close_code() is None
