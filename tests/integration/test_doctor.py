"""`towerws doctor` against real parts, healthy ones and broken ones: it finds each fault, and names what to change."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pika
import pytest
from click.testing import CliRunner
from private_rabbitmq import PrivateRabbit, free_port

from tests.config.test_certificates import pair
from tests.integration.authority import Authority
from tests.integration.conftest import NO_NGINX, require
from tests.integration.tower_api import OAUTH, Api, serve_tower
from tests.kit.daemon import Daemon
from tests.kit.forwarder import Forwarder
from tests.kit.nginx import Nginx, nginx_binary
from tests.kit.proxy_process import adapted
from tests.kit.rows import each_row
from towerws.cli import main
from towerws.config.load import load
from towerws.core.settings import MIB
from towerws.doctor import broker as doctor_broker
from towerws.doctor import daemon as doctor_daemon
from towerws.doctor.broker import permission_patterns
from towerws.doctor.examination import PROBLEMS, WARNINGS
from towerws.workers import worker

PASSWORD = "canary-passw0rd"
VHOST = "doctor"

Found = dict[str, list[dict[str, str]]]


def ask(*arguments: str) -> tuple[int, Found]:
    """Run the doctor. Returns the exit code, and the findings by area and check."""
    result = CliRunner().invoke(main, ["doctor", "--json", *arguments])
    assert result.exit_code != 2, result.output
    assert "canary" not in result.output
    answer = json.loads(result.stdout)
    assert answer["exit"] == result.exit_code
    found: Found = {}
    for finding in answer["findings"]:
        found.setdefault(f"{finding['area']} {finding['check']}", []).append(finding)
    return result.exit_code, found


def expect(found: Found, name: str, level: str, text: str = "", change: str = "") -> None:
    """Check that there is a finding of this level with these words."""
    matching = [
        each for each in found.get(name, []) if (each["level"], text in each["text"], change in each["change"]) == (level, True, True)
    ]
    assert matching, f"no {level} {name} with {text!r} and {change!r} among {json.dumps(found, indent=1)}"


def levels(found: Found, area: str) -> set[str]:
    """The levels of an area's findings."""
    return {each["level"] for findings in found.values() for each in findings if each["area"] == area}


# the broker


@pytest.fixture(scope="module")
def broker(rabbit: PrivateRabbit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PrivateRabbit, Daemon]]:
    """The session's node with a virtual host and a daemon of our own, and a user who may do what a daemon must."""
    rabbit.add_vhost(VHOST)
    for user in ("doctor", "limited"):
        rabbit.add_user(user, PASSWORD)
    grant(rabbit, "doctor", *needed())
    with Daemon(tmp_path_factory.mktemp("doctor"), broker_url(rabbit)) as daemon:
        yield rabbit, daemon


def needed() -> tuple[str, str, str]:
    """The permissions that the doctor names for the default names."""
    settings = load({"auth": "open", "broker": "amqp://h"}, {}).broker
    assert settings is not None
    return permission_patterns(settings)


def grant(rabbit: PrivateRabbit, user: str, configure: str, write: str, read: str) -> None:
    """Set the permissions of a user."""
    rabbit.permit(user, configure, write, read, vhost=VHOST)


def broker_url(rabbit: PrivateRabbit, user: str = f"doctor:{PASSWORD}", vhost: str = VHOST) -> str:
    """Where the daemon connects."""
    return f"amqp://{user}@127.0.0.1:{rabbit.port}/{vhost}"


def flags(daemon: Daemon) -> list[str]:
    """The flags that lead to a daemon's admin port."""
    return ["--auth", "open", "--admin", f"tcp:{daemon.admin_port}:interface=127.0.0.1"]


def test_the_permissions_are_those_of_the_guide() -> None:
    """The command that the doctor prints is the one of docs/operations.md."""
    guide = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert "rabbitmqctl set_permissions -p / towerws '{}' '{}' '{}'".format(*needed()) in guide


