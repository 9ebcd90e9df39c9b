"""The exception tree, and the table of close codes.

*Their fault* is a `PeerError` (a client) or a `BadDelivery` (a producer): it becomes one reply, one close code or one
counter, and never a traceback. *The operator's* is a `ConfigError` or a `BrokerError`: one line that names the thing, the
value and the rule. Everything else is ours.

Text that came from outside, for a line of the log: nothing in it can look like another line, or turn one around.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class TowerwsError(Exception):
    """The root of every error that towerws raises on purpose."""


class ConfigError(TowerwsError):
    """A setting can't be used. Its text is one line that names the key, the value and the rule."""


class BrokerError(TowerwsError):
    """The broker refused or can't be used. Its text is what an operator should read.

    `code` is the AMQP reply code that the broker gave, 312 for a message that it returned; None when it gave none.
    """

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class NotRouted(BrokerError):
    """No queue took a message that was published: nothing is bound to the exchange."""

    def __init__(self, text: str) -> None:
        super().__init__(text, 312)


class PublishRefused(BrokerError):
    """The broker does not let this user publish there (403), or has no such exchange (404)."""


class PublishersBlocked(BrokerError):
    """The broker is in a memory or disk alarm: it takes no message from anybody."""


class BadDelivery(TowerwsError):
    """A message from the broker that can't be forwarded.

    `reason` is one word of a fixed set (it labels a counter); the text says more.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class BadRequest(TowerwsError):
    """A client's message that as a whole can't be followed; nothing was changed by it.

    `code` is one word of a fixed set (docs/protocol.md lists them), the text is for a person.
    `request_id` is the message's own `id` where it could be read.
    """

    def __init__(self, code: str, text: str, request_id: object = None) -> None:
        super().__init__(text)
        self.code = code
        self.request_id = request_id


class HandshakeError(TowerwsError):
    """An opening handshake is refused with an HTTP status. The text is a fixed one: it never repeats what the client sent.

    `reason` is one word of a fixed set (it labels a counter).
    """

    def __init__(self, status: int, text: str, reason: str = "request") -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Close:
    """One way in which the server ends a connection: the code on the wire, the word for it, and what the client should do next.

    `action` is "reconnect", "authenticate" (reconnect with another credential) or "stop" (the same would happen again).
    """

    code: int
    reason: str
    action: str


class CloseReason(enum.Enum):
    """Every close the server starts itself (RFC 6455 section 7.4). Clients rely on these: they are API.

    Never 1000: AWX's React pages take that as final (awx/ui/src/screens/Job/JobOutput/connectJobSocket.js).
    """

    POLICY = Close(1008, "policy", "stop")
    CREDENTIAL = Close(1008, "credential no longer valid", "authenticate")
    NO_CREDENTIAL = Close(1008, "no credential", "authenticate")
    TOO_BIG = Close(1009, "too big", "stop")
    RESTART = Close(1012, "restart", "reconnect")
    HISTORY = Close(1013, "fell out of history", "reconnect")
    OVERLOAD = Close(1013, "overload", "reconnect")
    NOT_YET = Close(1013, "position can't be judged yet", "reconnect")
    UNCHECKED = Close(1013, "credential can't be checked", "reconnect")
    TOO_MANY_CONNECTIONS = Close(1013, "too many connections", "reconnect")


MAX_CHARACTERS = 128


def printable(text: object) -> str:
    """The text, shortened; what is not printable (control characters, line ends of all kinds, marks of direction) is escaped."""
    whole = str(text)
    shown = whole[:MAX_CHARACTERS]
    if not shown.isprintable() or "\\" in shown:
        shown = "".join(each if each.isprintable() and each != "\\" else each.encode("unicode_escape").decode() for each in shown)
    return shown if len(whole) <= MAX_CHARACTERS else f"{shown}…"
