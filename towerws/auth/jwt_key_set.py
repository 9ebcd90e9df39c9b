"""Fetches keys from a key set's URL, caches them, and fetches them again when a token names an unknown key.

    no keys, or too old  -- fetched -->  fresh  -- max-age -->  old  -- stale_s -->  too old
                                           ^------ fetched ------'

Old keys are fetched again before they are used. If that fails, the old keys are used and counted. At most one fetch is in flight.
After a failed fetch there is none for a few seconds.

An unknown `kid` causes a fetch, at most one in 10 s, since any client can write a token with a `kid`. Until the next fetch the key
may be a new one, so the token is unavailable and not refused. The answer to a fetch that had begun before the token came may be
older than the key. So the token waits for the next fetch, too, or is unavailable: it waits for two fetches at most.

A key may lack a `kid` (RFC 7517 section 4.5). Such keys are tried if no key has the token's `kid`.

A bad signature causes such a fetch, too. An issuer whose keys have no `kid`, or always the same one, may have replaced the key. Until
the next fetch such a token is unavailable if a key without a `kid` was tried. Otherwise it is refused: the key that it names is known.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import SplitResult

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed, ResponseNeverReceived
from twisted.web.http_headers import Headers

from towerws.auth import http_client
from towerws.auth.base import Refused, Unavailable, drop_frames, run
from towerws.auth.jwt_keys import Key, read_jwk
from towerws.auth.jwt_token import read_object
from towerws.core.client_address import is_loopback
from towerws.core.errors import ConfigError, TowerwsError

MAX_KEYS = 100
MAX_TRIED = 8  # if no key has the token's kid: each key costs up to 100 microseconds
DEFAULT_AGE_S = 300
"""How long keys are fresh if the answer has no max-age."""
MIN_AGE_S = 60
"""How long keys are fresh at least, even with a lower max-age."""
RETRY_S = 5
"""Shortest time between a failed fetch and the next one."""
UNKNOWN_KID_S = 10
"""Shortest time between two fetches because of tokens that no known key verifies."""


class Jwks:
    """A `KeySource` that fetches. `get` sends one request. The clock is the reactor's (monotonic).

    The max-age of an answer is bounded by `MIN_AGE_S` and `max_age_s`. Old keys that can't be fetched again are used for `stale_s`.
    `counts` has how often keys were fetched, could not be fetched, were used when old, and how often an unknown `kid` had to wait.
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
        self._shown_url = f"{url.scheme}://{url.hostname}{url.path}"  # without the query, which may contain a secret
        self._algorithms = tuple(algorithms)
        self._clock = clock
        self._max_age_s = max_age_s
        self._stale_s = stale_s
        self._keys: tuple[Key, ...] = ()
        self._fetched_at = self._fresh_until = self._usable_until = float("-inf")
        self._age_s = 0  # max-age of the last answer, before it is bounded
        self._next_try = self._next_unknown = float("-inf")
        self._failing = False
        self._stopped = False
        self._generation = 0  # how often `read_again` was called
        self._fetching: Deferred[None] | None = None
        self._begun = self._ended = 0
        """The number of the newest fetch, and of the newest one that has ended."""
        self._waiting: list[Deferred[None]] = []
        self.counts = {"fetched": 0, "failed": 0, "stale": 0, "limited": 0}

    def find(self, algorithm: str, kid: str | None) -> Deferred[Sequence[Key]]:
        """Fires with the keys that may have signed such a token. Fails with `Unavailable` if they aren't known now."""
        return run(self._find(algorithm, kid))

    def find_newer(self, algorithm: str, kid: str | None) -> Deferred[Sequence[Key]]:
        """Fetch the keys again, if that is allowed now. Fires with those that may have signed a token with a bad signature."""
        return run(self._find_newer(algorithm, kid))

    def knows(self, algorithm: str, kid: str | None) -> bool:
        """Whether the key set has a key with this `kid`, or any key for the algorithm if `kid` is None."""
        return bool(self._named(algorithm, kid))

    def take_over(self, before: Jwks) -> None:
        """Use the keys of another source with the same URL and algorithms. The keys are fetched again before the next use.

        If that fails, the keys are used no longer than either source would use them: a reload that lowers a bound counts for them, too.
        """
        self._keys, self._failing = before._keys, before._failing
        self._fetched_at, self._age_s = before._fetched_at, before._age_s
        self._usable_until = min(before._usable_until, self._fetched_at + self._fresh_s() + self._stale_s)

    def read_again(self) -> None:
        """Fetch the keys before the next use, however new they are. If that fails, the old ones are used as long as they may be.

        A fetch in flight may get the old keys. So another one follows it, and its callers wait for both.
        """
        self._generation += 1
        self._fresh_until = self._next_try = self._next_unknown = float("-inf")

    def stop(self) -> Deferred[None]:
        """Cancel a fetch in flight. Its callers get `Unavailable`. Fires when that is done."""
        self._stopped = True
        if self._fetching is not None:
            self._fetching.cancel()
        return succeed(None)

    async def _find(self, algorithm: str, kid: str | None) -> Sequence[Key]:
        begun, fetched = self._begun, self.counts["fetched"]
        if self._clock.seconds() >= self._fresh_until:
            await self._refresh()
        self._check_age(fetched)
        found = self._matching(algorithm, kid)
        while not found and self._ended <= begun and self._may_refresh:
            if self._fetching is None:
                if self._clock.seconds() < self._next_unknown:
                    self.counts["limited"] += 1
                    raise Unavailable("the token's key is not known, and the keys were fetched a moment ago")
                self._next_unknown = self._clock.seconds() + UNKNOWN_KID_S
            await self._refresh()
            self._check_age(fetched)
            found = self._matching(algorithm, kid)
        if not found and (self._failing or self._ended <= begun):
            raise Unavailable("the token's key is not known, and the keys can't be fetched just now")
        return found

    async def _find_newer(self, algorithm: str, kid: str | None) -> Sequence[Key]:
        before = self._matching(algorithm, kid)
        named = all(key.kid is not None for key in before)
        if not before or (kid is None and named):  # no key at all, or a token that does not name one of the named keys
            return ()
        begun = self._begun
        while self._ended <= begun and self._may_refresh:
            if self._fetching is None:
                if self._clock.seconds() < self._next_unknown:
                    if named:
                        return ()
                    self.counts["limited"] += 1
                    raise Unavailable("the token's key may be a new one, and the keys were fetched a moment ago")
                self._next_unknown = self._clock.seconds() + UNKNOWN_KID_S
            await self._refresh()
            if (found := self._matching(algorithm, kid)) != before:
                return found
        if not named and (self._failing or self._ended <= begun):
            raise Unavailable("the token's key may be a new one, and the keys can't be fetched just now")
        return self._matching(algorithm, kid)

    def _check_age(self, fetched: int) -> None:
        """Fail with `Unavailable` if the keys are too old. `fetched` is the count of fetches when the token came.

        Keys that were fetched after that can be used for this token. Their max-age does not matter.
        """
        if self.counts["fetched"] > fetched:
            return
        now = self._clock.seconds()
        if now >= self._usable_until:
            raise Unavailable("the keys of tokens can't be fetched just now")
        if now >= self._fresh_until:
            self.counts["stale"] += 1

    def _matching(self, algorithm: str, kid: str | None) -> Sequence[Key]:
        found = self._named(algorithm, kid)
        if kid is None and len(found) > MAX_TRIED:
            raise Refused(f"the token must have a kid: there are more than {MAX_TRIED} keys")
        if not found:
            without = [key for key in self._keys if key.algorithm == algorithm and key.kid is None]
            return without if len(without) <= MAX_TRIED else []
        return found

    def _named(self, algorithm: str, kid: str | None) -> Sequence[Key]:
        return [key for key in self._keys if key.algorithm == algorithm and kid in (None, key.kid)]

    def _refresh(self) -> Deferred[None]:
        """Fires with None when a fetch has ended, with or without success. Fires at once if it is too early for the next one."""
        if not self._may_refresh:
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._remove_waiter)
        self._waiting.append(waiter)
        if self._fetching is None:
            self._begun += 1
            fetching = Deferred.fromCoroutine(self._fetch())
            self._fetching = None if fetching.called else fetching
        return waiter

    @property
    def _may_refresh(self) -> bool:
        """Whether a fetch is in flight, or may begin."""
        return not self._stopped and (self._fetching is not None or self._clock.seconds() >= self._next_try)

    def _remove_waiter(self, waiter: Deferred[None]) -> None:
        if waiter in self._waiting:  # otherwise its callback is about to be called
            self._waiting.remove(waiter)

    async def _fetch(self) -> None:
        generation = -1
        while generation != self._generation and not self._stopped:
            generation = self._generation
            try:
                fetched = await self._get()
                self._use(fetched, generation)
            except Exception as error:  # noqa: BLE001 - any error means no new keys, and the callers learn that
                self._failed(Failure(error))
                drop_frames(error)
        self._fetching, self._ended = None, self._begun
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.called:  # one that an earlier callback cancelled was called already
                waiter.callback(None)

    def _use(self, fetched: Fetched, generation: int) -> None:
        self._keys = _read_set(fetched.body, self._algorithms)
        self._age_s = DEFAULT_AGE_S if fetched.max_age_s is None else fetched.max_age_s
        self._fetched_at = self._clock.seconds()
        fresh_until = self._fetched_at + self._fresh_s()
        if generation == self._generation:
            self._fresh_until = fresh_until
        self._usable_until = fresh_until + self._stale_s
        self.counts["fetched"] += 1
        if self._failing:
            self._failing = False
            self._log.info("the keys of tokens could be fetched again from {url}", url=self._shown_url)

    def _fresh_s(self) -> float:
        return min(max(self._age_s, MIN_AGE_S), self._max_age_s)

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
    """Return a reason that helps an operator, with no text from the server."""
    if failure.check(FetchError):
        return str(failure.value)
    inner = getattr(failure.value, "reasons", None)  # twisted.web wraps the error that ended the connection
    value = inner[0].value if inner else failure.value
    return type(value).__name__


