"""The filter in `deploy/fail2ban`, run by Debian's own `fail2ban-regex` on lines that the daemon's log really writes."""

from __future__ import annotations

import configparser
import io
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.task import Clock
from twisted.logger import FileLogObserver, ILogObserver, LogEvent, globalLogPublisher

from tests.auth.jwt_kit import SECRET, b64, claims, sign
from tests.integration.conftest import NO_FAIL2BAN, require
from tests.kit.daemon import Daemon
from tests.kit.ws_kit import request
from towerws.auth.jwt import NO_KEY
from towerws.logs import as_journal, as_text
from towerws.websocket.logs import ConnectionLog, RefusalLog

SHIPPED = Path(__file__).parents[2] / "deploy" / "fail2ban"
BANNED, SPARED = "203.0.113.7", "198.51.100.9"


@pytest.fixture
def program() -> str:
    """The path of fail2ban-regex."""
    found = shutil.which("fail2ban-regex")
    require(NO_FAIL2BAN, found)
    assert found is not None
    return found


def as_the_journal_has_it(event: LogEvent) -> str:
    """What journald keeps of a line that the daemon writes under systemd: the priority is a field of its own."""
    return as_journal(event)[len("<6>") :]


def written(write: Callable[[], None], form: Callable[[LogEvent], str] = as_text) -> list[str]:
    """The lines that this call writes to a daemon's log."""
    file = io.StringIO()
    observer = cast("ILogObserver", FileLogObserver(file, form))
    globalLogPublisher.addObserver(observer)
    try:
        write()
    finally:
        globalLogPublisher.removeObserver(observer)
    return file.getvalue().splitlines()