def test_a_broker_that_is_well(broker: tuple[PrivateRabbit, Daemon]) -> None:
    """With exactly the permissions of docs/operations.md everything about the broker is in order, in stream and in queue mode."""
    rabbit, daemon = broker
    for mode in ("auto", "queue"):
        code, found = ask(*flags(daemon), "--broker", broker_url(rabbit), "--consume", mode)
        assert levels(found, "broker") <= {"ok", "skipped"}, found
        assert code in {0, WARNINGS}  # as root, and with more connections than memory for all, it warns
        expect(found, "broker permissions", "ok", "all")
        expect(found, "broker delivery", "ok", "ms after it was published")
    expect(found, "daemon ready", "ok")
    expect(found, "daemon descriptors", "ok", "the daemon may open")
    code, found = ask(*flags(daemon), "--broker", broker_url(rabbit))
    expect(found, "broker clock", "ok", "within 10 s")
    expect(found, "broker replicas", "ok", "towerws.events")
    expect(found, "broker replicas", "skipped", "rabbitmq-streams stream_status -p doctor towerws.events")


OWN = "amq\\.gen-.*"
ALL = f"^(towerws|towerws\\.control|towerws\\.events|amq\\.default|{OWN})$"


@each_row(
    ("rights", "lacks"),
    [
        (("^$", ALL, ALL), "configure on towerws, configure on towerws.control, configure on towerws.events"),
        (("^(towerws|towerws\\.control|towerws\\.events)$", ALL, ALL), "configure, write or read on amq.gen-*"),
        ((ALL, f"^(towerws|towerws\\.events|amq\\.default|{OWN})$", ALL), "write on towerws.control"),
        ((ALL, f"^(towerws\\.control|towerws\\.events|amq\\.default|{OWN})$", ALL), "write on towerws"),
        ((ALL, f"^(towerws|towerws\\.control|amq\\.default|{OWN})$", ALL), "write on towerws.events"),
        ((ALL, ALL, f"^(towerws\\.control|towerws\\.events|{OWN})$"), "read on towerws"),
        ((ALL, ALL, f"^(towerws|towerws\\.control|{OWN})$"), "read on towerws.events"),
        (("^$", "^$", "^$"), "configure on towerws"),
    ],
)
def test_permissions_that_are_missing(broker: tuple[PrivateRabbit, Daemon], rights: tuple[str, str, str], lacks: str) -> None:
    """Each missing permission is a problem, with the command that grants it."""
    rabbit, daemon = broker
    grant(rabbit, "limited", *rights)
    code, found = ask(*flags(daemon), "--broker", broker_url(rabbit, f"limited:{PASSWORD}"))
    assert code == PROBLEMS
    command = "rabbitmqctl set_permissions -p doctor limited '{}' '{}' '{}'".format(*needed())
    expect(found, "broker permissions", "problem", lacks, command)


def test_without_markers_straight_to_the_stream(broker: tuple[PrivateRabbit, Daemon]) -> None:
    """The daemon works without `write` on amq.default, but proves less: a warning. The clock can't be asked then."""
    rabbit, daemon = broker
    grant(rabbit, "limited", ALL, f"^(towerws|towerws\\.control|towerws\\.events|{OWN})$", ALL)
    _, found = ask(*flags(daemon), "--broker", broker_url(rabbit, f"limited:{PASSWORD}"))
    expect(found, "broker markers", "warning", "prove less", "amq\\.default")
    expect(found, "broker clock", "unknown", "amq.default")
    expect(found, "broker permissions", "ok")


