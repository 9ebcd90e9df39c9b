"""The guard: sees to it that an open connection ends with the credential that opened it.

One timer for all: every second it closes what has expired, and asks anew about the credentials whose turn it is, each once,
however many connections it has. A user whose `control.limit_reached_<id>` comes by (AWX has just ended sessions of that user's)
is asked about at once: the guard listens to that topic itself, so that it costs other deliveries nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from towerws.auth.base import Method
from towerws.core.deadline_queue import DeadlineQueue
from towerws.core.errors import CloseReason
from towerws.core.hub import Hub
from towerws.core.identity import Identity, Registry
from towerws.core.requests import Request
from towerws.core.revocation import RecentRevocations, Revocation
from towerws.core.subscribers import Subscriber
from towerws.core.wire import TOWER

TICK_S = 1.0

CREDENTIALS_PER_TICK = 100
"""How many credentials are asked about in one second at most; the rest follow in the next."""

REMEMBERED_S = 300.0
"""For how long a revocation is remembered: no authentication is under way for longer (the most that `websocket.handshake_s` may be)."""

_NEVER = float("inf")


class MonitoredSession(Protocol):
    """What the guard needs of a session."""

    identity: Identity

    def recheck(self) -> None:
        """Ask anew whether its credential is good, and what it may listen to."""

    def revoke(self) -> None:
        """Close the connection: its credential is no longer valid."""


class CredentialMonitor:
    """Watches over the sessions. `wall` is the time in seconds since 1970; `revalidate_s` 0 asks about nobody by itself."""

    _log = Logger()

    def __init__(self, hub: Hub, auth: Method, reactor: IReactorTime, *, revalidate_s: float, wall: Callable[[], float]) -> None:
        self._hub = hub
        self._auth = auth
        self._reactor = reactor
        self._wall = wall
        self.revalidate_s = revalidate_s
        self._registry: Registry[MonitoredSession] = Registry()
        self._watchers: dict[str, Subscriber] = {}
        self._expiring: dict[MonitoredSession, tuple[float, float]] = {}  # its end by the wall clock, and by the monotonic one
        self._soonest = self._soonest_deadline = _NEVER
        self._rounds = DeadlineQueue()
        self._revocations = RecentRevocations(REMEMBERED_S)
        self._ticking = LoopingCall(self.tick)
        self._ticking.clock = reactor
        self.revoked = 0
        """Connections closed because their credential ended."""

    def start(self) -> None:
        """Begin to look after them."""
        self._ticking.start(TICK_S, now=False)

    def stop(self) -> None:
        """Stop; a second call does nothing."""
        if self._ticking.running:
            self._ticking.stop()

    @property
    def watchers(self) -> int:
        """How many members of the hub, and topics, are the guard's own."""
        return len(self._watchers)

    def enter(self, session: MonitoredSession) -> None:
        """A session has begun. One that no method vouches for (auth open) can't be revoked by its credential."""
        identity = session.identity
        self._registry.add(session, identity)
        if identity.expires_at is not None:
            # The wall clock may be put back meanwhile: what was left of the credential's time now is all that it gets.
            deadline = self._reactor.seconds() + max(0.0, identity.expires_at - self._wall())
            self._expiring[session] = identity.expires_at, deadline
            self._soonest = min(self._soonest, identity.expires_at)
            self._soonest_deadline = min(self._soonest_deadline, deadline)
        if identity.session is not None:
            self._watch(identity)
            # What was known of it for a while may be as old: its age counts, so that nothing is believed for longer than a round.
            since = self._reactor.seconds() if identity.checked_at is None else identity.checked_at
            self._schedule(identity.session, since, random.uniform(0.5, 1))  # noqa: S311 - spreads load, guards nothing

    def leave(self, session: MonitoredSession) -> None:
        """A session has ended. A second call does nothing."""
        self._expiring.pop(session, None)
        user, credentials = self._registry.remove(session)
        for credential in credentials:
            self._rounds.discard(credential)
        if user is not None and (watcher := self._watchers.pop(user, None)) is not None:
            self._hub.leave(watcher)

    def renew(self, session: MonitoredSession) -> None:
        """A session has another identity now: its end, and the name that it can be revoked by, are those of the new credential."""
        self.leave(session)
        self.enter(session)

    def disconnect(self, revocation: Revocation) -> int:
        """Close the connections of a user, or of a credential; how many they were.

        No answer from before lets it in again: none that is kept, and none to a question that is under way.
        """
        self._revocations.add(revocation, self._reactor.seconds())
        self._auth.forget(revocation)
        registry, user = self._registry, revocation.user
        found = registry.of_user(user) if user is not None else registry.of_session(revocation.session or "")
        for each in found:
            self._see_to(partial(self._revoke, each))
        return len(found)

    def was_revoked(self, identity: Identity, since: float) -> bool:
        """Whether it was revoked since then: an authentication that began at `since` (monotonic seconds) must not succeed any more."""
        return self._revocations.latest(identity.user_id, *identity.sessions) >= since

    def doubt(self) -> None:
        """Revocations may have been missed: forget what is kept of anybody, and ask about all credentials anew, as fast as a tick may."""
        self._auth.forget(None)
        self._rounds.bring_forward(self._reactor.seconds())

    def recheck_user(self, user: str) -> None:
        """Ask anew about all of a user's connections, now."""
        for session in self._registry.of_user(user):
            session.recheck()

    def tick(self) -> None:
        """What is to be done every second."""
        wall, now = self._wall(), self._reactor.seconds()
        if wall >= self._soonest or now >= self._soonest_deadline:
            for session, (expires_at, deadline) in list(self._expiring.items()):
                if expires_at <= wall or deadline <= now:
                    self._see_to(partial(self._revoke, session))
            self._soonest = min((expires_at for expires_at, _ in self._expiring.values()), default=_NEVER)
            self._soonest_deadline = min((deadline for _, deadline in self._expiring.values()), default=_NEVER)
        for name in self._rounds.pop_due(now, CREDENTIALS_PER_TICK):
            sessions = self._registry.of_session(name)
            for session in sessions:
                self._see_to(session.recheck)
            if sessions:
                self._schedule(name, now, random.uniform(0.8, 1))  # noqa: S311 - as above

    def _see_to(self, call: Callable[[], None]) -> None:
        """What goes wrong with one connection must not keep the guard from the others, nor end its rounds."""
        try:
            call()
        except Exception:  # noqa: BLE001 - whatever it is
            self._log.failure("the guard could not deal with a connection")

    def _schedule(self, name: str, since: float, share: float) -> None:
        if self.revalidate_s:
            self._rounds.add(name, since + self.revalidate_s * share)

    def _revoke(self, session: MonitoredSession) -> None:
        self.revoked += 1
        self._expiring.pop(session, None)
        session.revoke()

    def _watch(self, identity: Identity) -> None:
        user = str(identity.user_id)
        if identity.user_id is not None and user not in self._watchers:
            subscriber = self._hub.join(_Watcher(lambda: self._reactor.callLater(0, self.recheck_user, user)), TOWER)
            self._watchers[user] = subscriber
            self._hub.subscribe(subscriber, Request((f"control.limit_reached_{user}",)))


class _Watcher:
    """A member of the hub that takes what it hears for a reason to look."""

    def __init__(self, look: Callable[[], object]) -> None:
        self._look = look

    def send(self, data: bytes) -> bool:
        """Look."""
        self._look()
        return True

    def await_drain(self) -> None:
        """Never asked for: it takes everything."""

    def end(self, reason: CloseReason) -> None:
        """Never ends before its user's last session."""
