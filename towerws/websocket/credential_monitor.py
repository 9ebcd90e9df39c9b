"""Ends open connections together with the credentials that opened them.

One timer serves all connections. Every second it closes connections whose credential expired, and re-checks the credentials that
are due. Each credential is due once, however many connections it has.

AWX publishes `control.limit_reached_<id>` when it ends sessions of a user. The monitor subscribes to this topic for each connected
user, and re-checks the user at once. Deliveries of other topics cost nothing extra. After a hole in the log the monitor re-checks
all users, at the rate of the other checks: such an event may be lost in the hole.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from towerws.auth.base import Method
from towerws.core.errors import CloseReason
from towerws.core.hub import Hub
from towerws.core.identity import DeadlineQueue, Identity, RecentRevocations, Registry, Revocation
from towerws.core.requests import Request
from towerws.core.subscribers import Subscriber
from towerws.core.wire import TOWER
from towerws.logs import LineSpacing

TICK_S = 1.0

CREDENTIALS_PER_TICK = 250
"""Credentials that are re-checked in one second. The rest follow in the next second.

With the default `revalidate_s` of 50 a credential is due after 45 s on average, so 11,250 credentials are checked in time. With
`tower.calls` (20), an API that takes 50 ms answers 400 questions per second. Handshakes need some of these.
"""

CREDENTIALS_AT_ONCE = 25
"""Credentials that are re-checked in one iteration of the reactor."""

LATE_S = 2.0
"""Re-checks that are later than this are reported. Shorter delays come from the tick."""

REPORT_EVERY_S = 60.0
"""Shortest time between two log lines about late re-checks."""

REMEMBERED_S = 300.0
"""How long a revocation is remembered. No authentication takes longer: it is the maximum of `websocket.handshake_s`."""

_NEVER = float("inf")


class MonitoredSession(Protocol):
    """What the monitor uses of a session."""

    identity: Identity

    def recheck(self) -> None:
        """Check again whether its credential is valid, and which topics it may get."""

    def apply_groups(self) -> None:
        """Unsubscribe the topics that the groups in force don't allow."""

    def revoke(self) -> None:
        """Close the connection: its credential is no longer valid."""