@each_row(
    ("arguments", "check", "level", "text", "change"),
    [
        (["--stream-max-age-s", "7200"], "stream", "problem", "3600s", "set stream_max_age_s"),
        (["--stream-segment-bytes", "8MiB"], "stream", "problem", "x-stream-max-segment", "set stream_segment_bytes"),
        (["--exchange", "towerws.control", "--control-exchange", "other"], "exchange", "problem", "fanout", "choose another name"),
        (["--stream", "none"], "stream", "unknown", "does not exist yet", "start the daemon"),
        (["--stream", "none", "--passive"], "stream", "problem", "does not exist, and with passive", "declare it"),
        (["--broker", "amqp://doctor:canary@127.0.0.1:PORT/doctor"], "login", "problem", "Login was refused", "authenticate_user"),
        (["--broker", f"amqp://doctor:{PASSWORD}@127.0.0.1:PORT/nowhere"], "login", "problem", "nowhere", "check the vhost"),
        (["--broker", f"amqp://doctor:{PASSWORD}@127.0.0.1:PORT"], "login", "problem", "refused", "set_permissions"),
        (["--broker", "amqp://h@127.0.0.1:9"], "connection", "problem", "connection refused", "127.0.0.1"),
        (["--broker", "amqp://h@127.0.0.1:ADMIN", "--attempt-s", "0.5"], "connection", "problem", "no answer in time", "management port"),
        (["--broker", "amqps://h@127.0.0.1:PORT"], "connection", "problem", "TLS", "speaks TLS"),
        (["--broker", "amqp://h@nowhere.invalid"], "connection", "problem", "can't be resolved", "nowhere.invalid"),
    ],
)
def test_a_broker_that_is_set_up_wrong(
    broker: tuple[PrivateRabbit, Daemon], arguments: list[str], check: str, level: str, text: str, change: str
) -> None:
    """Wrong arguments of the stream, wrong names and wrong addresses are named with the option to change."""
    rabbit, daemon = broker
    ports = {"PORT": str(rabbit.port), "ADMIN": str(daemon.admin_port)}
    for name, port in ports.items():
        arguments = [each.replace(name, port) for each in arguments]
    _, found = ask(*flags(daemon), "--broker", broker_url(rabbit), *arguments)
    expect(found, f"broker {check}", level, text, change)


def test_a_stream_that_is_not_bound(broker: tuple[PrivateRabbit, Daemon]) -> None:
    """Where no marker arrives through the exchange, that is proven by one that was published after it."""
    rabbit, daemon = broker
    with _guest(rabbit) as connection:
        channel = connection.channel()
        channel.exchange_declare("unbound", "topic", durable=True)
        channel.exchange_declare("unbound.control", "fanout", durable=True)
        names = ["--exchange", "unbound", "--broker", f"amqp://guest:guest@127.0.0.1:{rabbit.port}/{VHOST}"]
        _, found = ask(*flags(daemon), *names)
        expect(found, "broker delivery", "problem", "nothing is bound to unbound", "start the daemon")
        channel.queue_declare("elsewhere", exclusive=True)
        channel.queue_bind("elsewhere", "unbound", "#")
        code, found = ask(*flags(daemon), *names)
        expect(found, "broker delivery", "problem", "towerws.events is not bound to unbound", "routing key #")
        assert code == PROBLEMS


def _guest(rabbit: PrivateRabbit) -> Any:
    rabbit.permit("guest", ".*", ".*", ".*", vhost=VHOST)
    return pika.BlockingConnection(pika.URLParameters(f"amqp://guest:guest@127.0.0.1:{rabbit.port}/{VHOST}"))


@each_row(("shift_s", "text"), [(60, "behind"), (-60, "ahead of")], monkeypatch=pytest.MonkeyPatch.context)
def test_the_brokers_clock(broker: tuple[PrivateRabbit, Daemon], monkeypatch: pytest.MonkeyPatch, shift_s: int, text: str) -> None:
    """A difference of a minute is found, in both directions, though the protocol has no message that asks for the time."""
    rabbit, daemon = broker

    class Shifted:
        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def time() -> float:
            return time.time() + shift_s

    monkeypatch.setattr(doctor_broker, "time", Shifted)
    _, found = ask(*flags(daemon), "--broker", broker_url(rabbit))
    expect(found, "broker clock", "warning", f"more than 10 s {text} this machine's", "NTP")


