"""What every way of authenticating offers, and the two ways in which it can say no."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Protocol, Self, TypeGuard, TypeVar, runtime_checkable

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from towerws.core.errors import TowerwsError
from towerws.core.http_head import Head
from towerws.core.identity import Identity
from towerws.core.revocation import Revocation

Result = TypeVar("Result")


class NotAdmitted(TowerwsError):
    """Nobody is let in by this credential, or not now. The text is a fixed one, for the log: it repeats nothing of the credential.

    `credential` is the kind of credential in a few words, `session` the hash that names it; both are empty where that isn't known.
    """

    reason = ""
    """One word of a fixed set: it labels a counter, and stands in the log."""

    def __init__(self, text: str, credential: str = "", session: str = "") -> None:
        super().__init__(text)
        self.credential = credential
        self.session = session

    def about(self, credential: str, session: str = "") -> Self:
        """The same, with the credential that it is about."""
        return type(self)(str(self), credential, session)


class Refused(NotAdmitted):
    """The credential is not good: the handshake is answered with 403, an open connection is closed."""

    reason = "credential"


class Unavailable(NotAdmitted):
    """Whether the credential is good can't be found out just now: the handshake is answered with 503, never with 403."""

    reason = "unavailable"


class Throttled(Unavailable):
    """Too many sign-ins failed from this address or for this user: this one isn't tried now."""

    reason = "throttled"


class Method(Protocol):
    """One way to authenticate. Every call may be cancelled, when the client is gone before it is done."""

    name: str

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires with who sent this opening handshake, or None when it brought no credential of this method's kind.

        Fails with `Refused` or `Unavailable`.
        """

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Fires with those of the topics (routing keys) that this user may not listen to, each with a reason in a few words.

        The reason of a check that could not be made is `"unavailable"`: never allowed, but told apart from a refusal.
        """

    def revalidate(self, identity: Identity) -> Deferred[Identity]:
        """Fires with the identity as it stands now; fails with `Refused` when its credential has ended, or `Unavailable`."""

    def forget(self, revocation: Revocation | None) -> None:
        """Nothing that was found out about these (None: about anybody) counts any more: who asks from now on is asked about anew."""

    def stop(self) -> Deferred[None]:
        """Let go of connections and timers. Fires when that is done."""


@runtime_checkable
class TakesTokens(Protocol):
    """What a `Method` offers beside, when its credential may also come in a message on the open connection."""

    name: str
    takes_tokens: bool

    def identify(self, token: str, address: str) -> Deferred[Identity]:
        """Fires with the user of this token, which a client at `address` sent. Fails with `Refused` or `Unavailable`. May be cancelled."""


@runtime_checkable
class ChoosesTokens(Protocol):
    """What a `Method` that takes tokens offers too, when some tokens or clients are not for it. Without it, all are."""

    tokens_from_awx_clients: bool
    """Whether a client of the Tower dialect may connect without a credential. AWX's own clients never send a token: they need the 403."""

    def recognizes(self, token: str) -> bool:
        """Whether this can be a token of this method, by its form."""


@runtime_checkable
class Reports(Protocol):
    """What a `Method` offers beside, when it has figures of its own for `/status`."""

    def figures(self) -> Mapping[str, object]:
        """Counts since the start, and how things stand. Numbers and fixed words only: nothing that a client sent."""


@runtime_checkable
class AsksAboutTopics(Protocol):
    """What a `Method` offers too, when it has to ask somebody about some topics: so the others need not wait."""

    def undecided(self, identity: Identity, topics: Sequence[str]) -> frozenset[str]:
        """Those of the topics about which `refusals` would have to ask now. Asks nothing."""


def undecided(method: Method, identity: Identity, topics: Sequence[str]) -> frozenset[str]:
    """The topics about which `refusals` can't answer at once; all of them, where the method does not say."""
    return method.undecided(identity, topics) if isinstance(method, AsksAboutTopics) else frozenset(topics)


def result_if_ready(asked: Deferred[Result]) -> Result | None:
    """The answer, where it was given at once; None where it is awaited, or the question failed.

    Most questions are answered out of memory, and a callback on a Deferred costs more than the answer: 149 -> 128 µs for a
    connect and subscribe in memory.
    """
    if asked.called and not asked.paused:
        answer: Any = asked.result
        if not isinstance(answer, (Failure, Deferred)):
            return answer  # type: ignore[no-any-return]
    return None


def drop_frames(error: BaseException | None) -> None:
    """Let an error that was dealt with let go of the stack frames that it passed.

    Twisted's hold the `Failure` that holds the error: a cycle, which stays until a full collection (towerws/collector.py).
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def without_frames(failure: Failure) -> Failure:
    """An errback: an answer of ours (`Refused`, `Unavailable`) goes on without its frames. A fault keeps them for the log."""
    if isinstance(failure.value, TowerwsError | CancelledError):
        failure.tb = None
        drop_frames(failure.value)
    return failure


def run(question: Coroutine[Deferred[Any], Any, Result]) -> Deferred[Result]:
    """Fires with what a coroutine returns, or fails with what it raises, without frames where that is an answer of ours."""
    return Deferred.fromCoroutine(question).addErrback(without_frames)


def takes_tokens(method: Method) -> TypeGuard[TakesTokens]:
    """Whether this method's credential may come in a message."""
    return isinstance(method, TakesTokens) and method.takes_tokens


def waits_for_token(method: Method, *, awx_client: bool) -> bool:
    """Whether a client without a credential may connect, and then send a token."""
    return takes_tokens(method) and not (awx_client and isinstance(method, ChoosesTokens) and not method.tokens_from_awx_clients)


def recognizes(method: TakesTokens, token: str) -> bool:
    """Whether this can be a token of this method."""
    return not isinstance(method, ChoosesTokens) or method.recognizes(token)