class CredentialMonitor:
    """Monitors the credentials of all sessions.

    `revalidate_s`: seconds between two checks of a credential; 0 disables these checks. `wall` returns the seconds since 1970.
    """

    _log = Logger()

    def __init__(self, hub: Hub, auth: Method, reactor: IReactorTime, *, revalidate_s: float, wall: Callable[[], float]) -> None:
        self._hub = hub
        self._auth = auth
        self._reactor = reactor
        self._wall = wall
        self.revalidate_s = revalidate_s
        self._registry: Registry[MonitoredSession] = Registry()
        self._watchers: dict[str, Subscriber] = {}
        self._expiring: dict[MonitoredSession, tuple[float, float]] = {}  # expiry by the wall clock and by the monotonic clock
        self._soonest = self._soonest_deadline = _NEVER
        self._due = DeadlineQueue()
        self._revocations = RecentRevocations(REMEMBERED_S)
        self._ticking = LoopingCall(self.tick)
        self._ticking.clock = reactor
        self.revoked = 0
        """Connections that were closed because their credential ended."""
        self._late_s = 0.0
        self._all_checked_by = 0.0
        """When a check of all credentials ends at the highest rate (monotonic seconds). Until then, no re-check counts as late."""
        self._reports = LineSpacing(REPORT_EVERY_S)

    def start(self) -> None:
        """Start the timer."""
        self._ticking.start(TICK_S, now=False)

    def stop(self) -> None:
        """Stop the timer. A second call does nothing."""
        if self._ticking.running:
            self._ticking.stop()

    @property
    def watchers(self) -> int:
        """The number of subscribers in the hub that are the monitor's own. Each has one topic."""
        return len(self._watchers)

    def figures(self) -> dict[str, object]:
        """Return the number of monitored credentials, the highest rate of re-checks, and how late the oldest due one is."""
        return {"credentials": len(self._due), "per_s": CREDENTIALS_PER_TICK, "late_s": round(self._late_s, 1)}

    def enter(self, session: MonitoredSession) -> None:
        """Monitor a session that begins. Without authentication (auth open) it has no credential to revoke."""
        identity = session.identity
        self._registry.add(session, identity)
        if identity.expires_at is not None:
            # The wall clock may be set back later. The monotonic deadline then ends the credential in time.
            deadline = self._reactor.seconds() + max(0.0, identity.expires_at - self._wall())
            self._expiring[session] = identity.expires_at, deadline
            self._soonest = min(self._soonest, identity.expires_at)
            self._soonest_deadline = min(self._soonest_deadline, deadline)
        if identity.session is not None:
            if (user := identity.user) is not None and user not in self._watchers:
                self._join_watcher(user)
            self._schedule_first(identity.session, identity.checked_at)

    def leave(self, session: MonitoredSession) -> None:
        """Forget a session that ended. A second call does nothing."""
        self._expiring.pop(session, None)
        user, credentials = self._registry.remove(session)
        for credential in credentials:
            self._due.discard(credential)
        if user is not None and (watcher := self._watchers.pop(user, None)) is not None:
            self._hub.leave(watcher)

    def renew(self, session: MonitoredSession) -> None:
        """Monitor a session by its new credential, after it replaced its identity."""
        self.leave(session)
        self.enter(session)

    def disconnect(self, revocation: Revocation) -> int:
        """Close the connections of a user or of a credential. Return their number.

        Answers from before can't authenticate the client again. Cached ones are dropped, and `was_revoked` refuses those under way.
        """
        self._revocations.add(revocation, self._reactor.seconds())
        self._auth.forget(revocation)
        registry, user = self._registry, revocation.user
        found = registry.of_user(user) if user is not None else registry.of_session(revocation.session or "")
        for each in found:
            self._call(partial(self._revoke, each))
        return len(found)

    def was_revoked(self, identity: Identity, since: float) -> bool:
        """Return whether the identity was revoked at `since` (monotonic seconds) or later.

        If so, an authentication that began at `since` must fail.
        """
        return self._revocations.latest(identity.user_id, *identity.sessions) >= since

    def recheck_all(self) -> None:
        """Re-check all credentials as fast as the limit allows, and drop cached answers: revocations may have been missed.

        If `revalidate_s` is 0, no check is planned that could be brought forward. Then this only drops cached answers.
        """
        self._auth.forget(None)
        now = self._reactor.seconds()
        self._due.bring_forward(now)
        self._check_all_from(now)

    def set_interval(self, revalidate_s: float) -> None:
        """Change the time between two checks of a credential. A check that is due sooner stays planned. 0 removes all planned checks."""
        if revalidate_s == self.revalidate_s:
            return
        self.revalidate_s = revalidate_s
        now = self._reactor.seconds()
        for session in self._registry.all():
            if (name := session.identity.session) is not None and revalidate_s:
                self._schedule(name, now, random.uniform(0.5, 1))  # noqa: S311
            elif name is not None:
                self._due.discard(name)

    def apply_groups_to_all(self) -> Deferred[None]:
        """After a reload: have each session unsubscribe the topics that the groups don't allow. Then re-check all credentials.

        Fires when all sessions have done so, `CREDENTIALS_AT_ONCE` of them in one iteration of the reactor. The re-checks follow at
        their rate.
        """
        done: Deferred[None] = Deferred()
        sessions = deque(self._registry.all())
        self._check_all_from(self._reactor.seconds())

        def apply_to_some() -> None:
            now = self._reactor.seconds()
            for _ in range(min(CREDENTIALS_AT_ONCE, len(sessions))):
                session = sessions.popleft()
                self._call(session.apply_groups)
                if session.identity.session is not None and self._registry.of_session(session.identity.session):
                    self._due.add(session.identity.session, now)
            if sessions:
                self._reactor.callLater(0, apply_to_some)
            else:
                done.callback(None)

        apply_to_some()
        return done

    def recheck_user(self, user: str) -> None:
        """Re-check all connections of a user now."""
        for session in self._registry.of_user(user):
            session.recheck()

    def tick(self) -> None:
        """Close expired connections, and re-check the credentials that are due. Runs every second."""
        wall, now = self._wall(), self._reactor.seconds()
        if wall >= self._soonest or now >= self._soonest_deadline:
            for session, (expires_at, deadline) in list(self._expiring.items()):
                if expires_at <= wall or deadline <= now:
                    self._call(partial(self._revoke, session))
            self._soonest = min((expires_at for expires_at, _ in self._expiring.values()), default=_NEVER)
            self._soonest_deadline = min((deadline for _, deadline in self._expiring.values()), default=_NEVER)
        self._note_lateness(now)
        self._recheck(deque(self._due.pop_due(now, CREDENTIALS_PER_TICK)), now)

    def _recheck(self, names: deque[str], now: float) -> None:
        for _ in range(min(CREDENTIALS_AT_ONCE, len(names))):
            name = names.popleft()
            sessions = self._registry.of_session(name)
            for session in sessions:
                self._call(session.recheck)
            if sessions:
                self._schedule(name, now, random.uniform(0.8, 1))  # noqa: S311
        if names:
            self._reactor.callLater(0, self._recheck, names, now)

    def _note_lateness(self, now: float) -> None:
        late_s = self._due.late(now)
        self._late_s = late_s if late_s > LATE_S and now >= self._all_checked_by else 0.0
        if self._late_s and self._reports.due("late", now):
            self._log.warn(
                "re-checks are late: {credentials} credentials are connected, at most {per_s} a second are checked; some are checked "
                "{late_s:.0f} s after they were due (revalidate_s = {revalidate_s:g}). Start another daemon, or raise revalidate_s",
                credentials=len(self._due),
                per_s=CREDENTIALS_PER_TICK,
                late_s=self._late_s,
                revalidate_s=self.revalidate_s,
            )

    def _call(self, call: Callable[[], None]) -> None:
        """Call this, and log an exception: a failure of one connection must not stop the checks of the others."""
        try:
            call()
        except Exception:  # noqa: BLE001 - any failure
            self._log.failure("a connection could not be re-checked or closed")

    def _check_all_from(self, now: float) -> None:
        self._all_checked_by = now + len(self._due) / CREDENTIALS_PER_TICK * TICK_S + LATE_S

    def _schedule_first(self, name: str, checked_at: float | None) -> None:
        """Plan the first re-check in this process.

        An answer from the cache or from the process that handed over may be old already. The interval begins when the credential was
        checked, so that no answer outlives one interval. A time in the past becomes now: it would look like a late re-check.
        """
        now = self._reactor.seconds()
        since = now if checked_at is None else checked_at
        if every := self.revalidate_s:
            at = random.uniform(max(now, since + every / 2), max(now, since + every))  # noqa: S311 - spreads load, protects nothing
            self._due.add(name, at)

    def _schedule(self, name: str, since: float, fraction: float) -> None:
        if self.revalidate_s:
            self._due.add(name, since + self.revalidate_s * fraction)

    def _revoke(self, session: MonitoredSession) -> None:
        self.revoked += 1
        self._expiring.pop(session, None)
        session.revoke()

    def _join_watcher(self, user: str) -> None:
        later = partial(self._reactor.callLater, 0)
        watcher = _Watcher(
            on_event=partial(later, self._limit_reached, user),
            on_drained=partial(later, self._feed_watcher, user),
            on_lost=partial(later, self._replace_watcher, user),
            on_hole=partial(self._recheck_soon, user),
        )
        self._watchers[user] = subscriber = self._hub.join(watcher, TOWER)
        self._hub.subscribe(subscriber, Request((f"control.limit_reached_{user}",)))

    def _replace_watcher(self, user: str) -> None:
        """History has lost events of the watcher's topic: subscribe to it again, and re-check the user as such an event would have done."""
        if (before := self._watchers.get(user)) is not None:
            self._hub.leave(before)
            self._join_watcher(user)
            self._limit_reached(user)

    def _limit_reached(self, user: str) -> None:
        """Re-check the user with new questions: an answer that is cached or under way may be older than the event."""
        self._auth.forget(Revocation(user=user))
        self.recheck_user(user)

    def _recheck_soon(self, user: str) -> None:
        """Plan a re-check of the user, also if `revalidate_s` is 0. A hole concerns all users, so the rate is limited."""
        self._auth.forget(Revocation(user=user))
        now = self._reactor.seconds()
        for session in self._registry.of_user(user):
            if session.identity.session is not None:
                self._due.add(session.identity.session, now)
        self._check_all_from(now)

    def _feed_watcher(self, user: str) -> None:
        if (subscriber := self._watchers.get(user)) is not None:
            self._hub.feed(subscriber)


class _Watcher:
    """A hub peer without a connection: it calls a function for each thing that the hub tells it.

    `on_event` is called for each event, and `on_drained` when the hub has sent a piece of history. `on_lost` is called if history has
    lost events, and `on_hole` if the log has.
    """

    def __init__(
        self,
        on_event: Callable[[], object],
        on_drained: Callable[[], object],
        on_lost: Callable[[], object],
        on_hole: Callable[[], object],
    ) -> None:
        self._on_event = on_event
        self._on_drained = on_drained
        self._on_lost = on_lost
        self._on_hole = on_hole

    def send(self, data: bytes) -> bool:
        """Call `on_event`."""
        self._on_event()
        return True

    def await_drain(self) -> None:
        """Call `on_drained`: the hub has sent a piece of history, and there is always room for the next one."""
        self._on_drained()

    def note_hole(self) -> None:
        """Call `on_hole`."""
        self._on_hole()

    def end(self, reason: CloseReason) -> None:
        """Call `on_lost`: history has lost events of the topic, and the dialect has no notice. The hub feeds this peer no more."""
        self._on_lost()
