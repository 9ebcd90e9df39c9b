"""Revocations between real daemons on a real RabbitMQ: which connections end, where, and what the answer says of failures."""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import jwt
import pika
import pytest
from pika import exceptions as pika_exceptions
from private_rabbitmq import PrivateRabbit
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.kit.daemon import DEADLINE_S, SUBPROTOCOL, Daemon, publish_all

SECRET = "0123456789abcdef0123456789abcdef"
OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
pytestmark = pytest.mark.timeout(180)


def until(what: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    give_up = time.monotonic() + 3 * DEADLINE_S
    while not what():
        assert time.monotonic() < give_up, f"not within {3 * DEADLINE_S} s"
        time.sleep(0.02)  # between two polls


class TwoDaemons:
    """Two daemons that read one log, and users with tokens. Names on the broker are the test's own, unless `own_names` is off."""

    def __init__(self, folder: Path, url: str, *flags: str, own_names: bool = True, listening: bool = True) -> None:
        self.url = url
        self._listening = listening
        self.exchange = f"t{secrets.token_hex(4)}" if own_names else "towerws"
        names = ("--exchange", self.exchange, "--stream", f"{self.exchange}.s") if own_names else ()
        secret = folder / "secret"
        secret.write_text(SECRET)
        jwt_flags = ("--jwt-algorithms", "HS256", "--jwt-secret-file", str(secret))
        self.daemons = [Daemon(folder, url, *names, *jwt_flags, *flags, auth="jwt") for _ in range(2)]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for daemon in self.daemons:
                stack.enter_context(daemon)
                if self._listening:
                    self.until_listening(daemon)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def enter(self, daemon: Daemon, user: str, *, v1: bool = False) -> ClientConnection:
        """A client that has subscribed."""
        token = jwt.encode({"sub": user, "exp": time.time() + 600, "groups": ["job_events.*"]}, SECRET, "HS256")
        headers = {"Authorization": f"Bearer {token}"}
        protocols = [SUBPROTOCOL] if v1 else None
        client = self._stack.enter_context(connect(daemon.url, additional_headers=headers, subprotocols=protocols, open_timeout=DEADLINE_S))
        client.recv(DEADLINE_S)
        client.send(json.dumps({"groups": {"job_events": [1]}}))
        client.recv(DEADLINE_S)
        return client

    def publish(self, payload: object) -> None:
        """Publish an event to all clients."""
        publish_all(self.url, [("job_events.1", json.dumps(payload).encode())], self.exchange)

    @staticmethod
    def control(daemon: Daemon) -> dict[str, Any]:
        """The control exchange's part of a daemon's status."""
        return dict(daemon.get("/status")[1]["control"])

    def until(self, daemon: Daemon, what: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until that part meets the condition."""
        until(lambda: what(self.control(daemon)))

    def until_listening(self, daemon: Daemon) -> None:
        """Wait until the daemon follows the others, and its binding is proven."""
        self.until(daemon, lambda control: bool(control["state"] == "listening" and control["proven"]))

    def until_all_known(self) -> None:
        """Wait until each daemon has received the other's marker."""
        for daemon in self.daemons:
            self.until(daemon, lambda control: len(control["others"]) == len(self.daemons) - 1)


def ask(daemon: Daemon, revocation: object) -> tuple[int, Any]:
    """Send `POST /disconnect`."""
    return daemon.ask("POST", "/disconnect", json.dumps(revocation).encode())


def end(client: ClientConnection) -> tuple[int, str]:
    """Read until the server closes. Returns the code and the reason."""
    with pytest.raises(ConnectionClosed) as ended:
        list(client)
    assert ended.value.rcvd is not None
    return ended.value.rcvd.code, ended.value.rcvd.reason


def hears(client: ClientConnection, payload: object) -> bool:
    """Whether this is the next event that arrives."""
    return bool(json.loads(client.recv(DEADLINE_S)) == payload)


ENDED = (1008, "credential no longer valid")


def snippet(word: str) -> str:
    """The example in docs/operations.md that contains this word."""
    (found,) = [block for block in re.findall(r"^```\w+\n(.*?)^```$", OPERATIONS, re.MULTILINE | re.DOTALL) if word in block]
    return str(found)


def documented_revoke() -> Callable[..., None]:
    """The function that docs/operations.md gives to producers."""
    namespace: dict[str, Any] = {}
    exec(snippet("def revoke"), namespace)
    found: Callable[..., None] = namespace["revoke"]
    return found


@pytest.mark.parametrize("consume", ["stream", "queue"])
def test_one_request_ends_a_users_connections_everywhere(tmp_path: Path, rabbit: PrivateRabbit, consume: str) -> None:
    """A POST to one daemon closes all of that user's connections on both, with 1008. Other users notice nothing."""
    with TwoDaemons(tmp_path, rabbit.url, "--consume", consume) as two:
        here, there = two.daemons
        ada = [two.enter(here, "ada"), two.enter(there, "ada"), two.enter(there, "ada", v1=True)]
        bob = [two.enter(here, "bob"), two.enter(there, "bob")]
        assert ask(here, {"user": "ada"}) == (202, {"disconnected": 1, "others_told": True})
        assert [end(client) for client in ada] == [ENDED] * 3
        two.publish({"n": 1})
        assert all(hears(client, {"n": 1}) for client in bob)
        two.until(here, lambda control: bool(control["own"]))
        assert [two.control(here)[name] for name in ("received", "own", "bad", "announced", "not_announced")] == [1, 1, 0, 1, 0]
        assert [two.control(there)[name] for name in ("received", "own", "bad", "announced")] == [1, 0, 0, 0]
        assert [daemon.get("/status")[1]["connections"]["revoked"] for daemon in two.daemons] == [1, 2]
        again = two.enter(there, "ada")  # the token is still valid: towerws ends connections, not tokens
        assert ask(here, {"user": "nobody"}) == (202, {"disconnected": 0, "others_told": True})
        two.publish({"n": 2})
        assert all(hears(client, {"n": 2}) for client in (*bob, again))


def test_one_message_of_any_producer(tmp_path: Path, rabbit: PrivateRabbit) -> None:
    """The documented example ends a session's and a user's connections on both daemons. Garbage before it is only counted."""
    revoke = documented_revoke()
    with TwoDaemons(tmp_path, rabbit.url) as two:
        here, there = two.daemons
        control = f"{two.exchange}.control"
        bob = [two.enter(here, "bob"), two.enter(there, "bob")]
        ada = [two.enter(here, "ada"), two.enter(there, "ada")]
        bodies = [
            b"",
            b"canary",
            b'{"user": "ada", "canary": 1}',
            b'{"user": ["ada"]}',
            b"\xff\xfe",
            b"[" * 5000,
            b'{"user": "ada"}' + b" " * 9000,
        ]
        publish_all(rabbit.url, [("", body) for body in bodies] + [("job_events.1", b'{"n": 0}')], control)
        for daemon in two.daemons:
            two.until(daemon, lambda control: bool(control["bad"] == len(bodies) + 1))
            log = daemon.log.read_text()
            assert log.count("control message of ") == 1
            assert "canary" not in log
        two.publish({"n": 1})
        assert all(hears(client, {"n": 1}) for client in (*ada, *bob))

        revoke(rabbit.url, {"user": "ada"}, control)
        assert [end(client) for client in ada] == [ENDED] * 2
        eve, carol = two.enter(here, "eve"), two.enter(there, "carol")
        shown = re.search(r"user eve from .* session (\w+),", here.log.read_text())
        assert shown is not None
        revoke(rabbit.url, {"session": shown[1]}, control)
        assert end(eve) == ENDED
        two.publish({"n": 2})
        assert all(hears(client, {"n": 2}) for client in (*bob, carol))


@pytest.mark.parametrize("consume", ["stream", "queue"])
def test_after_a_restart_of_the_broker(tmp_path: Path, rabbit_to_kill: PrivateRabbit, consume: str) -> None:
    """While the broker is down the answer says that the other daemons were not told. After its restart all is as before."""
    node = rabbit_to_kill
    with TwoDaemons(tmp_path, node.url, "--consume", consume) as two:
        here, there = two.daemons
        node.save()
        bob = [two.enter(here, "bob"), two.enter(there, "bob")]
        ada = [two.enter(here, "ada"), two.enter(there, "ada")]
        assert ask(here, {"user": "nobody"}) == (202, {"disconnected": 0, "others_told": True})  # the publishing connection is open
        node.kill()
        status, answer = ask(here, {"user": "ada"})
        assert (status, answer["disconnected"], answer["others_told"]) == (503, 1, False)
        assert "connections were ended on this daemon only" in answer["error"]
        assert "guest:guest" not in answer["error"]
        assert end(ada[0]) == ENDED
        node.start()
        for daemon in two.daemons:
            daemon.wait_for("/readyz")
            two.until_listening(daemon)
        assert ask(here, {"user": "ada"}) == (202, {"disconnected": 0, "others_told": True})
        assert end(ada[1]) == ENDED
        documented_revoke()(node.url, {"user": "carol"}, f"{two.exchange}.control")
        two.until(there, lambda control: bool(control["received"] >= 2))
        two.publish({"n": 1})
        for client in bob:
            while not hears(client, {"n": 1}):
                pass


@contextmanager
def queue_that_refuses(url: str, exchange: str) -> Iterator[None]:
    """A queue at the exchange that accepts nothing, like a daemon's queue after it was stuck for long."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    arguments = {"x-max-length": 0, "x-overflow": "reject-publish"}
    name = channel.queue_declare("", exclusive=True, arguments=arguments).method.queue
    channel.queue_bind(name, exchange)
    yield
    connection.close()


def test_a_queue_that_is_full(tmp_path: Path, rabbit: PrivateRabbit) -> None:
    """The broker and the answer say that not every queue took the revocation. Daemons whose queue took it follow it."""
    with TwoDaemons(tmp_path, rabbit.url) as two:
        here, there = two.daemons
        ada = two.enter(there, "ada")
        with queue_that_refuses(rabbit.url, f"{two.exchange}.control"):
            status, answer = ask(here, {"user": "ada"})
            assert (status, answer["others_told"]) == (503, False)
            assert "did not put it into every queue" in answer["error"]
            with pytest.raises(pika_exceptions.NackError):
                documented_revoke()(rabbit.url, {"user": "nobody"}, f"{two.exchange}.control")
        assert end(ada) == ENDED
        assert ask(here, {"user": "ada"}) == (202, {"disconnected": 0, "others_told": True})


def test_a_broker_in_alarm(tmp_path: Path, rabbit: PrivateRabbit) -> None:
    """The broker accepts no publications. The answer says so in time, local connections end, and events are still consumed."""
    with TwoDaemons(tmp_path, rabbit.url) as two:
        here, there = two.daemons
        ada, bob = two.enter(here, "ada"), two.enter(there, "bob")
        rabbit.limit_memory("0.000001")
        try:
            status, answer = ask(here, {"user": "ada"})
            assert (status, answer["disconnected"], answer["others_told"]) == (503, 1, False)
            assert "alarm" in answer["error"]
            assert end(ada) == ENDED
            assert [daemon.get("/readyz")[0] for daemon in two.daemons] == [200, 200]
        finally:
            rabbit.limit_memory("0.4")
        until(lambda: ask(here, {"user": "nobody"})[0] == 202)
        two.publish({"n": 1})
        assert hears(bob, {"n": 1})
        assert [daemon.get("/status")[1]["source"]["failures"] for daemon in two.daemons] == [0, 0]


def documented_permissions(user: str) -> list[str]:
    """The three patterns that docs/operations.md gives to this user of the broker."""
    found = re.search(rf"^rabbitmqctl set_permissions -p / {user} '(.*)' '(.*)' '(.*)'$", OPERATIONS, re.MULTILINE)
    assert found is not None
    return list(found.groups())


def refusal(url: str, exchange: str, key: str, body: bytes) -> int:
    """The broker's error code when this user publishes there."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(pika_exceptions.ChannelClosedByBroker) as closed:
            channel.basic_publish(exchange, key, body)
        return int(closed.value.reply_code)
    finally:
        connection.close()


@pytest.fixture
def vhost(rabbit: PrivateRabbit) -> Iterator[Callable[[str, list[str]], str]]:
    """A virtual host of the test's own, and a maker of users in it. It gives the URL of a user with these permissions."""
    name = f"v{secrets.token_hex(4)}"
    rabbit.add_vhost(name)
    users: list[str] = []

    def add(user: str, permissions: list[str]) -> str:
        if f"{name}-{user}" not in users:
            users.append(f"{name}-{user}")
            rabbit.add_user(users[-1], "secret")
        rabbit.permit(f"{name}-{user}", *permissions, vhost=name)
        return f"amqp://{name}-{user}:secret@127.0.0.1:{rabbit.port}/{name}"

    yield add
    for user in users:
        rabbit.delete_user(user)
    rabbit.delete_vhost(name)


@pytest.mark.parametrize("consume", ["stream", "queue"])
def test_the_documented_permissions(tmp_path: Path, vhost: Callable[[str, list[str]], str], consume: str) -> None:
    """They suffice for the daemon and its markers, for a producer and for a revoker. Neither of these two can do the other's work."""
    daemon_url, producer, revoker = (vhost(user, documented_permissions(user)) for user in ("towerws", "producer", "revoker"))
    with TwoDaemons(tmp_path, daemon_url, "--consume", consume, own_names=False) as two:
        here, there = two.daemons
        ada, bob = two.enter(there, "ada"), two.enter(there, "bob")
        assert ask(here, {"user": "ada"}) == (202, {"disconnected": 0, "others_told": True})
        assert end(ada) == ENDED
        publish_all(producer, [("job_events.1", b'{"n": 1}')])
        assert hears(bob, {"n": 1})
        assert refusal(producer, "towerws.control", "", b'{"user": "bob"}') == 403
        assert refusal(revoker, "towerws", "job_events.1", b'{"n": 2}') == 403
        assert here.get("/readyz") == (200, {"ready": True, "state": "consuming"})
        documented_revoke()(revoker, {"user": "bob"})
        assert end(bob) == ENDED


def test_without_permission_for_the_control_exchange(tmp_path: Path, vhost: Callable[[str, list[str]], str]) -> None:
    """Events flow, and status, log and answer name the missing permission. Once it is granted, it is used."""
    granted = documented_permissions("towerws")
    without = [pattern.replace(r"towerws\.control|", "") for pattern in granted]
    assert without != granted
    with TwoDaemons(tmp_path, vhost("towerws", without), own_names=False, listening=False) as two:
        here, _ = two.daemons
        two.until(here, lambda control: bool(control["state"] == "paused"))
        # RabbitMQ 4 puts the missing permission between the two.
        assert re.search(r"403 ACCESS_REFUSED - (configure )?access to exchange 'towerws\.control'", two.control(here)["reason"])
        assert here.get("/readyz")[0] == 200
        ada = two.enter(here, "ada")
        publish_all(vhost("producer", documented_permissions("producer")), [("job_events.1", b'{"n": 1}')])
        assert hears(ada, {"n": 1})
        status, answer = ask(here, {"user": "ada"})
        assert (status, answer["disconnected"], answer["others_told"]) == (503, 1, False)
        assert "404 NOT_FOUND" in answer["error"] or "403 ACCESS_REFUSED" in answer["error"]
        assert end(ada) == ENDED
        vhost("towerws", granted)
        two.until_listening(here)
        assert ask(here, {"user": "ada"}) == (202, {"disconnected": 0, "others_told": True})
        log = here.log.read_text()
        assert log.count("control exchange towerws.control: 403") == 1
        assert "listening to control exchange towerws.control again" in log
        assert here.get("/status")[1]["source"]["failures"] == 0


def test_a_daemon_that_may_not_read_its_queue(tmp_path: Path, rabbit: PrivateRabbit, vhost: Callable[[str, list[str]], str]) -> None:
    """It binds no queue that it can't read: such a queue would fill up, and then no daemon could publish a revocation."""
    granted = documented_permissions("towerws")
    configure, write, read = granted
    limited = [configure, write, read.replace(r"|amq\.gen-.*", "")]
    assert limited != granted
    url = vhost("towerws", granted)
    with TwoDaemons(tmp_path, url, own_names=False) as two, Daemon(tmp_path, vhost("limited", limited)) as third:
        two.until(third, lambda control: bool(control["failures"] >= 3))
        assert re.search(r"403 ACCESS_REFUSED - (read )?access to queue 'amq\.gen-", two.control(third)["reason"])
        assert len(rabbit.queues_at("towerws.control", url.rsplit("/", 1)[1])) == 2
        assert third.log.read_text().count("control exchange towerws.control: 403") == 1
        assert third.get("/readyz")[0] == 200
        assert ask(two.daemons[0], {"user": "ada"}) == (202, {"disconnected": 0, "others_told": True})


@contextmanager
def channel_of(url: str) -> Iterator[Any]:
    """An operator's channel."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        yield connection.channel()
    finally:
        connection.close()


def unbind(rabbit: PrivateRabbit, exchange: str, *queues: str) -> None:
    """Remove their bindings inside the broker: no other connection may do that with an exclusive queue.

    One call removes all and looks: a daemon that notices binds its queue again within seconds.
    """
    names = ", ".join(f'<<"{queue}">>' for queue in queues)  # bound with an empty key, which AMQP replaces with the queue's name
    code = (
        f'From = rabbit_misc:r(<<"/">>, exchange, <<"{exchange}">>), To = fun (Name) -> rabbit_misc:r(<<"/">>, queue, Name) end, '
        f'[ok = rabbit_binding:remove({{binding, From, Name, To(Name), []}}, <<"test">>) || Name <- [{names}]], '
        f"[Name || Name <- [{names}], Found <- rabbit_binding:list_for_source(From), element(4, Found) =:= To(Name)]"
    )
    assert rabbit.eval(code) == "[]"


def damage_exchange(two: TwoDaemons, rabbit: PrivateRabbit, kind: str | None) -> None:
    """Delete the control exchange. With a kind, declare it again as that."""
    with channel_of(rabbit.url) as channel:
        channel.exchange_delete(f"{two.exchange}.control")
        if kind is not None:
            channel.exchange_declare(f"{two.exchange}.control", kind, durable=True)


@pytest.mark.parametrize("damage", ["exchange deleted", "exchange deleted and made again", "bindings removed", "queues deleted"])
def test_the_topology_of_control_is_watched(tmp_path: Path, rabbit: PrivateRabbit, damage: str) -> None:
    """A missing object is declared again within a marker interval, all credentials are checked again, and revocations are followed."""
    with TwoDaemons(tmp_path, rabbit.url) as two:
        here, there = two.daemons
        two.until_all_known()
        exchange = f"{two.exchange}.control"
        before = two.control(there)
        ada, bob = two.enter(there, "ada"), two.enter(there, "bob")
        queues = rabbit.queues_at(exchange)
        assert len(queues) == 2
        if damage.startswith("exchange"):
            damage_exchange(two, rabbit, "fanout" if damage.endswith("again") else None)
        elif damage == "bindings removed":
            unbind(rabbit, exchange, *queues)
        else:
            for queue in queues:
                rabbit.ctl("-q", "delete_queue", queue)
        for daemon in two.daemons:
            two.until(daemon, lambda control: bool(control["unbound"] + control["failures"]))
            two.until_listening(daemon)
        assert len(rabbit.queues_at(exchange)) == 2
        assert ask(here, {"user": "ada"}) == (202, {"disconnected": 0, "others_told": True})
        assert end(ada) == ENDED
        two.publish({"n": 1})
        assert hears(bob, {"n": 1})
        log = there.log.read_text()
        if damage == "queues deleted":
            assert two.control(there)["failures"] == before["failures"] + 1
        else:
            assert log.count("was not bound to it any more") == two.control(there)["unbound"] == 1
        assert there.get("/status")[1]["source"]["failures"] == 0


def test_a_daemon_that_is_not_bound_is_named(tmp_path: Path, rabbit: PrivateRabbit) -> None:
    """A daemon without its binding gets no revocations until its next marker, and the answer names it. Then all is as before."""
    with TwoDaemons(tmp_path, rabbit.url) as two:
        here, there = two.daemons
        two.until_all_known()
        exchange = f"{two.exchange}.control"
        ada = two.enter(there, "ada")
        assert ask(here, {"user": "nobody"}) == (202, {"disconnected": 0, "others_told": True})
        (other,) = two.control(here)["others"]
        assert other["name"].endswith(f":{there.pid}")
        mine = queue_of(rabbit, exchange, there.pid)
        unbind(rabbit, exchange, mine)
        status, answer = ask(here, {"user": "ada"})
        if two.control(there)["unbound"] == 0 or status == 503:  # otherwise its marker was sent in that very moment
            assert (status, answer["others_told"]) == (503, False)
            assert answer["no_answer"] == [{"id": other["id"], "name": other["name"]}]
            assert f"no answer within 5 s from {other['name']}" in answer["error"]
        two.until(there, lambda control: bool(control["unbound"] == 1 and control["proven"]))
        assert "and a later one did" in there.log.read_text()
        assert ask(here, {"user": "ada"}) == (202, {"disconnected": 0, "others_told": True})
        assert end(ada) == ENDED
        assert two.control(here)["unbound"] == 0


def queue_of(rabbit: PrivateRabbit, exchange: str, pid: int) -> str:
    """The queue at the exchange that the process with this id consumes."""
    connections = rabbit.ctl("-q", "list_connections", "pid", "client_properties", "--no-table-headers").splitlines()
    owners = {line.split("\t")[0] for line in connections if f':{pid}"' in line}
    queues = rabbit.ctl("-q", "list_queues", "name", "owner_pid", "--no-table-headers").splitlines()
    bound = rabbit.queues_at(exchange)
    (found,) = [name for name, owner in (line.split("\t")[:2] for line in queues) if owner in owners and name in bound]
    return str(found)


def test_an_exchange_of_another_type(tmp_path: Path, rabbit: PrivateRabbit) -> None:
    """Status and log name the existing and the expected type, and events flow. Once it is repaired, revocations are followed."""
    with TwoDaemons(tmp_path, rabbit.url) as two:
        here, there = two.daemons
        two.until_all_known()
        ada = two.enter(there, "ada")
        damage_exchange(two, rabbit, "topic")
        for daemon in two.daemons:
            two.until(daemon, lambda control: bool(control["state"] == "paused"))
            reason = two.control(daemon)["reason"]
            assert reason.startswith("406 ")
            assert "received 'fanout' but current is 'topic'" in reason
            assert daemon.get("/readyz")[0] == 200
        status, answer = ask(here, {"user": "ada"})
        assert (status, answer["others_told"]) == (503, False)
        two.publish({"n": 1})
        assert hears(ada, {"n": 1})
        damage_exchange(two, rabbit, "fanout")
        for daemon in two.daemons:
            two.until_listening(daemon)
        assert ask(here, {"user": "ada"}) == (202, {"disconnected": 0, "others_told": True})
        assert end(ada) == ENDED


def test_passive_and_no_exchange(tmp_path: Path, rabbit: PrivateRabbit) -> None:
    """A daemon that may not declare reports the missing exchange. When an operator has declared it, the daemon binds by itself."""
    with TwoDaemons(tmp_path, rabbit.url) as two:
        names = ("--exchange", two.exchange, "--stream", f"{two.exchange}.s", "--passive")
        with Daemon(tmp_path, rabbit.url, *names) as third:
            two.until_listening(third)
            for daemon in two.daemons:
                assert daemon.stop() == 0
            damage_exchange(two, rabbit, None)
            two.until(third, lambda control: bool(control["state"] == "paused"))
            assert two.control(third)["reason"].startswith("404 ")
            assert "with passive set towerws creates nothing" in two.control(third)["reason"]
            with channel_of(rabbit.url) as channel:
                channel.exchange_declare(f"{two.exchange}.control", "fanout", durable=True)
            two.until_listening(third)
            assert ask(third, {"user": "ada"}) == (202, {"disconnected": 0, "others_told": True})


def test_daemons_that_stop_and_daemons_that_die(tmp_path: Path, rabbit: PrivateRabbit) -> None:
    """A daemon that stopped properly is not waited for. A killed one is, and is named, while its last marker is valid."""
    with TwoDaemons(tmp_path, rabbit.url) as two:
        here, there = two.daemons
        two.until_all_known()
        there.stop()
        two.until(here, lambda control: control["others"] == [])
        assert ask(here, {"user": "ada"}) == (202, {"disconnected": 0, "others_told": True})
        there.start()
        two.until_listening(there)
        two.until_all_known()
        (other,) = two.control(here)["others"]
        there.kill()
        status, answer = ask(here, {"user": "ada"})
        assert (status, answer["others_told"]) == (503, False)
        assert answer["no_answer"] == [{"id": other["id"], "name": other["name"]}]
        until(lambda: ask(here, {"user": "ada"}) == (202, {"disconnected": 0, "others_told": True}))


def test_a_daemon_that_may_not_write(tmp_path: Path, vhost: Callable[[str, list[str]], str]) -> None:
    """It follows revocations, and reports that its binding is not proven and that it can't tell the others. With the right, it is."""
    granted = documented_permissions("towerws")
    configure, write, read = granted
    readonly = [configure, write.replace(r"towerws\.control|", ""), read]
    assert readonly != granted
    revoker = vhost("revoker", documented_permissions("revoker"))
    with TwoDaemons(tmp_path, vhost("towerws", readonly), own_names=False, listening=False) as two:
        here, _ = two.daemons
        two.until(here, lambda control: bool(control["state"] == "listening" and "403" in str(control["reason"])))
        assert "binding not proven" in two.control(here)["reason"]
        ada, bob = two.enter(here, "ada"), two.enter(here, "bob")
        status, answer = ask(here, {"user": "ada"})
        assert (status, answer["disconnected"], answer["others_told"]) == (503, 1, False)
        assert "403" in answer["error"]
        assert end(ada) == ENDED
        documented_revoke()(revoker, {"user": "bob"})
        assert end(bob) == ENDED
        assert here.log.read_text().count("binding not proven") == 1


class Api(BaseHTTPRequestHandler):
    """A Tower with one user, 7, and a table of sessions."""

    sessions: set[str]
    asked: list[str]
    release: threading.Event

    def do_GET(self) -> None:
        """http.server calls this."""
        self.asked.append(self.path)
        known = any(f"sessionid={session}" in self.headers.get("Cookie", "") for session in self.sessions)
        user = {"id": 7, "type": "user", "username": "ada", "is_superuser": False, "is_system_auditor": False}
        body = json.dumps({"count": 1, "next": None, "previous": None, "results": [user]} if known else {"detail": "no"}).encode()
        self.release.wait(DEADLINE_S)
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Log nothing."""


def test_what_another_daemon_has_kept(tmp_path: Path, rabbit: PrivateRabbit) -> None:
    """A daemon without a connection of that user drops its cached answer, and refuses a handshake whose check is pending."""

    class OwnApi(Api):
        sessions, asked, release = {"k1", "k2", "k3"}, [], threading.Event()

    name = f"t{secrets.token_hex(4)}"
    with ThreadingHTTPServer(("127.0.0.1", 0), OwnApi) as server, ExitStack() as stack:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        stack.callback(thread.join, DEADLINE_S)
        stack.callback(server.shutdown)
        flags = ("--exchange", name, "--stream", f"{name}.s", "--tower-url", f"http://127.0.0.1:{server.server_port}")
        here, there = (stack.enter_context(Daemon(tmp_path, rabbit.url, *flags, auth="tower")) for _ in range(2))
        for daemon in (here, there):
            until(lambda: bool(daemon.get("/status")[1]["control"]["state"] == "listening"))  # noqa: B023 - called at once

        def enter(session: str) -> int:
            try:
                with connect(there.url, additional_headers={"Cookie": f"sessionid={session}"}, open_timeout=DEADLINE_S):
                    return 101
            except InvalidStatus as refused:
                return refused.response.status_code

        OwnApi.release.set()
        assert (enter("k1"), enter("k2")) == (101, 101)
        OwnApi.asked.clear()
        assert (enter("k1"), enter("k2")) == (101, 101)
        assert OwnApi.asked == []
        OwnApi.sessions.discard("k1")
        OwnApi.release.clear()
        OwnApi.asked.clear()
        under_way: list[int] = []
        handshake = threading.Thread(target=lambda: under_way.append(enter("k3")))
        handshake.start()
        until(lambda: bool(OwnApi.asked))
        assert ask(here, {"user": 7}) == (202, {"disconnected": 0, "others_told": True})
        until(lambda: bool(there.get("/status")[1]["control"]["received"]))
        OwnApi.release.set()
        handshake.join(DEADLINE_S)
        assert under_way == [403]
        assert there.get("/status")[1]["connections"]["refused_for"] == {"revoked": 1}
        assert (enter("k1"), enter("k2")) == (403, 101)
