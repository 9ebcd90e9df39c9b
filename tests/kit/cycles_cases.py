"""Paths that repeat leave no objects that only a full collection would free."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater

from tests.auth.jwt_kit import SECRET, claims, sign
from tests.auth.tower_kit import URL, FakeFetcher, me, run
from tests.kit.cycles import TIMES, WARM_UP, garbage_kept, garbage_of
from tests.kit.plain_http import plain_http
from tests.kit.ws_kit import PING, PONG, WALL, Client, Edge, Edges, close, edges, frame, request, text
from tests.test_admin import Admin
from tests.test_amqp import SourceRig
from tests.test_outgoing import certificate
from tests.websocket.test_credential_monitor import Tower
from towerws.auth.base import drop_frames
from towerws.auth.chain import Chain
from towerws.auth.jwt import JwtMethod
from towerws.auth.jwt_key_set import fetch, make_agent
from towerws.auth.tower import TowerMethod
from towerws.auth.tower_api import Answer, HttpFetcher
from towerws.core.errors import CloseReason
from towerws.core.identity import Disconnection, Revocation
from towerws.core.settings import BrokerSettings, BrokerUrl, JwtSettings, Secret, TowerSettings
from towerws.outgoing import broker_endpoint

NEVER_S = 10**8
"""Longer than any test, so that no ping comes between."""

FEWER = 400
"""The count for paths of a millisecond and more."""

Path_ = Callable[[], object]
Make = Callable[[Edges], Path_]


def leave(edge: Edge, client: Client) -> None:
    """Disconnect the client, and let its timers end."""
    client.hang_up()
    edge.clients.clear()
    edge.clock.advance(21)


def pings(make: Edges) -> Path_:
    """A ping and its pong."""
    edge = make()
    client = edge.open()
    head = len(client.response)

    def path() -> None:
        edge.clock.pump([10, 10, 0.5])
        for payload in client.control(PING):
            client.send(frame(PONG, payload))
        client.frames.clear()
        del client.transport.received[head:]
        client._read = head

    return path


def subscriptions(make: Edges) -> Path_:
    """Another subscription, and its answer."""
    edge = make(ping_s=NEVER_S)
    client = edge.open(v1=True)
    topics = iter(range(1, 10**9))

    def path() -> None:
        edge.clock.advance(1)
        client.ask({"job_events": [next(topics)]})
        assert client.take()

    return path


def batches(make: Edges) -> Path_:
    """A message to four clients."""
    edge = make(ping_s=NEVER_S)
    clients = [edge.open(v1=bool(number % 2)).listen(1) for number in range(4)]

    def path() -> None:
        edge.publish("job_events.1", {"n": 1})
        for client in clients:
            assert client.take()

    return path


def resumes(make: Edges) -> Path_:
    """A resume from a position, answered from history."""
    edge = make(ping_s=NEVER_S)
    client = edge.open(v1=True)

    def path() -> None:
        position = edge.publish("job_events.1", {"n": 1})
        edge.publish("job_events.1", {"n": 2})
        edge.clock.advance(1)
        client.ask({"job_events": [1]}, since=position)
        edge.clock.advance(1)
        client.ask({})
        assert client.take()[0]["recovered"]

    return path


def connections(make: Edges) -> Path_:
    """A client that connects, subscribes and hangs up."""
    edge = make()
    return lambda: leave(edge, edge.open(v1=True).listen(1))


def refused(make: Edges) -> Path_:
    """A handshake with a wrong path."""
    edge = make()
    return lambda: leave(edge, edge.connect().send(request("/nope")))


def handshakes_that_time_out(make: Edges) -> Path_:
    """Half a request, then nothing."""
    edge = make()

    def path() -> None:
        client = edge.connect().send(b"GET")
        edge.clock.advance(16)
        leave(edge, client)

    return path


def closes_by_the_client(make: Edges) -> Path_:
    """A close frame from the client."""
    edge = make()
    return lambda: leave(edge, edge.open().send(close()))


def closes_without_an_answer(make: Edges) -> Path_:
    """A close frame to a client that does not answer."""
    edge = make()

    def path() -> None:
        client = edge.open()
        client.connection.end(CloseReason.RESTART)
        edge.clock.advance(3)
        leave(edge, client)

    return path


def requests_that_wait(make: Edges) -> Path_:
    """A request that waits for history until its timeout."""
    edge = make(start=False)

    def path() -> None:
        client = edge.open(v1=True)
        client.ask({"job_events": [1]})
        edge.clock.advance(6)
        leave(edge, client)

    return path


def revocations(make: Edges) -> Path_:
    """A user that is disconnected."""
    method = Tower()
    edge = make(method)

    def path() -> None:
        client = edge.connect().send(request("/websocket/?7-a"))
        assert edge.context.credential_monitor.disconnect(Revocation(user=7)) == 1
        method.forgotten.clear()
        leave(edge, client)

    return path


def tokens(make: Edges, folder: Path) -> Edge:
    """An edge whose clients send tokens."""
    secret = folder / "secret"
    secret.write_bytes(SECRET)
    settings = JwtSettings(algorithms=("HS256",), secret_file=str(secret))
    return make(Chain([JwtMethod(settings, make.clock, wall=lambda: WALL)]), ping_s=NEVER_S)


def api(make: Edges, answers: dict[str, Answer]) -> tuple[Edge, FakeFetcher]:
    """An edge with an API that gives these answers. A path that is not named gets none."""
    fetcher = FakeFetcher()
    fetcher.answers = answers
    return make(Chain([TowerMethod(TowerSettings(url=URL), make.clock, fetcher=fetcher)])), fetcher


def check(path: Path_, times: int) -> None:
    """Earlier tests may leave a few objects. A real leak leaves at least one for each run."""
    found = garbage_of(path, times)
    assert sum(found.values()) < times // 2, found.most_common(10)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", [pings, subscriptions, batches, resumes, connections, refused])
def test_what_repeats_most(path: Make) -> None:
    """Each path that most messages take."""
    with edges() as make:
        check(path(make), TIMES)


@pytest.mark.parametrize(
    "path",
    [handshakes_that_time_out, closes_by_the_client, closes_without_an_answer, requests_that_wait, revocations],
)
def test_what_ends(path: Make) -> None:
    """Each way in which a connection or a wait ends."""
    with edges() as make:
        check(path(make), FEWER)


def test_renewals(tmp_path: Path) -> None:
    """A token that is refused, and one that replaces another."""
    with edges() as make:
        edge = tokens(make, tmp_path)
        good, bad = sign(claims()), sign(claims(exp=5))
        client = edge.connect().send(request(v1=True, added=[f"Authorization: Bearer {good}"]))
        client.take()

        def path() -> None:
            edge.clock.advance(1)
            client.send(text({"token": bad}), text({"token": good}))
            assert [message["type"] == "error" for message in client.take()] == [True, False]

        check(path, FEWER)


def test_unauthenticated_clients_that_send_no_token(tmp_path: Path) -> None:
    """A client without a credential that reaches the timeout."""
    with edges() as make:
        edge = tokens(make, tmp_path)

        def path() -> None:
            client = edge.connect().send(request())
            edge.clock.advance(12)
            leave(edge, client)

        check(path, FEWER)


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        ({"/me/": me(), "/jobs/1/": Answer(200, b"{}")}, 101),
        ({"/me/": me(), "/jobs/1/": Answer(401, b"")}, 101),
        ({"/me/": me(), "/jobs/1/": Answer(500, b"")}, 101),
        ({"/me/": Answer(401, b"{}")}, 403),
        ({"/me/": Answer(500, b"{}")}, 503),
        ({"/me/": Answer(200, b"nonsense")}, 503),
        ({}, 503),
    ],
    ids=["good", "object-401", "object-500", "me-401", "me-500", "me-nonsense", "late"],
)
def test_calls_to_the_api(answers: dict[str, Answer], status: int) -> None:
    """Each answer of the API, and no answer."""
    with edges() as make:
        edge, fetcher = api(make, answers)

        def path() -> None:
            client = edge.connect().send(request(v1=True, added=["Authorization: Bearer x"]))
            if not answers:
                edge.clock.advance(12)
            assert client.status == status
            if status == 101:
                client.ask({"job_events": [1]})
                edge.advance(8, step=0.5)
            leave(edge, client)
            edge.clock.advance(100)
            fetcher.asked.clear()

        check(path, FEWER // 2)


def test_a_client_that_leaves_while_it_is_asked_about() -> None:
    """The question is cancelled, and its answer still arrives."""
    with edges() as make:
        edge, fetcher = api(make, {})

        def path() -> None:
            client = edge.connect().send(request(added=["Authorization: Bearer x"]))
            asked: Deferred[Answer] = fetcher.asked.pop()[2]
            client.hang_up()
            asked.callback(me())
            leave(edge, client)
            edge.clock.advance(100)

        check(path, FEWER)


@pytest.mark.parametrize("end", ["leaves", "asks for less", "waits"])
def test_requests_whose_objects_are_asked_about(end: str) -> None:
    """The API knows the user, and does not answer for the object. The request ends by timeout, by a newer one, or with the client."""
    with edges() as make:
        edge, fetcher = api(make, {"/me/": me()})

        def path() -> None:
            client = edge.connect().send(request(v1=True, added=["Authorization: Bearer x"]))
            client.ask({"job_events": [1], "jobs": ["summary"]})
            if end == "asks for less":
                client.ask({})
                edge.advance(4, step=0.5)
            elif end == "waits":
                edge.advance(10, step=0.5)
            leave(edge, client)
            edge.clock.advance(100)
            fetcher.asked.clear()

        check(path, FEWER // 2)


@pytest.mark.parametrize("end", ["one is hidden", "leaves", "leaves later", "asked again", "ended"])
def test_checks_of_open_connections(end: str) -> None:
    """The credential and two objects are checked again. The client leaves meanwhile, loses one or all, or another check is asked for."""
    with edges() as make:
        edge, fetcher = api(make, {"/me/": me(), "/jobs/1/": Answer(200, b"{}"), "/jobs/2/": Answer(200, b"{}")})
        answers = fetcher.answers.copy()

        def path() -> None:
            fetcher.answers = answers.copy()
            client = edge.connect().send(request(v1=True, added=["Authorization: Bearer x"]))
            client.ask({"job_events": [1, 2]})
            fetcher.answers = {"/me/": me(), "/jobs/1/": Answer(403, b"")} if end != "leaves" else {}
            if end == "ended":
                fetcher.answers["/me/"] = Answer(401, b"")
            edge.clock.advance(1)
            edge.context.credential_monitor.recheck_user("7")
            if end == "asked again":
                edge.context.credential_monitor.recheck_user("7")
            if end != "leaves":
                edge.clock.advance(1)
            if end in ("one is hidden", "asked again"):
                fetcher.answers = answers.copy()
                edge.advance(10, step=0.5)
            leave(edge, client)
            edge.clock.advance(100)
            fetcher.asked.clear()

        check(path, FEWER // 2)


def markers(rig: SourceRig) -> Path_:
    """A marker that goes to the exchange and comes back."""
    return lambda: rig.advance(10, 1)


def batches_of_the_broker(rig: SourceRig) -> Path_:
    """Twenty messages in one batch."""

    def path() -> None:
        rig.broker.write(*[b'{"a": 1}'] * 20)
        rig.settle()

    return path


def reconnects(rig: SourceRig) -> Path_:
    """A connection that is cut, and the next one."""

    def path() -> None:
        for broker in (rig.broker, rig.side):
            broker.cut()
            for peer in broker.peers:
                peer.protocol = None  # the fake refers back, twice
                del peer.transport.peer
            broker.peers.clear()  # it would hold what must be let go of
        rig.advance(12, 0.1)

    return path


@pytest.mark.timeout(120)
def test_the_broker() -> None:
    """Messages from the broker and to it. The source is real, the broker's side is a fake."""
    rig = SourceRig()
    rig.source.start()
    rig.advance(5)
    for path, times in ((markers, FEWER), (batches_of_the_broker, FEWER // 5), (reconnects, FEWER // 10)):
        check(path(rig), times)
    rig.source.stop()


def test_attempts_over_tls() -> None:
    """One TLS context serves all attempts, however many there are."""
    url = BrokerUrl("broker.example", 5671, "u", Secret("p"), "/", tls=True)
    check(lambda: broker_endpoint(reactor, url, BrokerSettings(urls=(url,))), FEWER)


def test_the_admin_port() -> None:
    """Each answer of the admin port, two thousand in all."""
    with edges() as make:
        admin = Admin(make)

        def path() -> None:
            for page in ("/healthz", "/readyz", "/status", "/", "/nope"):
                admin.ask("GET", page)
            admin.ask("POST", "/publish", b'{"topic": "job_events.1", "payload": {"n": 1}}')
            admin.disconnected = succeed(Disconnection(1))
            admin.ask("POST", "/disconnect", b'{"user": 7}')
            admin.raw(b"nonsense\r\n\r\n")
            admin.revocations.clear()

        check(path, FEWER // 4)


NEW_CONNECTION = 60
"""Objects that Twisted's endpoints leave for each new connection, TLS or not (towerws/auth/http_client.py)."""


async def left_by(question: Callable[[], Awaitable[object]], times: int) -> float:
    """The number of cyclic objects that each question leaves, over real sockets."""

    async def ask() -> None:
        try:
            await question()
        except Exception as error:  # noqa: BLE001 - a failure is what is asked for
            drop_frames(error)

    for _ in range(WARM_UP):
        await ask()
    with garbage_kept() as found:
        for _ in range(times):
            await ask()
        await deferLater(reactor, 0.05)
    return sum(found.values()) / times


KEPT = ["length", "chunked", "refused", "empty"]
ENDED = ["close", "until-close", "chunked-close", "cut", "cut-chunk", "hangup", "garbage"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", KEPT)
@run
async def test_answers_over_a_kept_connection(tmp_path: Path, kind: str, tls: bool) -> None:
    """The Tower API's usual answers leave nothing."""
    files = certificate(tmp_path) if tls else None
    with plain_http(files) as port:
        fetcher = HttpFetcher(reactor, 1, str(files[0]) if files else "")
        url = f"http{'s' if tls else ''}://127.0.0.1:{port}/{kind}"
        assert await left_by(lambda: fetcher.get(url, ()), TIMES) < 0.1
        await fetcher.stop()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", ENDED)
@run
async def test_connections_to_the_api(tmp_path: Path, kind: str, tls: bool) -> None:
    """An API that closes after each answer, or in the middle of one, leaves only what Twisted's endpoints leave."""
    files = certificate(tmp_path) if tls else None
    with plain_http(files) as port:
        fetcher = HttpFetcher(reactor, 1, str(files[0]) if files else "")
        url = f"http{'s' if tls else ''}://127.0.0.1:{port}/{kind}"
        assert await left_by(lambda: fetcher.get(url, ()), FEWER // 5) <= NEW_CONNECTION


@pytest.mark.timeout(120)
@run
async def test_failed_handshakes(tmp_path: Path) -> None:
    """An API whose certificate is not trusted."""
    with plain_http(certificate(tmp_path)) as port:
        fetcher = HttpFetcher(reactor, 1)
        assert await left_by(lambda: fetcher.get(f"https://127.0.0.1:{port}/length", ()), FEWER // 5) <= NEW_CONNECTION


@pytest.mark.timeout(120)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", ["length", "chunked", "hangup", "garbage", "refused", "cut"])
@run
async def test_fetches_of_keys(tmp_path: Path, kind: str, tls: bool) -> None:
    """Each fetch uses its own connection. Two fetches are at least `RETRY_S` apart."""
    files = certificate(tmp_path) if tls else None
    with plain_http(files) as port:
        agent = make_agent(reactor, str(files[0]) if files else "")
        url = f"http{'s' if tls else ''}://127.0.0.1:{port}/{kind}"
        assert await left_by(lambda: fetch(agent, url, reactor), FEWER // 5) <= NEW_CONNECTION
