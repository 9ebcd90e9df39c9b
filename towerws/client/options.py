"""The parameters of `connect`, checked before anything connects. Plain Python."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

from towerws.client.items import ClientError

_is_plain = re.compile("[!-~]+").fullmatch


class Token(NamedTuple):
    """A token, and when it ends (seconds since 1970). For a JSON Web Token the client reads the end from the token."""

    token: str
    expires_at: float | None = None


TokenSource = str | Callable[[], str | Token | Awaitable[str | Token | None] | None]


@dataclass(frozen=True, slots=True)
class StateChange:
    """The connection's new state. `user` is the user whom the server recognised, None for an anonymous client.

    `reason` says why the state is `waiting` or `closed`. It is None after a call of `close`. `retry_s` is the time until the next attempt.
    """

    state: Literal["connecting", "open", "waiting", "closed"]
    user: int | str | None
    reason: ClientError | None = None
    retry_s: float | None = None


class Store(Protocol):
    """Keeps the position, so that a program resumes there after a restart. Both methods may return awaitables."""

    def get(self) -> Any:
        """Return the kept position, or None."""

    def set(self, position: str, /) -> Any:
        """Keep a position: opaque text of at most 256 characters."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `connect`. docs/python-client.md describes them. Raises `ValueError` or `TypeError` for a wrong one."""

    token: TokenSource | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    xrftoken: Callable[[], str | None] | None = None
    store: Store | None = None
    onstate: Callable[[StateChange], object] | None = None
    onerror: Callable[[ClientError], object] | None = None
    ssl: Any = None
    proxy: str | Literal[True] | None = None
    user_agent: str | None = None
    retry_min_s: float = 0.5
    retry_max_s: float = 20
    connect_s: float = 20
    answer_s: float = 30
    ping_s: float = 20
    pong_s: float = 10
    save_s: float = 0.25
    queue_bytes: int = 4 * 1024**2

    def __post_init__(self) -> None:
        for name in ("retry_min_s", "retry_max_s", "connect_s", "answer_s", "ping_s", "pong_s", "save_s", "queue_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} is {type(value).__name__}: it must be a number")
            if not (0 < value < math.inf):
                raise ValueError(f"{name} is {value}: it must be above 0, and finite")
        for name in ("onstate", "onerror", "xrftoken"):
            if (value := getattr(self, name)) is not None and not callable(value):
                raise TypeError(f"{name} is {type(value).__name__}: it must be a function")
        if not (self.token is None or isinstance(self.token, str) or callable(self.token)):
            raise TypeError(f"token is {type(self.token).__name__}: it must be text, or a function that returns it")
        if isinstance(self.token, str):
            check_token(self.token)
        if self.store is not None and not (callable(getattr(self.store, "get", None)) and callable(getattr(self.store, "set", None))):
            raise TypeError(f"store is {type(self.store).__name__}: it must have the methods get and set")


def check_token(text: str) -> str:
    """Return the token if it can be sent in a header. Otherwise raise `ValueError`, whose text does not repeat the token."""
    if _is_plain(text) is None:
        raise ValueError("the token must be printable ASCII without spaces, and not empty")
    return text


def checked_url(url: str) -> str:
    """Return the websocket's URL: `https:` becomes `wss:`. Raise `TypeError` or `ValueError` with the rule for anything else."""
    if not isinstance(url, str):
        raise TypeError(f"url is {type(url).__name__}: it must be text like wss://host/websocket/")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"url can't be read ({error}): it must be like wss://host/websocket/") from None
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in {"ws", "wss"} or not parts.hostname or "#" in url or parts.username is not None or port == 0:
        raise ValueError("url must be like wss://host/websocket/, without a user, a fragment or port 0")
    if _is_plain(url) is None:
        raise ValueError("url must be ASCII without spaces: write other characters as %C3%A4, and a host's name in its xn-- form")
    return parts._replace(scheme=scheme).geturl()