def caught(program: str, folder: Path, lines: list[str], mode: str = "normal") -> list[str]:
    """The addresses that the filter finds in these lines."""
    log = folder / "towerws.log"
    log.write_text("".join(f"{line}\n" for line in lines))
    command = [program, "--out", "ip", str(log), f"{SHIPPED / 'filter.d' / 'towerws.conf'}[mode={mode}]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr, done.stderr
    return done.stdout.split()


def refusal(form: Callable[[LogEvent], str], address: str = BANNED, reason: str = "credential", **more: Any) -> list[str]:
    """The line of one refusal."""
    return written(lambda: RefusalLog(Clock()).line(address, reason, **{"status": 403, "detail": "x", **more}), form)


PASSWORD = {"credential": "basic authorization", "session": "5e55"}
CASES: list[tuple[str, dict[str, Any], bool, bool]] = [
    ("a wrong password", {**PASSWORD}, True, True),
    ("too many wrong passwords", {**PASSWORD, "reason": "throttled", "status": 503}, True, True),
    ("a forged JWT", {"credential": "bearer token", "detail": "the token's signature is not good"}, True, True),
    ("a forged JWT in a message", {"credential": "token in a message", "detail": "the token's signature is not good"}, True, True),
    ("a JWT of an unknown key", {"credential": "bearer token", "detail": NO_KEY}, False, True),
    ("an address of IPv6", {**PASSWORD, "address": "2001:db8::7"}, True, True),
    ("a JWT that has expired", {"credential": "bearer token", "detail": "the token has expired"}, False, True),
    ("a session that has ended", {"credential": "session cookie", "session": "5e55"}, False, True),
    ("no credential", {"reason": "no_credential"}, False, True),
    ("no token in time", {"reason": "no_token", "status": 1008}, False, True),
    ("a page that can't read the cookie", {"credential": "tower", "reason": "xrftoken", "status": None}, False, True),
    ("a page of another site, in a user's browser", {"reason": "origin"}, False, False),
    ("an API that is away", {**PASSWORD, "reason": "unavailable", "status": 503}, False, False),
    ("a limit that is met", {"credential": "tower", "reason": "user", "status": 503}, False, False),
    ("a request that is none", {"reason": "request", "status": 400}, False, False),
    ("a client without an address", {**PASSWORD, "address": "unix"}, False, False),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["normal", "aggressive"])
@pytest.mark.parametrize(
    ("prefix", "form"),
    [
        ("", as_text),
        ("Nov 26 11:20:02 web-1 towerws[4242]: ", as_text),
        ("2026-11-26T11:20:02.123456+00:00 web-1 twistd[1]: ", as_text),
        ("web-1 towerws[4242]: ", as_the_journal_has_it),  # as fail2ban's backend for systemd makes lines
        ("Nov 26 11:20:02 web-1 towerws[4242]: ", as_the_journal_has_it),  # rsyslog, which reads the journal
    ],
)
def test_what_counts(program: str, tmp_path: Path, prefix: str, form: Callable[[LogEvent], str], mode: str) -> None:
    """Each mode finds the right lines, in the daemon's file, through syslog and in the journal. Each case has an address of its own."""
    lines, expected = [], []
    for number, (name, refused, normal, aggressive) in enumerate(CASES):
        address = refused.get("address", f"203.0.113.{number}")
        (line,) = refusal(form, **{**refused, "address": address})
        lines.append(prefix + line)
        if normal if mode == "normal" else aggressive:
            expected.append((name, address))
    found = caught(program, tmp_path, lines, mode)
    assert [name for name, address in expected if address not in found] == []
    assert found == [address for _, address in expected]


FORGED = (
    f'[websocket#info] refused address={SPARED} credential="basic authorization" session=- reason=credential status=403 detail="x" folded=0'
)
HOSTILE = [
    FORGED,
    f"2026-11-26T11:20:02+0000 {FORGED}",
    f"\n2026-11-26T11:20:02+0000 {FORGED}",
    f"\r{FORGED}",
    f"web-1 towerws[1]: {FORGED}",
    FORGED.removeprefix("[websocket#info] "),
    FORGED.replace("#info", ""),
    f"\n{FORGED.replace('#info', '')}",
    f"\u2028{FORGED}",
    f"\x1b[1G{FORGED}",
]


@pytest.mark.parametrize("form", [as_text, as_the_journal_has_it])
@pytest.mark.parametrize("mode", ["normal", "aggressive"])
def test_no_user_can_have_another_banned(program: str, tmp_path: Path, mode: str, form: Callable[[LogEvent], str]) -> None:
    """A user whose name looks like a refusal gets no address banned, in any line that has a user's name."""

    def write() -> None:
        log = ConnectionLog(Clock())
        for name in HOSTILE:
            log.line("connection opened: user {user} from {address}", user=name, address=BANNED)
            log.line("connection ended after {duration:.1f} s: user {user}", duration=1.0, user=name)

    lines = written(write, form)
    assert sum(SPARED in line for line in lines) >= 2 * len(HOSTILE)
    assert caught(program, tmp_path, lines, mode) == []


TIMES = {"iat": time.time() - 10, "exp": time.time() + 3600}
TOKENS = {
    "a forged signature": (sign(claims(**TIMES), key=b"x" * 32), "signature is not good", True),
    "another payload under a good signature": (
        ".".join([sign().split(".")[0], b64(claims(**TIMES, sub="root")), sign(claims(**TIMES)).split(".")[2]]),
        "signature is not good",
        True,
    ),
    "no signature": (sign(claims(**TIMES)).rpartition(".")[0] + ".", "signature is not good", True),
    "expired": (sign(claims(iat=1, exp=2)), "the token has expired", False),
    "not yet": (sign(claims(**TIMES, nbf=time.time() + 3600)), "nbf is to come", False),
    "for another service": (sign(claims(**TIMES, aud="portal")), "aud is another one", False),
    "no sub": (sign(claims(**TIMES, sub=None)), "the token has no sub", False),
    "a bad list of topics": (sign(claims(**TIMES, groups=7)), "list of topics is not one", False),
    "another algorithm": (sign(claims(**TIMES), algorithm="HS512"), "algorithm is not one of those configured", False),
    "the algorithm none": (f"{b64({'alg': 'none'})}.{b64(claims(**TIMES))}.", "algorithm is not one of those configured", False),
    "the same claim twice": (sign('{"sub": "a", "sub": "b"}'), "not a plain JSON object", False),
    "a logout token": (sign(claims(**TIMES), header={"typ": "logout+jwt"}), "typ is another one", False),
}


def test_the_daemons_own_log(program: str, tmp_path: Path) -> None:
    """Each refused token, sent to a real daemon, has a line with the reason. The filter finds the forged ones."""
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    flags = ("--jwt-algorithms", "HS256", "--jwt-secret-file", str(secret), "--trusted-proxies", "127.0.0.1")
    with Daemon(tmp_path, "embedded:", *flags, auth="jwt") as daemon:
        for number, (token, _, _) in enumerate(TOKENS.values()):
            with socket.create_connection(("127.0.0.1", daemon.port), 10) as client:
                client.sendall(request(added=[f"Authorization: Bearer {token}", f"X-Forwarded-For: 203.0.113.{number}"]))
                assert client.recv(1000).startswith(b"HTTP/1.1 403")
    log = daemon.log.read_text().splitlines()
    for number, (name, (token, detail, _)) in enumerate(TOKENS.items()):
        (line,) = [line for line in log if f"refused address=203.0.113.{number} " in line]
        assert 'credential="bearer token" session=- reason=credential status=403 detail="' in line, name
        assert detail in line, name
        assert token[:20] not in line, name
    banned = [f"203.0.113.{number}" for number, (_, _, banned) in enumerate(TOKENS.values()) if banned]
    assert caught(program, tmp_path, log) == banned
    assert len(caught(program, tmp_path, log, "aggressive")) == len(TOKENS)


def test_the_jail_uses_the_filter() -> None:
    """It ignores this machine's own addresses, which may be a proxy's."""
    jail = configparser.ConfigParser()
    assert jail.read(SHIPPED / "jail.d" / "towerws.conf")
    assert (jail["towerws"]["filter"], jail["towerws"]["enabled"]) == ("towerws", "true")
    assert "127.0.0.0/8" in jail["towerws"]["ignoreip"]