DEADLINE_S = 2  # the web UI of AWX waits 3 s for an answer to its handshake
MAX_BODY_BYTES = 256 * 1024

_HEADERS = Headers({"User-Agent": ["towerws"], "Accept": ["application/jwk-set+json, application/json"]})
_max_age = re.compile(r"(?:^|[,\s])max-age=\"?([0-9]{1,9})\b", re.IGNORECASE).search


class FetchError(TowerwsError):
    """The key set could not be fetched. The text says why, and repeats nothing of the answer."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer's body, and its max-age in seconds (None if it has none)."""

    body: bytes = field(repr=False)
    max_age_s: int | None


def check_key_set_url(url: str) -> SplitResult:
    """Return the parts of the URL. `ConfigError` unless it is https, or http to this machine, and has no password."""
    try:
        parts = http_client.split_url(url)
    except ValueError as error:
        raise ConfigError(f"jwt.jwks_url: {error}") from None
    if parts is None or not (host := parts.hostname):
        raise ConfigError(f"jwt.jwks_url = {http_client.shown_url(url)}: must be https://host/path")
    if "@" in parts.netloc:
        raise ConfigError("jwt.jwks_url: must not hold a user or a password")
    if parts.scheme != "https" and not (parts.scheme == "http" and (host == "localhost" or is_loopback(host))):
        raise ConfigError(f"jwt.jwks_url = {parts.scheme}://{host}…: must be https; http is for 127.0.0.1, ::1 and localhost only")
    return parts


def make_agent(reactor: Any, ca_file: str) -> Any:
    """Return the agent for `fetch`. The authorities in `ca_file` (PEM) replace the system's. `ConfigError` if it can't be used."""
    trust = http_client.read_authorities("jwt.jwks_ca_file", ca_file) if ca_file else None
    return http_client.make_agent(reactor, http_client.make_pool(reactor, 0, 0), trust, DEADLINE_S)


def fetch(agent: Any, url: str, clock: Any) -> Deferred[Fetched]:
    """GET the URL, within the deadline. Fails with `FetchError`, or with Twisted's error about the connection."""
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
