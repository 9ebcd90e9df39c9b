"""Keys from a key set's URL: kept as long as they are good, fetched anew when a token names one that is not there.

    no keys, or too old  -- fetched -->  fresh  -- max-age -->  old  -- stale_s -->  too old
                                           ^------ fetched ------'

Keys that are old are fetched anew before they are used; while that fails they serve on, and are counted. One call is under
way at most, and after a failed one none for a few seconds. An unknown `kid` asks for one call, at most one in 10 s, since
anybody can write a token with a `kid`. Until the next one nobody knows whether that key is a new one: unavailable, not bad.

One bounded GET of a key set: within a deadline, up to a size, no redirects, TLS verified.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import SplitResult, urlsplit

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed, ResponseNeverReceived
from twisted.web.http_headers import Headers

from towerws.auth import http_client
from towerws.auth.base import Refused, Unavailable, drop_frames, run
from towerws.auth.jwt_keys import Key, read_jwk
from towerws.auth.jwt_token import read_object
from towerws.core.errors import ConfigError, TowerwsError

MAX_KEYS = 100
MAX_TRIED = 8  # keys without a name: each one costs up to 100 microseconds
DEFAULT_AGE_S = 300
MIN_AGE_S = 60
RETRY_S = 5
UNKNOWN_KID_S = 10


class Jwks:
    """A `KeySource` that fetches. `get` makes one call; the clock is the reactor's (monotonic).

    Answers' max-age counts between `MIN_AGE_S` and `max_age_s`. `stale_s` is for how long keys serve that can't be fetched anew.
    `counts` has how often keys were fetched, could not be fetched, served though old, and how often an unknown `kid` had to wait.
    """

    _log = Logger()

    def __init__(
        self,
        get: Callable[[], Deferred[Fetched]],
        url: SplitResult,
        algorithms: Sequence[str],
        clock: Any,
        *,
        max_age_s: float,
        stale_s: float,
    ) -> None:
        self._get = get
        self._shown_url = f"{url.scheme}://{url.hostname}{url.path}"  # a query may hold what is nobody's business
        self._algorithms = tuple(algorithms)
        self._clock = clock
        self._max_age_s = max_age_s
        self._stale_s = stale_s
        self._keys: tuple[Key, ...] = ()
        self._fresh_until = self._usable_until = float("-inf")
        self._next_try = self._next_unknown = float("-inf")
        self._failing = False
        self._stopped = False
        self._fetching: Deferred[None] | None = None
        self._waiting: list[Deferred[None]] = []
        self.counts = {"fetched": 0, "failed": 0, "stale": 0, "limited": 0}

    def find(self, algorithm: str, kid: str | None) -> Deferred[Sequence[Key]]:
        """Fires with the keys that may have signed such a token; fails with `Unavailable` when that can't be known."""
        return run(self._find(algorithm, kid))

    def stop(self) -> Deferred[None]:
        """End a call under way; who waits for it is told `Unavailable`. Fires when that is done."""
        self._stopped = True
        if self._fetching is not None:
            self._fetching.cancel()
        return succeed(None)

    async def _find(self, algorithm: str, kid: str | None) -> Sequence[Key]:
        asked = self._clock.seconds() >= self._fresh_until
        if asked:
            await self._refresh()
        found = self._matching(algorithm, kid)
        if not found and not asked:
            if self._fetching is None and self._clock.seconds() < self._next_unknown:
                self.counts["limited"] += 1
                raise Unavailable("the token's key is not known, and the keys were fetched a moment ago")
            self._next_unknown = self._clock.seconds() + UNKNOWN_KID_S
            await self._refresh()
            found = self._matching(algorithm, kid)
        if not found and self._failing:
            raise Unavailable("the token's key is not known, and the keys can't be fetched just now")
        return found

    def _matching(self, algorithm: str, kid: str | None) -> Sequence[Key]:
        now = self._clock.seconds()
        if now >= self._usable_until:
            raise Unavailable("the keys of tokens can't be fetched just now")
        if now >= self._fresh_until:
            self.counts["stale"] += 1
        found = [key for key in self._keys if key.algorithm == algorithm and kid in (None, key.kid)]
        if kid is None and len(found) > MAX_TRIED:
            raise Refused(f"the token must have a kid: there are more than {MAX_TRIED} keys")
        return found

    def _refresh(self) -> Deferred[None]:
        """Fires, with nothing in any case, when a call has been tried; at once when it is too early for the next one."""
        if self._stopped or (self._fetching is None and self._clock.seconds() < self._next_try):
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._remove_waiter)
        self._waiting.append(waiter)
        if self._fetching is None:
            fetching = Deferred.fromCoroutine(self._fetch())
            self._fetching = None if fetching.called else fetching
        return waiter

    def _remove_waiter(self, waiter: Deferred[None]) -> None:
        if waiter in self._waiting:  # else its turn is just coming
            self._waiting.remove(waiter)

    async def _fetch(self) -> None:
        try:
            fetched = await self._get()
            self._use(fetched)
        except Exception as error:  # noqa: BLE001 - whatever it was, there are no new keys; who asks is told so
            self._failed(Failure(error))
            drop_frames(error)
        self._fetching = None
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.called:  # as one that left because of another one's turn is
                waiter.callback(None)

    def _use(self, fetched: Fetched) -> None:
        self._keys = _read_set(fetched.body, self._algorithms)
        age_s = DEFAULT_AGE_S if fetched.max_age_s is None else fetched.max_age_s
        now = self._clock.seconds()
        self._fresh_until = now + min(max(age_s, MIN_AGE_S), self._max_age_s)
        self._usable_until = self._fresh_until + self._stale_s
        self.counts["fetched"] += 1
        if self._failing:
            self._failing = False
            self._log.info("the keys of tokens could be fetched again from {url}", url=self._shown_url)

    def _failed(self, failure: Failure) -> None:
        self.counts["failed"] += 1
        self._next_try = self._clock.seconds() + RETRY_S
        if not self._failing and not self._stopped:
            self._log.warn("the keys of tokens can't be fetched from {url}: {reason}", url=self._shown_url, reason=_reason(failure))
        self._failing = True


