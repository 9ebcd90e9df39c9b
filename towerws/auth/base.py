"""The interface of an authentication method, the errors by which it refuses a credential, and what the methods share."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, Self, TypeGuard, TypeVar, runtime_checkable

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.python.failure import Failure

from towerws.core.errors import TowerwsError
from towerws.core.http_head import Head
from towerws.core.identity import Identity, Revocation

Result = TypeVar("Result")


class NotAdmitted(TowerwsError):
    """The client can't be admitted with this credential, or not now. The text is fixed, for the log, and repeats no part of the credential.

    `credential` is the kind of credential in a few words. `session` is the hash that names it. Both are empty where they aren't known.
    """

    reason = ""
    """One word of a fixed set. It labels a counter and is written to the log."""

    def __init__(self, text: str, credential: str = "", session: str = "") -> None:
        super().__init__(text)
        self.credential = credential
        self.session = session

    def about(self, credential: str, session: str = "") -> Self:
        """Return the same error, with the credential that it is about."""
        return type(self)(str(self), credential, session)


class Refused(NotAdmitted):
    """The credential is not valid. The handshake is answered with 403, an open connection is closed."""

    reason = "credential"


class Unavailable(NotAdmitted):
    """The credential can't be checked just now. The handshake is answered with 503, never with 403."""

    reason = "unavailable"


class Throttled(Unavailable):
    """Too many sign-ins failed from this address or for this user. The credential isn't checked now."""

    reason = "throttled"


class Method(Protocol):
    """One way to authenticate. Each Deferred may be cancelled, for a client that disconnects before it fires."""

    name: str

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires with the user who sent this opening handshake, or None if it has no credential of this method's kind.

        Fails with `Refused` or `Unavailable`.
        """

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Fires with the topics (routing keys) that this user may not subscribe to, each with a reason in a few words.

        If a check can't be made, the reason is `"unavailable"`. The topic isn't allowed then, but the client can tell it from a refusal.
        """

    def revalidate(self, identity: Identity) -> Deferred[Identity]:
        """Fires with the identity in its present state. Fails with `Refused` if its credential has ended, or with `Unavailable`."""

    def forget(self, revocation: Revocation | None) -> None:
        """Stop using cached answers about these users (None: about all users). Later calls check again."""

    def stop(self) -> Deferred[None]:
        """Close connections and cancel timers. Fires when that is done."""


@runtime_checkable
class TakesTokens(Protocol):
    """Implemented by a `Method` whose credential may also come in a message on the open connection."""

    name: str
    takes_tokens: bool

    def identify(self, token: str, address: str) -> Deferred[Identity]:
        """Fires with the user of this token, which a client at `address` sent. Fails with `Refused` or `Unavailable`. May be cancelled."""


@runtime_checkable
class ChoosesTokens(Protocol):
    """Implemented by a `Method` that takes tokens only of some forms or from some clients. Otherwise it takes all."""

    tokens_from_awx_clients: bool
    """Whether a client of the Tower dialect may connect without a credential. AWX's clients never send a token, so they need the 403."""

    def recognizes(self, token: str) -> bool:
        """Whether this can be a token of this method, judged by its form."""


@runtime_checkable
class Reports(Protocol):
    """Implemented by a `Method` that has its own figures for `/status`."""

    def figures(self) -> Mapping[str, object]:
        """Return counts since the start and the present state. Numbers and fixed words only, nothing that a client sent."""


@runtime_checkable
class AsksAboutTopics(Protocol):
    """Implemented by a `Method` that has to ask another server about some topics, so that the other topics need not wait."""

    def undecided(self, identity: Identity, topics: Sequence[str]) -> frozenset[str]:
        """Return the topics for which `refusals` would have to ask a server now. Sends no request."""


@runtime_checkable
class TellsRefusals(Protocol):
    """Implemented by a `Method` that has to ask another server about each topic, so that a refusal need not wait for the other answers."""

    def tell_refusals(self, identity: Identity, topics: Sequence[str], tell: Callable[[dict[str, str]], object]) -> Deferred[None]:
        """Do the same as `refusals`, and call `tell` with refusals soon after they are known, with each of them once.

        Fires when all are told. If it is cancelled, it tells no more.
        """