def test_a_brokers_certificate(broker: tuple[PrivateRabbit, Daemon], tmp_path: Path) -> None:
    """One that expires soon is a warning. One that is expired, or of an unknown authority, is a problem, each with its step."""
    rabbit, daemon = broker
    authority = Authority(tmp_path, "authority")

    def ask_with(days: int, ca: list[str]) -> Found:
        with Forwarder(rabbit.port, certificate=authority.sign(f"days{days}", days=days)) as tls:
            return ask(*flags(daemon), "--broker", f"amqps://doctor:{PASSWORD}@127.0.0.1:{tls.port}/{VHOST}", *ca)[1]

    trusted = ["--tls-ca", str(authority.file)]
    found = ask_with(5, trusted)
    expect(found, "broker certificate", "warning", "expires in 5 days", "renew it")
    expect(found, "broker delivery", "ok")
    expect(ask_with(90, trusted), "broker certificate", "ok", "for 90 days")
    expect(ask_with(-1, trusted), "broker connection", "problem", "expired", "renew the certificate")
    expect(ask_with(90, []), "broker connection", "problem", "can't be trusted", "tls_ca")


def test_a_broker_that_never_answers(broker: tuple[PrivateRabbit, Daemon]) -> None:
    """The deadline of the attempt ends the wait, and the other checks go on."""
    _, daemon = broker
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        _, found = ask(*flags(daemon), "--broker", f"amqp://h@127.0.0.1:{mute.getsockname()[1]}", "--attempt-s", "0.5")
    expect(found, "broker connection", "problem", "no answer in time")
    expect(found, "daemon ready", "ok")
    assert time.monotonic() - began < 20  # twice the sum of all deadlines


