"""Why a link to the broker was lost or refused, in words that an operator can act on.

RabbitMQ's own code and text are always kept; a hint says the next step where there is a usual one. No text holds a
password: the broker never sends one, and ours are made of hosts, names and codes only.
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


class RetryPolicy(enum.Enum):
    """What a loss needs: it sets the pace of the next attempts."""

    BACKOFF = "backoff"  # it may be better in a moment: full-jitter backoff that grows
    FAST = "fast"  # nobody was there, or it worked until now: retried quickly, since an attempt costs nothing
    SLOW = "slow"  # refused by configuration: retried at the slow end


@dataclass(frozen=True, slots=True)
class ConnectionFailure:
    """One loss: what happened (with the broker's code where it said one), what to do about it, and who can cure it."""

    text: str
    retry: RetryPolicy = RetryPolicy.BACKOFF
    code: int | None = None
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.hint})" if self.hint else self.text


# RabbitMQ's reply codes that only an operator can cure; the others (320, 541, …) pass with time.
_SLOW_CODES: Final = frozenset({402, 403, 404, 405, 406, 501, 502, 503, 504, 530, 540})

_HINTS: Final = (
    (r"^403 .*[Ll]ogin was refused", "check user and password in the broker URL; `rabbitmqctl authenticate_user` tests them"),
    (r"^403 .*can only log in via localhost", "make a user of its own for towerws; guest works on the broker's host only"),
    (r"^403 ", "grant the user configure, write and read: `rabbitmqctl set_permissions`"),
    (r"^530 .*vhost .* not found", "check the vhost at the end of the broker URL (`/` is written %2F), or `rabbitmqctl add_vhost` it"),
    (r"^530 .*vhost", "grant the user access to the vhost: `rabbitmqctl set_permissions -p`"),
    (r"^404 .*is down or inaccessible", "its node is down or just coming up; if that lasts, see `rabbitmqctl list_queues name state`"),
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
    r"received (?P<asked>.+?) but current is (?P<there>.+)$"
)
_SETTING_OF: Final = {
    "x-max-age": "stream_max_age_s",
    "x-max-length-bytes": "stream_max_bytes",
    "x-stream-max-segment-size-bytes": "stream_segment_bytes",
}


def from_broker(code: int, text: str) -> ConnectionFailure:
    """What the broker said when it closed the connection or the channel."""
    said = f"{code} {text}"
    retry = RetryPolicy.SLOW if code in _SLOW_CODES else RetryPolicy.BACKOFF
    if match := _INEQUIVALENT.search(text):
        return ConnectionFailure(said, retry, code, _inequivalent(match))
    if "replica on the local node" in text or "is down or inaccessible" in text:  # another node, or a moment, helps
        retry = RetryPolicy.BACKOFF
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, said)), "")
    return ConnectionFailure(said, retry, code, hint)


def from_channel(reason: Exception) -> ConnectionFailure:
    """Why a channel was closed."""
    if isinstance(reason, pika_exceptions.ChannelClosedByBroker):
        return from_broker(reason.reply_code, reason.reply_text)
    return ConnectionFailure(f"channel closed: {type(reason).__name__}")


def _inequivalent(match: re.Match[str]) -> str:
    argument, kind, name = match["argument"], match["kind"], match["name"]
    differs = f"{kind} '{name}' exists with {argument} {match['there']}, we asked for {match['asked']}"
    if setting := _SETTING_OF.get(argument):
        return f"{differs}: set {setting} to what is there, or delete the stream and what it holds, or set passive = true"
    setting = "exchange" if kind == "exchange" else "stream"
    return f"{differs}: choose another name for `{setting}`, or delete the existing one"


def from_transport(failure: Failure, doing: str, *, tls: bool) -> ConnectionFailure:
    """What the network said: `failure` of an attempt to connect, or of the connection while `doing` something."""
    reason = failure.value
    if isinstance(reason, net_error.ConnectionRefusedError):
        return ConnectionFailure(
            f"{doing}: connection refused", RetryPolicy.FAST, hint="nothing listens there: is the broker running, are host and port right?"
        )
    if isinstance(reason, (net_error.DNSLookupError, net_error.UnknownHostError)):
        return ConnectionFailure(f"{doing}: the host name can't be resolved", hint="check the host in the broker URL")
    if isinstance(reason, SSL.Error):
        return _from_tls(reason, doing)
    if isinstance(reason, VerificationError):
        return ConnectionFailure(f"{doing}: TLS failed: the certificate is for another name", RetryPolicy.SLOW, hint=_CERTIFICATE_HINT)
    if isinstance(reason, net_error.ConnectionDone):
        hint = "" if tls or doing != "handshake" else "is this an AMQP port without TLS? amqps:// is for the TLS port"
        return ConnectionFailure(f"{doing}: the broker closed the connection", hint=hint)
    return ConnectionFailure(f"{doing}: {_one_line(failure.getErrorMessage())}")


def _from_tls(reason: SSL.Error, doing: str) -> ConnectionFailure:
    details = reason.args[0] if reason.args else ()
    words = (
        "; ".join(str(entry[-1]) for entry in details if isinstance(entry, tuple)) if isinstance(details, (list, tuple)) else str(details)
    )
    if "certificate verify failed" in words:
        hint = _CERTIFICATE_HINT
    elif "wrong version number" in words or "record layer" in words:
        hint = "that port doesn't speak TLS: use amqp:// or the TLS port"
    else:
        hint = "check the TLS settings on both sides"
    return ConnectionFailure(f"{doing}: TLS failed: {_one_line(words or type(reason).__name__)}", RetryPolicy.SLOW, hint=hint)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
