"""What the tests of all clients share: tokens, and a network that breaks connections in each way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jwt

from tests.faults.proxy import DOWN, UP, FaultProxy
from tests.kit.daemon import Daemon

SECRET = "0123456789abcdef0123456789abcdef"


class Follower(Protocol):
    """A client that follows topics: `PyClient`, or one of `JsClient`."""

    @property
    def numbers(self) -> list[Any]:
        """The numbers in the payloads of its events."""

    @property
    def notices(self) -> list[str]:
        """The types of its other items."""

    @property
    def states(self) -> list[str]:
        """The states of its connection."""

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition is true."""

    def until_number(self, number: int) -> None:
        """Wait for the event with this number, or a later one."""


def jwt_flags(folder: Path) -> list[str]:
    """Make the secret's file. Returns the flags of a daemon that takes tokens of this secret, without leeway."""
    secret = folder / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    return ["--jwt-algorithms", "HS256", "--jwt-secret-file", str(secret), "--jwt-leeway-s", "0"]


def token(lasts_s: float = 3600, *, user: str = "anna", groups: Sequence[str] = ("job_events.*",), key: str = SECRET) -> str:
    """A token. No two are the same."""
    now = time.time()
    claims = {"sub": user, "iat": now, "exp": now + lasts_s, "groups": list(groups), "jti": str(time.monotonic_ns())}
    return jwt.encode(claims, key, "HS256")


def url_of(proxy: FaultProxy) -> str:
    """The websocket's URL through a proxy."""
    return f"ws://127.0.0.1:{proxy.port}/websocket/"


def faults_of(proxy: FaultProxy) -> list[Callable[[], object]]:
    """Each way in which it ends or freezes connections. `heal` lets new ones through."""

    def refuse() -> None:
        proxy.refuse()
        proxy.reset()

    return [
        proxy.reset,
        lambda: proxy.half_close(DOWN),
        lambda: proxy.half_close(UP),
        refuse,
        proxy.black_hole,
        lambda: proxy.black_hole(DOWN),
        lambda: proxy.black_hole(UP),
    ]


def through_faults(daemon: Daemon, proxy: FaultProxy, client: Follower, topic: str) -> None:
    """Break the client's connection in each way while events are published. It must notice, come back and miss nothing."""
    number = 0

    def publish() -> None:
        nonlocal number
        daemon.publish(topic, {"n": number})
        number += 1

    for fault in faults_of(proxy):
        publish()
        client.until_number(number - 1)
        before = client.states.count("waiting")
        fault()
        publish()
        client.until(lambda before=before: client.states.count("waiting") > before)  # type: ignore[misc]
        proxy.heal()
        publish()
        client.until_number(number - 1)
    assert client.numbers == list(range(number))
    assert set(client.notices) == {"subscribed", "recovered"}