# the public URL


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without a broker that trusts a proxy on loopback."""
    with Daemon(tmp_path_factory.mktemp("public"), "embedded:", "--trusted-proxies", "127.0.0.1") as running:
        yield running


@contextmanager
def nginx(folder: Path, daemon: Daemon, *changes: tuple[str, str], **more: Any) -> Iterator[Nginx]:
    """nginx with the shipped configuration and these changes to its location."""
    require(NO_NGINX, nginx_binary())
    proxy = Nginx(folder, f"127.0.0.1:{daemon.port}", **more)
    location = folder / "snippets" / "towerws_location.conf"
    location.write_text(adapted(location.read_text(), *changes))
    with proxy:
        yield proxy


def public(daemon: Daemon, url: str, *arguments: str, idle: str = "0") -> tuple[int, Found]:
    """Ask through a URL."""
    return ask(*flags(daemon), "--trusted-proxies", "127.0.0.1", "--url", url, "--idle", idle, *arguments)


def test_the_shipped_configuration_of_nginx(tmp_path: Path, daemon: Daemon) -> None:
    """With deploy/nginx all is in order, over TLS too."""
    with nginx(tmp_path / "plain", daemon) as proxy:
        _, found = public(daemon, proxy.url, idle="0.3")
    assert levels(found, "public") == {"ok"}, found
    assert len([name for name in found if name.startswith("public ")]) == 8
    authority = Authority(tmp_path, "authority")
    with nginx(tmp_path / "tls", daemon, certificate=authority.sign("server", days=5)) as proxy:
        url = proxy.url.replace("wss:", "https:")
        _, found = public(daemon, url, "--url-ca", str(authority.file))
        expect(found, "public certificate", "warning", "expires in 5 days", "renew it")
        expect(found, "public client address", "ok", "counts this machine as 127.0.0.1")
        _, found = public(daemon, url)
        expect(found, "public connection", "problem", "can't be trusted", "--url-ca")


UPGRADE = ("    proxy_set_header Upgrade    $http_upgrade;\n", "")
LOCATION = "location ~ /websocket(/|/events|/history|/client[-.a-z0-9]*)?$"
FORWARDED = "    proxy_set_header X-Forwarded-For $remote_addr;\n"


@each_row(
    ("change", "check", "level", "text", "advice"),
    [
        (UPGRADE, "upgrade", "problem", "takes the Upgrade", "proxy_set_header Upgrade $http_upgrade"),
        (("$towerws_connection", '""'), "upgrade", "problem", "takes the Upgrade", "proxy_set_header Connection"),
        (("proxy_http_version 1.1", "proxy_http_version 1.0"), "upgrade", "problem", "505", "proxy_http_version 1.1"),
        (
            (LOCATION, "location = /websocket/"),
            "path",
            "problem",
            "/websocket is answered with 301",
            "location ~",
        ),
        (("Host $http_host", "Host $proxy_host"), "origin", "problem", "itself is refused", "Host $http_host"),
        ((FORWARDED, f'{FORWARDED}    proxy_set_header Origin "";\n'), "foreign origin", "problem", "not refused", "Origin"),
        (
            (FORWARDED, '    proxy_set_header X-Forwarded-For "";\n'),
            "client address",
            "problem",
            "sends no X-Forwarded-For",
            "$remote_addr",
        ),
        ((FORWARDED, ""), "forged address", "problem", "claim any address", "X-Forwarded-For $remote_addr"),
        (("$remote_addr;", "$proxy_add_x_forwarded_for;"), "forged address", "unknown", "itself in trusted_proxies", "elsewhere"),
        (
            (FORWARDED, f"{FORWARDED}    proxy_set_header Origin https://backend.invalid;\n"),
            "upgrade",
            "problem",
            "a proxy adds an Origin that the doctor did not send",
            "proxy_set_header Origin",
        ),
        ((FORWARDED, f"{FORWARDED}    deny all;\n"), "upgrade", "problem", "the proxy itself refuses the handshake (403)", "rules"),
        (
            (FORWARDED, f"{FORWARDED}    if ($http_origin ~ ^http://127) {{ return 403; }}\n"),
            "origin",
            "problem",
            "the proxy itself refuses a page of http://127.0.0.1",
            "rules",
        ),
        (("http://towerws", "http://127.0.0.1:9"), "upgrade", "problem", "no answer from towerws (502)", "start towerws"),
        (("proxy_read_timeout 75s", "proxy_read_timeout 1s"), "idle", "problem", "ended after 1.", "proxy_read_timeout 75s"),
    ],
)
def test_a_proxy_that_is_set_up_wrong(
    tmp_path: Path, daemon: Daemon, change: tuple[str, str], check: str, level: str, text: str, advice: str
) -> None:
    """Each fault of nginx's configuration is found, with the directive to write."""
    with nginx(tmp_path / "nginx", daemon, change) as proxy:
        code, found = public(daemon, proxy.url, idle="3" if check == "idle" else "0")
    expect(found, f"public {check}", level, text, advice)
    assert code == (PROBLEMS if level == "problem" else WARNINGS)


def test_a_proxy_that_is_not_trusted(tmp_path: Path) -> None:
    """The header arrives, and the daemon must not believe it: the line to add is named."""
    with Daemon(tmp_path, "embedded:") as untrusting, nginx(tmp_path / "nginx", untrusting) as proxy:
        _, found = public(untrusting, proxy.url)
        expect(found, "public client address", "problem", "not trusted", 'trusted_proxies = ["127.0.0.1"]')
        expect(found, "public forged address", "ok")
        _, found = public(untrusting, untrusting.url)
        expect(found, "public client address", "skipped", "no proxy is between")


def test_a_host_that_the_daemon_refuses(tmp_path: Path) -> None:
    """With `auth = open` on loopback, a daemon that trusts no proxy refuses each browser. The setting to add is named, and no token."""
    name = ("Host $http_host", "Host tower.example.com")
    with Daemon(tmp_path, "embedded:") as untrusting, nginx(tmp_path / "nginx", untrusting, name) as proxy:
        code, found = public(untrusting, proxy.url)
    expect(found, "public upgrade", "problem", "refuses the Host", 'trusted_proxies = ["127.0.0.1"]')
    assert "--token" not in json.dumps({name: found[name] for name in found if name.startswith("public ")})
    assert code == PROBLEMS


