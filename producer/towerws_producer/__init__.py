"""Publish live events to towerws from any Python process.

    from towerws_producer import emit
    emit("orders.1042", {"status": "shipped"})

`emit` never raises and never waits for the broker. `publish` waits for the broker's confirm, or raises the reason why there is none.
The broker is TOWERWS_BROKER (amqp://user:password@host:port/vhost), or the argument of `configure`.
"""

from typing import Any, Dict, Optional

from towerws_producer.errors import (
    BadPayload,
    BadTopic,
    Blocked,
    BufferFull,
    ConfigError,
    CredentialsRefused,
    Nacked,
    NoSuchExchange,
    NotConfirmed,
    PayloadTooLarge,
    ProducerClosed,
    ProducerError,
    Refused,
    Unreachable,
    Unroutable,
)
from towerws_producer.folded_log import FoldedLog
from towerws_producer.payload import Payload
from towerws_producer.producer import FLUSH_S, PUBLISH_S, Producer

__version__ = "0.1.0"

__all__ = [
    "BadPayload",
    "BadTopic",
    "Blocked",
    "BufferFull",
    "ConfigError",
    "CredentialsRefused",
    "Nacked",
    "NoSuchExchange",
    "NotConfirmed",
    "PayloadTooLarge",
    "Producer",
    "ProducerClosed",
    "ProducerError",
    "Refused",
    "Unreachable",
    "Unroutable",
    "configure",
    "default_producer",
    "emit",
    "flush",
    "is_configured",
    "publish",
    "say_once",
    "stats",
]

_default: Dict[str, Producer] = {}
_log = FoldedLog()


def configure(**settings: Any) -> Producer:
    """Make the producer for later calls of `emit`, `publish` and `flush`, and return it. The arguments are those of `Producer`."""
    _default["producer"] = producer = Producer(**settings)
    return producer


def is_configured() -> bool:
    """Whether a producer exists already."""
    return "producer" in _default


def default_producer() -> Producer:
    """Return the producer of this module's functions, made from the environment if there is none. Raises `ConfigError`."""
    producer = _default.get("producer")
    # No lock, because another thread could hold it during a fork. If two threads make a producer at once, one producer is kept.
    return producer or _default.setdefault("producer", Producer())


def emit(topic: str, payload: Payload) -> bool:
    """Publish without waiting. See `Producer.emit`. Without a usable TOWERWS_BROKER it drops every event, and a log line says so."""
    try:
        producer = default_producer()
    except ConfigError as error:
        say_once("config", f"dropped an event: {error}")
        return False
    return producer.emit(topic, payload)


def say_once(kind: str, text: str) -> None:
    """Log a line, at most once a minute for each kind."""
    _log.fold(kind, text)


def publish(topic: str, payload: Payload, timeout: float = PUBLISH_S, message_id: Optional[str] = None) -> str:
    """Publish and wait for the confirm. See `Producer.publish`."""
    return default_producer().publish(topic, payload, timeout, message_id)


def flush(timeout: float = FLUSH_S) -> bool:
    """Wait until the events so far are confirmed or dropped. See `Producer.flush`."""
    return "producer" not in _default or _default["producer"].flush(timeout)


def stats() -> Dict[str, Any]:
    """Return the figures of this process. See `Producer.stats`."""
    return default_producer().stats()
