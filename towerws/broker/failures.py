"""Why a connection to the broker failed, in words that an operator can act on.

RabbitMQ's own code and text are always kept. A hint names the next step if there is a usual one. No text has a password in it: the
broker never sends one, and our texts consist of hosts, names and codes only.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from OpenSSL import SSL
from pika import exceptions as pika_exceptions
from service_identity import VerificationError
from twisted.internet import error as net_error
from twisted.python.failure import Failure

from towerws.core.errors import one_line

MAX_TEXT_CHARACTERS: Final = 300


class RetryPolicy(enum.Enum):
    """How soon to try again after a failure."""

    BACKOFF = "backoff"
    """The cause may pass: the delay is random below a bound. The bound doubles from backoff_min_s to backoff_max_s."""

    FAST = "fast"
    """An attempt costs nothing, or the connection worked until now: the bound doubles only once, so a broker that returns is found soon."""

    SLOW = "slow"
    """An operator must change something: the delay is backoff_max_s and some jitter, as soon as each host was tried."""


@dataclass(frozen=True, slots=True)
class ConnectionFailure:
    """One failure: what happened, how soon to try again, the broker's code if there is one, and the operator's next step."""

    text: str
    retry: RetryPolicy = RetryPolicy.BACKOFF
    code: int | None = None
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.hint})" if self.hint else self.text

    @property
    def log_key(self) -> str:
        """The text without the parts of queue names that the broker chose, so that the same failure of two such queues has the same key."""
        return _CHOSEN_NAME.sub("amq.gen-", str(self))


# RabbitMQ's reply codes that need an operator. The others (320, 541, …) pass with time.
_SLOW_CODES: Final = frozenset({402, 403, 404, 405, 406, 501, 502, 503, 504, 530, 540})

_CHOSEN_NAME: Final = re.compile(r"amq\.gen-[\w-]+")

_HINTS: Final = (
    (r"^403 .*[Ll]ogin was refused", "check user and password in the broker URL; `rabbitmqctl authenticate_user` tests them"),
    (r"^403 .*can only log in via localhost", "make a user for towerws: guest works on the broker's host only"),
    (r"^403 ", "grant the user configure, write and read: `rabbitmqctl set_permissions`"),
    (r"^530 .*vhost .* not found", "check the vhost at the end of the broker URL (`/` is written %2F), or `rabbitmqctl add_vhost` it"),
    (r"^530 .*vhost", "grant the user access to the vhost: `rabbitmqctl set_permissions -p`"),
    (r"^404 .*is down or inaccessible", "its node is down or still starting; if that lasts, see `rabbitmqctl list_queues name state`"),
    (r"^404 .*no (exchange|queue)", "with passive set towerws creates nothing: declare it on the broker, or set passive = false"),
    (r"^405 ", "another connection owns that queue exclusively: choose another name"),
    (
        r"^406 .*replica on the local node",
        "this node has no replica of the stream; the next host is tried, or add one: `rabbitmq-streams add_replica`",
    ),
)

_CERTIFICATE_HINT: Final = "the broker's certificate must be for the host in the URL, signed by a known authority or the one in tls_ca"

_INEQUIVALENT: Final = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for (?P<kind>\w+) '(?P<name>[^']*)' in vhost '(?P<vhost>[^']*)': "
    r"received (?P<asked>.+?) but current is (?P<current>.+)$"
)
_SETTING_OF: Final = {
    "x-max-age": "stream_max_age_s",
    "x-max-length-bytes": "stream_max_bytes",
    "x-stream-max-segment-size-bytes": "stream_segment_bytes",
}


UNANSWERED: Final = ConnectionFailure("the broker has not answered yet")
"""The broker has neither agreed nor refused. Its answer may still come."""


def from_broker(code: int, text: str) -> ConnectionFailure:
    """Return the failure for the code and text with which the broker closed the connection or the channel."""
    reply = f"{code} {text}"
    retry = RetryPolicy.SLOW if code in _SLOW_CODES else RetryPolicy.BACKOFF
    if match := _INEQUIVALENT.search(text):
        return ConnectionFailure(reply, retry, code, _inequivalent(match))
    if (
        "replica on the local node" in text or "is down or inaccessible" in text
    ):  # another node may have the replica, or this node has it soon
        retry = RetryPolicy.BACKOFF
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, reply)), "")
    return ConnectionFailure(reply, retry, code, hint)


def from_channel(reason: Exception) -> ConnectionFailure:
    """Return the failure for the reason that pika gives for a closed channel."""
    if isinstance(reason, pika_exceptions.ChannelClosedByBroker):
        return from_broker(reason.reply_code, reason.reply_text)
    return ConnectionFailure(f"channel closed: {type(reason).__name__}")


def _inequivalent(match: re.Match[str]) -> str:
    argument, kind, name = match["argument"], match["kind"], match["name"]
    differs = f"{kind} '{name}' exists with {argument} {match['current']}, we asked for {match['asked']}"
    if setting := _SETTING_OF.get(argument):
        return f"{differs}: set {setting} to that value, or delete the stream with its events, or set passive = true"
    setting = "exchange" if kind == "exchange" else "stream"
    return f"{differs}: choose another name for `{setting}`, or delete the existing one"


def from_transport(failure: Failure, doing: str, *, tls: bool) -> ConnectionFailure:
    """Return the failure for an error of the network. `doing` says what was under way, such as "connecting" or "handshake"."""
    reason = failure.value
    if isinstance(reason, net_error.ConnectionRefusedError):
        return ConnectionFailure(
            f"{doing}: connection refused",
            RetryPolicy.FAST,
            hint="nothing listens there: check that the broker is running, and host and port in the broker URL",
        )
    if isinstance(reason, (net_error.DNSLookupError, net_error.UnknownHostError)):
        return ConnectionFailure(f"{doing}: the host name can't be resolved", hint="check the host in the broker URL")
    if isinstance(reason, SSL.Error):
        return _from_tls(reason, doing)
    if isinstance(reason, VerificationError):
        return ConnectionFailure(f"{doing}: TLS failed: the certificate is for another name", RetryPolicy.SLOW, hint=_CERTIFICATE_HINT)
    if isinstance(reason, net_error.ConnectionDone):
        hint = "" if tls or doing != "handshake" else "check that this is an AMQP port without TLS; amqps:// is for the TLS port"
        return ConnectionFailure(f"{doing}: the broker closed the connection", hint=hint)
    return ConnectionFailure(f"{doing}: {one_line(failure.getErrorMessage(), MAX_TEXT_CHARACTERS)}")


def _from_tls(reason: SSL.Error, doing: str) -> ConnectionFailure:
    details = reason.args[0] if reason.args else ()
    words = (
        "; ".join(str(entry[-1]) for entry in details if isinstance(entry, tuple)) if isinstance(details, (list, tuple)) else str(details)
    )
    if "certificate verify failed" in words:
        hint = _CERTIFICATE_HINT
    elif "wrong version number" in words or "record layer" in words:
        hint = "that port doesn't use TLS: use amqp:// or the TLS port"
    else:
        hint = "check the TLS settings on both sides"
    return ConnectionFailure(
        f"{doing}: TLS failed: {one_line(words or type(reason).__name__, MAX_TEXT_CHARACTERS)}", RetryPolicy.SLOW, hint=hint
    )