def test_a_proxy_that_refuses_other_sites(tmp_path: Path, daemon: Daemon) -> None:
    """A proxy may check the Origin itself. Then a page of another site is refused, too."""
    with nginx(tmp_path / "nginx", daemon, (FORWARDED, f"{FORWARDED}    if ($http_origin ~ invalid) {{ return 403; }}\n")) as proxy:
        _, found = public(daemon, proxy.url)
    expect(found, "public origin", "ok", "may connect")
    expect(found, "public foreign origin", "ok", "by the proxy itself (403)")


def test_a_proxy_that_buffers(daemon: Daemon) -> None:
    """nginx can't buffer a websocket, but others can: small answers that are held back are found."""
    with Forwarder(daemon.port, hold_bytes=65536, at_once=2) as proxy:
        code, found = public(daemon, f"ws://127.0.0.1:{proxy.port}/websocket/")
    expect(found, "public buffering", "problem", "did not come within 5 s", "buffering")
    assert code == PROBLEMS


def test_a_proxy_that_stops_in_between(daemon: Daemon) -> None:
    """After any number of handshakes, it is a problem of the connection: no fault of the doctor, and none of the admin port."""
    with Forwarder(daemon.port) as proxy:
        public(daemon, f"ws://127.0.0.1:{proxy.port}/websocket/", idle="0.1")
    assert proxy.accepted > 6
    for most in range(1, proxy.accepted):
        with Forwarder(daemon.port, most=most) as stopping:
            _, found = public(daemon, f"ws://127.0.0.1:{stopping.port}/websocket/", idle="0.1")
        expect(found, "public connection", "problem", "connection refused", "check that it runs")
        assert not {"public failed", "public deadline"} & found.keys(), found
        assert "unknown" not in {each["level"] for each in found.get("public client address", [])}, found


def test_a_daemon_that_wants_a_credential(tmp_path: Path, tower: tuple[type[Api], str]) -> None:
    """Without a token what needs an open session is not known. With one all is asked, and the token stays out of the output."""
    _, url = tower
    auth = ["--auth", "tower", "--tower-url", url]
    token = tmp_path / "token"
    token.write_text(OAUTH)
    with (
        Daemon(tmp_path, "embedded:", "--trusted-proxies", "127.0.0.1", *auth[2:], auth="tower") as running,
        nginx(tmp_path / "nginx", running) as proxy,
    ):
        arguments = [*auth, "--idle", "0.3", "--trusted-proxies", "127.0.0.1"]
        _, found = public(running, proxy.url, *arguments)
        for check in ("buffering", "idle"):
            expect(found, f"public {check}", "unknown", "token", "--token @FILE")
        for check in ("upgrade", "path", "origin", "foreign origin", "client address", "forged address"):
            expect(found, f"public {check}", "ok")
        _, found = public(running, proxy.url, *arguments, "--token", f"@{token}")
        assert levels(found, "public") == {"ok"}, found
        code, found = public(running, proxy.url, *arguments, "--token", "canary-wrong")
        expect(found, "public upgrade", "problem", "403", "check the token")
        assert code == PROBLEMS


def test_another_daemon_behind_the_url(tmp_path: Path, daemon: Daemon) -> None:
    """The admin port of one daemon knows nothing of handshakes with another: that is said, and nothing is made of it."""
    with Daemon(tmp_path, "embedded:") as other:
        _, found = ask(*flags(other), "--url", daemon.url, "--idle", "0")
    expect(found, "public client address", "unknown", "another daemon", "each daemon")
    _, found = ask("--auth", "open", "--admin", f"tcp:{free_port()}:interface=127.0.0.1", "--url", daemon.url, "--idle", "0")
    expect(found, "public client address", "unknown", "connection refused", "start the daemon")
    expect(found, "daemon running", "warning", "no daemon answers", "start the daemon")
    expect(found, "daemon descriptors", "unknown", "only while it runs")


