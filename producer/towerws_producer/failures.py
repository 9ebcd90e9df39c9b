"""Translates the errors of pika and the broker into errors that say what the publisher can do."""

import ssl
from typing import Any, Tuple

from pika import exceptions as pika_exceptions

from towerws_producer.errors import (
    ConfigError,
    CredentialsRefused,
    Nacked,
    NoSuchExchange,
    NotConfirmed,
    ProducerError,
    Refused,
    Unreachable,
    Unroutable,
)


class Failure:
    """Why a connection ended. `error` is the error that a waiting `publish` raises. `retryable` is False if a retry can't help."""

    def __init__(self, error: ProducerError, retryable: bool = True, suspect: bool = False, may_not_declare: bool = False) -> None:
        self.error = error
        self.retryable = retryable
        self.suspect = suspect
        """Whether the broker closed the channel because of a message that was in flight."""
        self.may_not_declare = may_not_declare
        """Whether the user lacks the permission to declare the exchange. Publishing to an existing exchange may still work."""


def unroutable(exchange: str) -> ProducerError:
    """Return the error of an event that reached no queue."""
    return Unroutable(
        f"no queue is bound to the exchange {exchange!r} for this topic: is a towerws daemon running, and does it read from this exchange "
        "and virtual host?"
    )


def no_queue_yet(exchange: str) -> ProducerError:
    """Return the error of an event that waits for a queue."""
    return NotConfirmed(f"no queue takes events from the exchange {exchange!r} yet")


def nacked(exchange: str) -> ProducerError:
    """Return the error of an event that a queue has nacked."""
    return Nacked(f"a queue behind the exchange {exchange!r} takes no events (nack): is it at its maximum length?")


def cant_be_carried(error: Exception) -> ProducerError:
    """Return the error of an event with a property that can't be encoded. The text names no value."""
    return ConfigError(f"AMQP can't carry the event ({type(error).__name__}): check its message_id")


def judge(error: BaseException, doing: str, exchange: str, ready: bool) -> Failure:
    """Return the failure for an error of pika's, with a text that says what to do. `ready`: whether the connection could publish."""
    inner = _unwrapped(error)
    code, text = _reply(inner)
    if isinstance(inner, (pika_exceptions.ProbableAuthenticationError, pika_exceptions.AuthenticationError)) or (
        not ready and code == 403 and "login" in text.lower()
    ):
        return Failure(CredentialsRefused(f"{doing}: user name or password is wrong"), retryable=False)
    if isinstance(inner, pika_exceptions.ProbableAccessDeniedError) or (
        isinstance(inner, pika_exceptions.ConnectionClosed) and code == 530
    ):
        return Failure(CredentialsRefused(f"{doing}: the virtual host does not exist, or the user may not use it"), retryable=False)
    if isinstance(inner, pika_exceptions.ChannelClosed):
        return _judge_channel(code, text, doing, exchange, ready)
    if isinstance(inner, ssl.SSLError) and not isinstance(inner, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)):
        hint = "does that port speak TLS?" if "VERSION" in str(inner).upper() else "check the certificate, or tls_ca"
        return Failure(Refused(f"{doing}: TLS failed: {_short(inner)}; {hint}"), retryable=False)
    return Failure(Unreachable(f"{doing}: {_short(inner)}"))


def _judge_channel(code: int, text: str, doing: str, exchange: str, ready: bool) -> Failure:
    if code == 404:
        return Failure(
            NoSuchExchange(f"{doing}: there is no exchange {exchange!r}: start the towerws daemon, or check `exchange`"),
            retryable=False,
        )
    if code == 403:
        if not ready:  # declaring needs the permission `configure`, and publishing to an existing exchange does not
            return Failure(Refused(f"{doing}: may not declare the exchange {exchange!r}"), may_not_declare=True)
        return Failure(
            Refused(f"{doing}: the user may not write to the exchange {exchange!r} or to this topic there"),
            retryable=False,
            suspect=True,
        )
    if code == 406 and not ready:
        return Failure(
            NoSuchExchange(f"{doing}: {exchange!r} exists and is no durable topic exchange: choose another `exchange`"),
            retryable=False,
        )
    return Failure(Refused(f"{doing}: the broker refused a message: {text}"), suspect=True)


def _unwrapped(error: BaseException) -> BaseException:
    """Find the cause: pika wraps it in several exceptions, most of which have no text."""
    for _ in range(10):
        inner: Any = getattr(error, "exceptions", None)
        if inner:
            inner = inner[-1]
        else:
            inner = getattr(error, "exception", None)
            if inner is None and isinstance(error, pika_exceptions.AMQPConnectionError) and len(error.args) == 1:
                inner = error.args[0]
        if not isinstance(inner, BaseException):
            return error
        error = inner
    return error


def _reply(error: BaseException) -> Tuple[int, str]:
    code = getattr(error, "reply_code", 0)
    return (code if isinstance(code, int) else 0), " ".join(str(getattr(error, "reply_text", "")).split())[:200]


def _short(error: BaseException) -> str:
    if isinstance(error, pika_exceptions.AMQPHeartbeatTimeout):
        return "no heartbeat came"
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    code, text = _reply(error)
    if text:
        return f"{text} ({code})"
    return " ".join(str(error).split())[:200] or type(error).__name__
