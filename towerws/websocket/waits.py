"""What a session waits for before it answers a request: access to topics, and the judgement of a position.

`PendingRequest` is a request whose topics need an answer of the authentication method, which may ask AWX:

state   | begins with         | access decided        | `ANSWER_S` over            | a newer request          | client gone
asking  | the request         | done: applies all     | done: applies what's known | done: applies what's known | done: applies nothing
done    | the answer is known | -                     | -                          | -                        | -

Topics that need no question are subscribed at once, before the answer. A request that resumes (`since`) subscribes all of
its topics at the end: the client must get the events that it missed before any live event.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.auth.base import result_if_ready, undecided
from towerws.core.deliveries import Delivery
from towerws.core.identity import Identity
from towerws.core.requests import Request
from towerws.core.subscribers import Subscriber
from towerws.core.wire import SUPERSEDED, UNAVAILABLE
from towerws.websocket.context import ConnectionContext

ANSWER_S: Final = 8.0
"""The longest time until a request is answered: awxkit waits 10 s. A topic that is still undecided gets "unavailable". A decision
that comes later is cached for the next request."""


class PendingRequest:
    """A request, from its question about access until its answer is known."""

    __slots__ = ("_asked", "_context", "_done", "_identity", "_subscriber", "_timer", "_topics")

    _log = Logger()

    def __init__(
        self,
        context: ConnectionContext,
        subscriber: Subscriber,
        identity: Identity,
        request: Request,
        refused: dict[str, str],
        asked: Deferred[dict[str, str]],
        done: Callable[[dict[str, str]], None],
    ) -> None:
        """Begin to wait, and subscribe the topics that are allowed already, unless the request resumes.

        `refused`: topics that are refused without a question, each with its reason. `asked` fires with the refusals among the others.
        `done(refusals)` is called once, unless `cancel` comes first. If `asked` has fired already, that is before this returns.
        """
        self._context = context
        self._subscriber = subscriber
        self._identity = identity
        self._topics = [topic for topic in request.topics if topic not in refused]
        self._done = done
        self._timer: Any = context.reactor.callLater(ANSWER_S, self.finish, UNAVAILABLE)
        self._asked: Deferred[dict[str, str]] | None = asked
        if request.since is None:
            self._subscribe_known()
        asked.addCallbacks(self._decided, self._failed)

    def finish(self, reason: str, kept: frozenset[str] = frozenset()) -> None:
        """Answer now. Undecided topics are refused for this reason, except those in `kept`."""
        if self._end():
            refused, unknown = self._known()
            self._done({**refused, **{topic: reason for topic in self._topics if topic in unknown and topic not in kept}})

    def supersede(self) -> None:
        """Answer now, because a newer request replaces this one."""
        # Current subscriptions stay until the newer request is decided. If it repeats them, there must be no gap.
        self.finish(SUPERSEDED, frozenset(self._subscriber.topics))

    def cancel(self) -> None:
        """End without an answer. A second call does nothing."""
        self._end()

    def _end(self) -> bool:
        """End the wait. Return False if it has ended before."""
        asked, self._asked = self._asked, None
        if asked is None:
            return False
        timer, self._timer = self._timer, None  # a timer that fired still refers to its arguments: a cycle
        if timer.active():
            timer.cancel()
        asked.cancel()  # does nothing once it has fired
        return True

    def _known(self) -> tuple[dict[str, str], frozenset[str]]:
        """Return the refusals among the decided topics, and the undecided topics."""
        unknown = undecided(self._context.auth, self._identity, self._topics)
        known = [topic for topic in self._topics if topic not in unknown]
        refused = result_if_ready(self._context.auth.refusals(self._identity, known)) if known else {}
        return ({}, frozenset(self._topics)) if refused is None else (refused, unknown)

    def _subscribe_known(self) -> None:
        subscriber = self._subscriber
        refused, unknown = self._known()
        joining = [topic for topic in self._topics if topic not in unknown and topic not in refused and topic not in subscriber.topics]
        if joining:
            self._context.hub.subscribe(subscriber, Request((*subscriber.topics, *joining)))

    def _decided(self, refused: dict[str, str]) -> None:
        if self._end():
            self._done(refused)

    def _failed(self, failure: Failure) -> None:
        if self._end():
            self._log.failure("authorization failed unexpectedly; nothing was granted", failure)
            self._done(dict.fromkeys(self._topics, UNAVAILABLE))


class PositionWait:
    """Waits until a position can be judged. At the end it drops its references, which would be a cycle."""

    __slots__ = ("_forget", "_judged", "_late", "_timer")

    def __init__(
        self, context: ConnectionContext, position: str, judged: Callable[[Delivery | None], None], late: Callable[[], None]
    ) -> None:
        """Call `judged` with the delivery at this position, or None if no client can resume there. Call `late` after `resume_wait_s`."""
        self._judged: Callable[[Delivery | None], None] | None = judged
        self._late: Callable[[], None] | None = late
        self._timer: Any = context.reactor.callLater(context.settings.resume_wait_s, self._expire)
        self._forget: Callable[[], None] | None = context.ingest.wait_for_position(position, self._found)

    def cancel(self) -> None:
        """Stop waiting. A second call does nothing."""
        forget, self._forget = self._forget, None
        timer, self._timer = self._timer, None
        self._judged = self._late = None
        if forget is not None:
            forget()
        if timer is not None and timer.active():
            timer.cancel()

    def _found(self, delivery: Delivery | None) -> None:
        judged = self._judged
        self.cancel()
        if judged is not None:
            judged(delivery)

    def _expire(self) -> None:
        late = self._late
        self.cancel()
        if late is not None:
            late()