def _read_set(body: bytes, algorithms: Sequence[str]) -> tuple[Key, ...]:
    members = None
    with contextlib.suppress(Refused):
        members = read_object(body).get("keys")
    if not isinstance(members, list) or len(members) > MAX_KEYS:
        raise FetchError(f"the answer is not a key set of up to {MAX_KEYS} keys")
    return tuple(key for member in members for key in read_jwk(member, algorithms))


def _reason(failure: Failure) -> str:
    """What an operator can do something with, and nothing that the other side wrote."""
    if failure.check(FetchError):
        return str(failure.value)
    inner = getattr(failure.value, "reasons", None)  # twisted.web wraps what ended the connection
    value = inner[0].value if inner else failure.value
    return type(value).__name__


DEADLINE_S = 2  # the web UI of AWX waits 3 s for an answer to its handshake
MAX_BODY_BYTES = 256 * 1024

_HEADERS = Headers({"User-Agent": ["towerws"], "Accept": ["application/jwk-set+json, application/json"]})
_max_age = re.compile(r"(?:^|[,\s])max-age=\"?([0-9]{1,9})\b", re.IGNORECASE).search


class FetchError(TowerwsError):
    """The key set could not be had. The text says why, and repeats nothing of what was answered."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer's body, and for how many seconds it says that it is good (None: it does not say)."""

    body: bytes = field(repr=False)
    max_age_s: int | None


def check_url(url: str) -> SplitResult:
    """The URL, taken apart. `ConfigError` unless it is https, or http to this machine, and holds no password."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or not re.fullmatch(r"[!-~]+", url):
        raise ConfigError("jwt.jwks_url: must be https://host/path")
    if "@" in parts.netloc:
        raise ConfigError("jwt.jwks_url: must not hold a user or a password")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise ConfigError(f"jwt.jwks_url = {parts.scheme}://{host}…: must be https; http is for 127.0.0.1, ::1 and localhost only")
    return parts


def make_agent(reactor: Any, ca_file: str) -> Any:
    """What GETs are sent with. The authorities in `ca_file` (PEM) replace the system's; `ConfigError` when it can't be used."""
    trust = None
    if ca_file:
        try:
            trust = http_client.authorities(ca_file)
        except (OSError, ValueError):
            raise ConfigError(f"jwt.jwks_ca_file = {ca_file!r}: must be a file with certificates in PEM") from None
    return http_client.make_agent(reactor, http_client.make_pool(reactor, 0, 0), trust, DEADLINE_S)


def fetch(agent: Any, url: str, clock: Any) -> Deferred[Fetched]:
    """GET the URL. Fails with `FetchError`, within the deadline, or with what Twisted says about the connection."""
    asked = http_client.get(agent, url, _HEADERS, MAX_BODY_BYTES).addCallbacks(_fetched, _name_failure)
    return asked.addTimeout(DEADLINE_S, clock, _raise_timeout)


def _fetched(response: http_client.Response) -> Fetched | Failure:
    if response.body is None:
        return Failure(FetchError(f"the answer is longer than {MAX_BODY_BYTES} bytes"))
    if response.status != 200:
        return Failure(FetchError(f"the answer was {response.status}, not 200"))
    said = ", ".join(response.headers.getRawHeaders("cache-control", []))
    if re.search(r"\bno-(?:store|cache)\b", said, re.IGNORECASE):
        return Fetched(response.body, 0)
    found = _max_age(said)
    return Fetched(response.body, int(found[1]) if found else None)


def _name_failure(failure: Failure) -> Failure:
    if failure.check(ResponseFailed) and not failure.check(ResponseNeverReceived):
        return Failure(FetchError("the answer was cut short"))
    return failure


def _raise_timeout(result: object, timeout: float) -> NoReturn:
    raise FetchError(f"no answer within {timeout:g} s")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