@runtime_checkable
class TakesOver(Protocol):
    """Implemented by a `Method` that has something to keep when a reload replaces it: keys, counts of failed sign-ins."""

    def take_over(self, before: Any) -> None:
        """Take over from `before` what is still valid. `before` is the method that this one replaces: the same class, other settings."""


@runtime_checkable
class ReadsAgain(Protocol):
    """Implemented by a `Method` that asks another server for something that a reload should bring up to date."""

    def read_again(self) -> None:
        """Ask the server again before the next use. If that fails, what is known stays in use."""


def undecided(method: Method, identity: Identity, topics: Sequence[str]) -> frozenset[str]:
    """Return the topics for which `refusals` can't answer at once. If the method does not say, return all."""
    return method.undecided(identity, topics) if isinstance(method, AsksAboutTopics) else frozenset(topics)


def tell_refusals(method: Method, identity: Identity, topics: Sequence[str], tell: Callable[[dict[str, str]], object]) -> Deferred[None]:
    """Call `tell` with the topics that this user may not subscribe to: all at the end, or earlier if the method can do that."""
    if isinstance(method, TellsRefusals):
        return method.tell_refusals(identity, topics, tell)
    return maybeDeferred(method.refusals, identity, topics).addCallback(tell).addCallback(lambda _: None)


def result_if_ready(asked: Deferred[Result]) -> Result | None:
    """Return the result if the Deferred has one already. Return None if it is still pending or failed.

    Most answers come from the cache, and a callback on a Deferred costs more than the answer. Without callbacks, a connect and a
    subscribe in memory take 128 µs instead of 149.
    """
    if asked.called and not asked.paused:
        answer: Any = asked.result  # never a Deferred: while one waits for another, it is paused
        if not isinstance(answer, Failure):
            return answer  # type: ignore[no-any-return]
    return None


def drop_frames(error: BaseException | None) -> None:
    """Remove the stack frames from an error that was handled.

    Twisted's frames refer to the `Failure` that refers to the error. Such a cycle stays until a full collection (towerws/process.py).
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def without_frames(failure: Failure) -> Failure:
    """Errback: remove the frames from an expected error (`Refused`, `Unavailable`). A fault keeps them for the log."""
    if isinstance(failure.value, TowerwsError | CancelledError):
        failure.tb = None
        drop_frames(failure.value)
    return failure


def run(question: Coroutine[Deferred[Any], Any, Result]) -> Deferred[Result]:
    """Fires with what a coroutine returns, or fails with what it raises. An expected error has no frames."""
    return Deferred.fromCoroutine(question).addErrback(without_frames)


def takes_tokens(method: Method) -> TypeGuard[TakesTokens]:
    """Whether this method's credential may come in a message."""
    return isinstance(method, TakesTokens) and method.takes_tokens


def waits_for_token(method: Method, *, awx_client: bool) -> bool:
    """Whether a client without a credential may connect and then send a token."""
    return takes_tokens(method) and not (awx_client and isinstance(method, ChoosesTokens) and not method.tokens_from_awx_clients)


def recognizes(method: TakesTokens, token: str) -> bool:
    """Whether this can be a token of this method."""
    return not isinstance(method, ChoosesTokens) or method.recognizes(token)


def parse_cookies(header: str) -> dict[str, str]:
    """Return the cookies by name. Of two cookies with one name the last counts, as in Django and so in AWX."""
    return dict(list_cookies(header))


def list_cookies(header: str) -> list[tuple[str, str]]:
    """Return every cookie of a `Cookie` header as name and value, without the double quotes around a value.

    It reads the header as Django does, so that we find the cookie that AWX finds. Browsers and awxkit write `;` with and without a space,
    and some clients end with one.
    """
    cookies = []
    for part in header.split(";"):
        name, equals, value = part.partition("=")
        value = value.strip(" \t")
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = value[1:-1]
        if equals:
            cookies.append((name.strip(" \t"), value))
    return cookies
