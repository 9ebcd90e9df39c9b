from __future__ import annotations

import dataclasses
import os
import resource
import socket
from pathlib import Path
from typing import Any
from uuid import uuid4

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
from towerws.process import too_few_descriptors
from towerws.workers import worker
from towerws.workers.supervisor import _ReservingReactor
from towerws.workers.worker import DIVIDED, VARIABLE, Membership, SharingReactor, divide, memory_limits, worker_count

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


def test_a_worker_compares_its_share_with_its_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has its own descriptors. The sentence of a reload names the configured limit, too."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1000, 1000))
    for connections, said in (("2808", ""), ("2809", "limits.connections = 2809, of which 937 are a worker's: this process may open 1000")):
        own = MEMBERSHIP.loaded(load_all({**FLAGS, "workers": "3", "limits-connections": connections}, {}))
        assert " ".join(too_few_descriptors(own)).startswith(said)
        assert bool(list(too_few_descriptors(own))) is bool(said)


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


V2 = "0::/system.slice/towerws.service\n"
V1 = "4:memory:/docker/1\n3:cpuset:/docker/1\n2:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n0::/\n"
HERE = "system.slice/towerws.service"


@each_row(
    ("place", "files", "cpus"),
    [
        (V2, {f"{HERE}/cpu.max": "max 100000"}, 4),
        (V2, {f"{HERE}/cpu.max": "200000 100000"}, 2),
        (V2, {f"{HERE}/cpu.max": "150000 100000"}, 1),
        (V2, {f"{HERE}/cpu.max": "50000 100000"}, 1),
        (V2, {f"{HERE}/cpu.max": "900000 100000"}, 4),
        (V2, {f"{HERE}/cpu.max": ""}, 4),
        (V2, {f"{HERE}/cpu.max": "x y"}, 4),
        (V2, {f"{HERE}/cpu.max": "max 100000", "system.slice/cpu.max": "300000 100000"}, 3),
        (V2, {f"{HERE}/cpu.max": "200000 100000", "system.slice/cpu.max": "300000 100000"}, 2),
        (V2, {"cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/../other\n", {"cpu.max": "200000 100000"}, 2),
        (V1, {"cpu/docker/1/cpu.cfs_quota_us": "-1\n", "cpu/docker/1/cpu.cfs_period_us": "100000\n"}, 4),
        (V1, {"cpu/docker/1/cpu.cfs_quota_us": "200000\n", "cpu/docker/1/cpu.cfs_period_us": "100000\n"}, 2),
        (V1, {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        (V1, {"cpu/cpu.cfs_quota_us": "200000\n"}, 4),
        ("", {"cpu.max": "200000 100000"}, 4),
        (None, {}, 4),
    ],
)
def test_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str | None, files: dict[str, str], cpus: int) -> None:
    """`auto` is one for each CPU that the process may run on, within the limits of its control group and of those around it."""
    groups = tmp_path / uuid4().hex / "groups"
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    own = groups.parent / "self"
    groups.mkdir(parents=True, exist_ok=True)
    if place is not None:
        own.write_text(place)
    monkeypatch.setattr(worker, "CONTROL_GROUP", own)
    monkeypatch.setattr(worker, "CONTROL_GROUPS", groups)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert worker_count(load_all({**FLAGS, "workers": "auto"}, {}).settings) == cpus
    assert worker_count(load_all({**FLAGS, "workers": "3"}, {}).settings) == 3


@each_row(
    ("place", "files", "limits"),
    [
        (V2, {f"{HERE}/memory.max": "2147483648\n", "system.slice/memory.max": "max\n"}, [2 * 1024**3]),
        (V2, {f"{HERE}/memory.max": "200\n", "system.slice/memory.max": "100\n", "memory.max": "50\n"}, [200, 100, 50]),
        (V2, {f"{HERE}/memory.max": "x"}, []),
        (V1, {"memory/docker/1/memory.limit_in_bytes": "200\n", "memory/docker/memory.limit_in_bytes": "300\n"}, [200, 300]),
        (V1, {"cpu/docker/1/memory.limit_in_bytes": "200\n", "docker/1/memory.max": "1"}, []),
        (None, {"memory.max": "100"}, []),
    ],
)
def test_memory_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str | None, files: dict[str, str], limits: list[int]
) -> None:
    """They are those of the process's control group and of the groups around it, the inner one first."""
    groups = tmp_path / uuid4().hex / "groups"
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    own = groups.parent / "own"
    if place is not None:
        own.write_text(place)
    monkeypatch.setattr(worker, "CONTROL_GROUPS", groups)
    assert list(memory_limits(own)) == limits


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
