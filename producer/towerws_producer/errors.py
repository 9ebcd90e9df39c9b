"""The errors of `publish`. `emit` raises none of them, but counts and logs them.

`reason` is the word under which `Producer.stats()["dropped"]` counts an event with this error.
"""


class ProducerError(Exception):
    """The base class of all errors of this package."""

    reason = "error"


class ConfigError(ProducerError, ValueError):
    """A setting can't be used. The text names it and states the rule. It never repeats a password."""

    reason = "config"


class BadTopic(ProducerError, ValueError):
    """The topic breaks the daemon's rules for names, so no client could ever subscribe to it."""

    reason = "topic"


class BadPayload(ProducerError, ValueError):
    """The payload can't be encoded, or is not one JSON object in UTF-8."""

    reason = "payload"


class PayloadTooLarge(BadPayload):
    """The encoded payload is larger than `max_payload_bytes`, so the daemon would skip it, or larger than the buffer."""

    reason = "too_large"


class BufferFull(ProducerError):
    """The event was dropped to make room for newer ones, because the broker accepts fewer events than are published."""

    reason = "buffer_full"


class ProducerClosed(ProducerError):
    """The producer was closed before the event was confirmed."""

    reason = "closed"


class NotConfirmed(ProducerError):
    """No confirm came in time. The event stays in the buffer and may still be published."""

    reason = "not_confirmed"


class Unreachable(NotConfirmed):
    """No broker could be reached in time. The event stays in the buffer and may still be published."""

    reason = "unreachable"


class Blocked(NotConfirmed):
    """The broker accepts no messages (memory or disk alarm). The event stays in the buffer and may still be published."""

    reason = "blocked"


class Nacked(NotConfirmed):
    """A queue did not accept the event, for example because it is full. The event stays in the buffer and is sent again."""

    reason = "nacked"


class Refused(ProducerError):
    """The broker refuses the connection or the event, and a retry can't help."""

    reason = "refused"


class CredentialsRefused(Refused):
    """User name or password is wrong, or the user may not use the virtual host."""

    reason = "credentials"


class NoSuchExchange(Refused):
    """The exchange doesn't exist, or is of another type."""

    reason = "no_exchange"


class Unroutable(ProducerError):
    """The broker confirmed the event, but it reached no queue: no daemon reads from this exchange."""

    reason = "returned"
