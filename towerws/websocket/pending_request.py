"""A request some of whose topics somebody has to be asked about: what is known takes effect at once, and nothing waits for ever.

state  | begins with            | decided              | `ANSWER_S` over         | a newer request     | the client is gone
asking | the request            | over: all is applied | over: what is known is  | over: the same      | over: nothing is
over   | its answer is known    | -                    | -                       | -                   | -

Topics that need no question are joined at the beginning, before the answer. A request that resumes (`since`) joins all of its topics
at its end: what it missed has to come before anything live.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.auth.base import at_once, undecided
from towerws.core.identity import Identity
from towerws.core.requests import Request
from towerws.core.subscribers import Subscriber
from towerws.core.wire import SUPERSEDED, UNAVAILABLE
from towerws.websocket.context import ConnectionContext

ANSWER_S: Final = 8.0
"""How long the answer to a request may take: awxkit waits 10 s for it. What is not known then is "unavailable"; what is found out of
it later is kept for the next request.
"""


class PendingRequest:
    """One request, from when its question was put until its answer is known. `done` is then called, with what is refused and why."""

    __slots__ = ("_asked", "_context", "_done", "_identity", "_subscriber", "_timer", "_topics", "before")

    _log = Logger()

    def __init__(
        self,
        context: ConnectionContext,
        subscriber: Subscriber,
        identity: Identity,
        request: Request,
        refused: dict[str, str],
        asked: Deferred[dict[str, str]],
        done: Callable[[PendingRequest, dict[str, str]], None],
    ) -> None:
        """`refused` is what is refused without asking; `asked` fires with what else is, of the others."""
        self._context = context
        self._subscriber = subscriber
        self._identity = identity
        self._topics = [topic for topic in request.topics if topic not in refused]
        self.before = tuple(subscriber.topics)
        """What the client listened to when it asked: its answer tells what it joined and left since."""
        self._done = done
        self._timer: Any = context.reactor.callLater(ANSWER_S, self.finish, UNAVAILABLE)
        self._asked: Deferred[dict[str, str]] | None = asked
        if request.since is None:
            self._join_known()
        asked.addCallbacks(self._decided, self._failed)

    def finish(self, reason: str, kept: frozenset[str] = frozenset()) -> None:
        """Be over with what is known by now; of the rest what isn't `kept` is refused for this reason."""
        if self._let_go():
            refused, unknown = self._known()
            self._done(self, {**refused, **{topic: reason for topic in self._topics if topic in unknown and topic not in kept}})

    def supersede(self) -> None:
        """A newer request replaces this one."""
        # What is listened to already stays until the newer one is decided: it may hold it too, and then there must be no gap.
        self.finish(SUPERSEDED, frozenset(self._subscriber.topics))

    def cancel(self) -> None:
        """Be over, and tell nobody. A second call does nothing."""
        self._let_go()

    def _let_go(self) -> bool:
        asked, self._asked = self._asked, None
        if asked is None:
            return False
        self._stop_timer()
        asked.cancel()
        return True

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None  # a call that was made still refers to its arguments: a cycle
        if timer is not None and timer.active():
            timer.cancel()

    def _known(self) -> tuple[dict[str, str], frozenset[str]]:
        """What is refused of what is known, and what isn't known."""
        unknown = undecided(self._context.auth, self._identity, self._topics)
        known = [topic for topic in self._topics if topic not in unknown]
        refused = at_once(self._context.auth.refusals(self._identity, known)) if known else {}
        return ({}, frozenset(self._topics)) if refused is None else (refused, unknown)

    def _join_known(self) -> None:
        subscriber = self._subscriber
        refused, unknown = self._known()
        joining = [topic for topic in self._topics if topic not in unknown and topic not in refused and topic not in subscriber.topics]
        if joining:
            self._context.hub.subscribe(subscriber, Request((*subscriber.topics, *joining)))

    def _decided(self, refused: dict[str, str]) -> None:
        if self._asked is not None:
            self._asked = None
            self._stop_timer()
            self._done(self, refused)

    def _failed(self, failure: Failure) -> None:
        if self._asked is not None:
            self._log.failure("authorization failed unexpectedly; nothing was granted", failure)
            self._asked = None
            self._stop_timer()
            self._done(self, dict.fromkeys(self._topics, UNAVAILABLE))