def test_a_url_that_leads_elsewhere(daemon: Daemon) -> None:
    """A server that is no towerws, a wrong path, and nothing at all."""
    _, found = public(daemon, f"http://127.0.0.1:{daemon.admin_port}/")
    expect(found, "public upgrade", "problem", "answers 404", "lead to towerws")
    _, found = public(daemon, f"http://127.0.0.1:{daemon.port}/elsewhere")
    expect(found, "public upgrade", "problem", "the websocket is at /websocket/")
    _, found = public(daemon, "http://127.0.0.1:9")
    expect(found, "public connection", "problem", "connection refused")


# Tower's API


class _Late(Api):
    """Its clock is an hour ahead."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        """http.server calls this."""
        return super().date_time_string((timestamp or time.time()) + 3600)


class _Slow(Api):
    """It takes 0.3 s."""

    def do_GET(self) -> None:
        """http.server calls this."""
        time.sleep(0.3)
        super().do_GET()


class _Page(Api):
    """A page of something else."""

    def do_GET(self) -> None:
        """http.server calls this."""
        self._answer(200, [])


class _Migrating(Api):
    """AWX that migrates its database."""

    def do_GET(self) -> None:
        """http.server calls this."""
        self._answer(302, {})


def ask_tower(daemon: Daemon, url: str, *arguments: str) -> Found:
    """Ask about a Tower."""
    admin = f"tcp:{daemon.admin_port}:interface=127.0.0.1"
    return ask("--auth", "tower", "--tower-url", url, "--admin", admin, *arguments)[1]


def test_a_tower(tmp_path: Path, daemon: Daemon, tower: tuple[type[Api], str]) -> None:
    """Its address, latency and clock; with a token the user, and with a topic the object. A token in a file is never shown."""
    file = tmp_path / "token"
    file.write_text(f"{OAUTH}\n")
    _, url = tower
    found = ask_tower(daemon, url)
    for check in ("connection", "latency", "clock"):
        expect(found, f"tower {check}", "ok")
    expect(found, "tower identity", "skipped", "--token @FILE")
    found = ask_tower(daemon, url, "--token", f"@{file}", "--topic", "job_events.42")
    expect(found, "tower identity", "ok", "user 7's")
    expect(found, "tower object", "ok", "/api/v2/jobs/42/")
    expect(ask_tower(daemon, url, "--token", f"@{file}", "--topic", "job_events.43"), "tower object", "warning", "404", "role")
    (replaced := tmp_path / "towerws.toml").write_text("[groups.job_events]")
    found = ask_tower(daemon, url, "--token", f"@{file}", "--topic", "job_events.42", "--config", str(replaced))
    expect(found, "tower object", "skipped", "belong to no object")
    expect(found, "configuration advice", "warning", "groups.job_events replaces AWX's group", 'object_url = "/api/v2/jobs/{id}/"')
    expect(ask_tower(daemon, url, "--token", "canary-wrong"), "tower identity", "problem", "rejected", "expired")
    expect(ask_tower(daemon, "http://127.0.0.1:9"), "tower connection", "problem", "connection refused")


@each_row(
    ("kind", "arguments", "check", "level", "text"),
    [
        (_Late, [], "clock", "warning", "3600 s ahead"),
        (_Slow, ["--tower-deadline-s", "0.2"], "latency", "problem", "tower.deadline_s = 0.2"),
        (_Slow, ["--tower-deadline-s", "0.5"], "latency", "warning", "more than half"),
        (_Page, [], "connection", "problem", "not understood"),
        (_Migrating, [], "connection", "problem", "redirect"),
    ],
)
def test_a_tower_that_is_not_well(daemon: Daemon, kind: type[Api], arguments: list[str], check: str, level: str, text: str) -> None:
    """Clocks that differ, a slow API, and an address that is not the API's."""
    with serve_tower(kind) as (_, url):
        found = ask_tower(daemon, url, *arguments)
    if text == "3600 s ahead":
        assert any(3590 < int(each["text"].split(" is ")[1].split(" s ")[0]) < 3610 for each in found["tower clock"])
        text = "ahead of this machine's"
    expect(found, f"tower {check}", level, text)


