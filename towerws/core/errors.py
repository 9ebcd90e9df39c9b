"""The exceptions, the table of close codes, and `printable` for texts from outside.

A fault of a client (`BadRequest`, `HandshakeError`) or of a producer (`BadDelivery`) becomes one reply, one HTTP answer or one
counter, and never a traceback. For the operator there are `ConfigError` and `BrokerError`: one line that names the thing, the value
and the rule. Any other exception is a fault of towerws.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class TowerwsError(Exception):
    """The base of every error that towerws raises on purpose."""


class ConfigError(TowerwsError):
    """A setting can't be used. Its text is one line that names the key, the value and the rule."""


class BrokerError(TowerwsError):
    """The broker refused something, or can't be used. The text is for an operator.

    `code` is the broker's AMQP reply code, 312 for a message that it returned, or None if it gave none.
    """

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class NotRouted(BrokerError):
    """No queue took a published message: nothing is bound to the exchange."""

    def __init__(self, text: str) -> None:
        super().__init__(text, 312)


class PublishNacked(BrokerError):
    """The broker did not put a published message into every queue (Basic.Nack). Some queue may have it."""


class PublishQueueFull(BrokerError):
    """Too many messages wait for the broker. This one was not sent."""


class PublishRefused(BrokerError):
    """The broker does not let this user publish to this exchange (403), or has no such exchange (404)."""


class PublishersBlocked(BrokerError):
    """The broker has a memory or disk alarm, and takes no message from any publisher."""

    def __init__(self) -> None:
        super().__init__("the broker is in a memory or disk alarm: it takes no messages")


class BadDelivery(TowerwsError):
    """A message from the broker that can't be forwarded.

    `reason` is one word of a fixed set, which labels a counter. The text says more.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class BadRequest(TowerwsError):
    """A client's message is refused as a whole. It changed nothing.

    `code` is one word of a fixed set (docs/protocol.md lists them). The text is for a person. `request_id` is the message's `id`, or
    None if it could not be read.
    """

    def __init__(self, code: str, text: str, request_id: object = None) -> None:
        super().__init__(text)
        self.code = code
        self.request_id = request_id


class HandshakeError(TowerwsError):
    """An opening handshake is refused with an HTTP status. The text is fixed: it never repeats what the client sent.

    Requests for events and history are refused with it, too.

    `reason` is one word of a fixed set, which labels a counter. `retry_s`: seconds after which the client may ask again, for 429 and 503.
    """

    def __init__(self, status: int, text: str, reason: str = "request", *, retry_s: int = 2) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.retry_s = retry_s


class QueryError(HandshakeError):
    """A request for events or history is refused with a text that names a parameter or a topic, shortened and escaped.

    Only the client gets that text. `logged` is the fixed text for the log.
    """

    def __init__(self, status: int, text: str, reason: str = "request", *, logged: str = "a parameter of the query is wrong") -> None:
        super().__init__(status, text, reason)
        self.logged = logged


@dataclass(frozen=True, slots=True)
class Close:
    """One way in which the server closes a connection: the code on the wire, the reason, and what the client should do next.

    `action` is "reconnect", "authenticate" (reconnect with another credential) or "stop" (a reconnect would end the same way).
    """

    code: int
    reason: str
    action: str


class CloseReason(enum.Enum):
    """Every close that the server starts (RFC 6455 section 7.4). Clients rely on these: they are API.

    Never 1000: AWX's React pages don't reconnect after that code (awx/ui/src/screens/Job/JobOutput/connectJobSocket.js).
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


MAX_PRINTABLE_CHARACTERS = 128
MAX_LINE_CHARACTERS = 160


def printable(text: object) -> str:
    """Return a text from outside for use in a log line: shortened, with everything escaped that is not printable.

    Control characters, all kinds of line ends, and marks of direction are escaped. So the text can't look like another log line.
    """
    whole = str(text)
    shown = whole[:MAX_PRINTABLE_CHARACTERS]
    if not shown.isprintable() or "\\" in shown:
        shown = "".join(each if each.isprintable() and each != "\\" else each.encode("unicode_escape").decode() for each in shown)
    return shown if len(whole) <= MAX_PRINTABLE_CHARACTERS else f"{shown}…"


def one_line(text: str, most: int = MAX_LINE_CHARACTERS) -> str:
    """Return another library's error text on one line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
