from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from private_rabbitmq import free_port
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.selectreactor import SelectReactor

from benchmarks.certificate import make_certificate
from tests.kit.rows import each_row
from tests.test_clock import close
from towerws.config.certificates import TlsReactor
from towerws.config.load import load_all
from towerws.core.settings import LimitSettings
from towerws.listening import listen
from towerws.workers import worker
from towerws.workers.supervisor import _ReservingReactor
from towerws.workers.worker import DIVIDED, VARIABLE, Membership, SharingReactor, divide, worker_count

MEMBERSHIP = Membership(2, 3, "/run/a:b", 4711, 9051)
FLAGS = {"broker": "amqp://localhost", "auth": "tower", "tower-url": "http://tower.example"}


def test_a_worker_finds_its_place() -> None:
    """What the parent writes into the environment, the worker reads. A process without it is no worker."""
    assert Membership.from_environ({VARIABLE: MEMBERSHIP.to_text()}) == MEMBERSHIP
    assert Membership.from_environ({}) is None


def test_what_a_worker_makes_of_the_configuration() -> None:
    """It has a private admin port, no other one, and its share of the limits. It starts no workers of its own."""
    loaded = load_all({**FLAGS, "workers": "3", "monitor": "tcp:9052", "tower-calls": "20", "tower-password-calls": "2"}, {})
    own = MEMBERSHIP.loaded(loaded)
    assert (own.settings.workers, own.settings.monitor) == (1, "")
    assert own.settings.admin == r"unix:/run/a\:b/admin-2:mode=600"
    assert own.settings.limits.per_user == 334
    assert own.settings.tower is not None
    assert (own.settings.tower.calls, own.settings.tower.password_calls, own.settings.tower.sharers) == (7, 1, 3)
    assert own.settings.listen == loaded.settings.listen
    assert own.by_key == loaded.by_key


@each_row("count", [1, 2, 3, 7, 256])
def test_shares_are_rounded_up(count: int) -> None:
    """All shares together reach the limit, and exceed it by less than one for each worker. 0 has its own meaning, and stays."""
    limits = LimitSettings(connections=1000, per_address=1, per_user=999, half_open=10_000_000)
    share = divide(limits, count)
    for name in DIVIDED:
        limit, part = getattr(limits, name), getattr(share, name)
        assert limit <= part * count < limit + count
    assert share.accepts_per_s == limits.accepts_per_s
    assert divide(LimitSettings(), count).connections == 0
    assert {each.name for each in dataclasses.fields(LimitSettings)} == {*DIVIDED, "accepts_per_s"}


@each_row(
    ("cpu_max", "cpus"),
    [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("900000 100000", 4), ("", 4), ("x y", 4)],
)
def test_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_max: str, cpus: int) -> None:
    """`auto` is one for each CPU that the process may run on, within the limit of its control group."""
    file = tmp_path / "cpu.max"
    file.write_text(cpu_max)
    monkeypatch.setattr(worker, "CPU_LIMIT", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert worker_count(load_all({**FLAGS, "workers": "auto"}, {}).settings) == cpus
    assert worker_count(load_all({**FLAGS, "workers": "3"}, {}).settings) == 3


def test_the_reserved_port_is_free_for_workers_only() -> None:
    """The parent's socket keeps others away and gets no client. Workers share the port. A taken port is found, also a shared one."""
    reactor = SelectReactor()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(CannotListenError):
            _ReservingReactor(reactor).listenTCP(port, Factory(), interface="127.0.0.1")
    reserved = _ReservingReactor(reactor).listenTCP(port, Factory(), interface="127.0.0.1")
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass
    with pytest.raises(CannotListenError):
        reactor.listenTCP(port, Factory(), interface="127.0.0.1")
    ports = [SharingReactor(reactor).listenTCP(port, Factory(), interface="127.0.0.1") for _ in range(2)]
    with socket.create_connection(("127.0.0.1", port)):
        pass
    with pytest.raises(CannotListenError):
        _ReservingReactor(reactor).listenTCP(port, Factory(), interface="127.0.0.1")
    for opened in ports:
        opened.connectionLost(None)
    reserved.stopListening()
    close(reactor)


@each_row(
    "endpoint",
    [
        "tcp:{port}:interface=127.0.0.1",
        "tcp:{port}:interface=localhost",
        r"tcp6:{port}:interface=\:\:1",
        "haproxy:tcp:{port}:interface=127.0.0.1",
        "ssl:{port}:privateKey={folder}/key.pem:interface=127.0.0.1",
    ],
)
def test_each_kind_of_tcp_port_can_be_shared(tmp_path: Path, endpoint: str) -> None:
    """The parent reserves it, and several workers listen there."""
    make_certificate(tmp_path / "key.pem")
    reactor = SelectReactor()
    text = endpoint.format(port=free_port(), folder=tmp_path)
    opened: list[Any] = [listen(_ReservingReactor(reactor), "listen", text, Factory(), lambda: False)]
    opened += [listen(TlsReactor(SharingReactor(reactor)), "listen", text, Factory(), lambda: False) for _ in range(2)]
    opened[0].stopListening()
    for port in opened[1:]:
        port.connectionLost(None)
    close(reactor)