# this machine


def test_the_memory_of_the_daemons_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`MemoryMax=` bounds the daemon's group, also if the doctor runs in a shell. Without a daemon the doctor's own group counts."""
    with Daemon(tmp_path, "embedded:") as daemon:
        files = {
            f"proc/{daemon.pid}/cgroup": "0::/system.slice/towerws.service\n",
            f"proc/{daemon.pid}/cmdline": "twistd\0-n\0towerws\0",
            "proc/self/cgroup": "0::/user.slice/session.scope\n",
            "groups/system.slice/towerws.service/memory.max": f"{300 * MIB}\n",
            "groups/system.slice/memory.max": "max\n",
            "groups/user.slice/session.scope/memory.max": "max\n",
            "groups/user.slice/memory.max": f"{100 * MIB}\n",
        }
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(doctor_daemon, "PROCESSES", tmp_path / "proc")
        monkeypatch.setattr(worker, "CONTROL_GROUPS", tmp_path / "groups")
        few = ("--limits-connections", "100")
        _, found = ask(*flags(daemon), *few)
        expect(found, "daemon memory", "ok", "Memory: 300 MiB, now used:")
        (tmp_path / f"proc/{daemon.pid}/cmdline").write_text("init\0")  # the daemon is in another container
        _, found = ask(*flags(daemon), *few)
        expect(found, "daemon memory", "problem", "Memory: 100 MiB, now used:")
    _, found = ask(*flags(daemon), *few)
    expect(found, "daemon memory", "problem", "Memory: 100 MiB", "give the daemon more memory")


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning", "ignore:.*cryptography's:DeprecationWarning")  # Twisted
def test_this_machine(tmp_path: Path) -> None:
    """Own certificates, keys, descriptors and memory are compared with the configuration, without a daemon."""
    authority = Authority(tmp_path, "authority")
    certificate, key = authority.sign("own", days=3)
    nowhere = f"tcp:{free_port()}:interface=127.0.0.1"
    listen = f"ssl:{free_port()}:privateKey={key}:certKey={certificate}:interface=127.0.0.1"
    code, found = ask("--auth", "open", "--admin", nowhere, "--listen", listen, "--limits-connections", "5000000")
    assert code == PROBLEMS
    expect(found, "configuration certificate", "warning", "expires in 3 days", "renew it")
    (folder := tmp_path / "folder" / "web").mkdir(parents=True)
    for name, content in zip(("cert.pem", "privkey.pem"), pair("a.example"), strict=True):
        (folder / name).write_bytes(content)
    _, of_folder = ask("--auth", "open", "--admin", nowhere, "--listen", rf"tls:{folder.parent}:{free_port()}:interface=\:\:1")
    expect(of_folder, "configuration certificate", "warning", f"{folder}/cert.pem) expires in", "renew it")
    expect(found, "daemon descriptors", "problem", "too few for limits.connections = 5000000", "LimitNOFILE=5000064")
    expect(found, "daemon memory", "problem", "5000000 clients take", "limits.connections")
    _, found = ask("--auth", "open", "--admin", nowhere, "--limits-connections", "100")
    expect(found, "daemon memory", "ok", "100 clients take")
    _, found = ask("--auth", "jwt", "--admin", nowhere, "--jwt-algorithms", "HS256", "--jwt-secret-file", str(tmp_path / "none"))
    expect(found, "configuration auth", "problem", "jwt.secret_file")
