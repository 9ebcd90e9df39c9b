"""Publish live events to towerws from any Python process.

    from towerws_producer import emit
    emit("orders.1042", {"status": "shipped"})

`emit` never raises and never waits for the broker. `publish` waits for the broker's confirm, or raises what says why there is none.
The broker is TOWERWS_BROKER (amqp://user:password@host:port/vhost), or what `configure` was given.
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
    """Make the producer that `emit`, `publish` and `flush` use from now on. Arguments as `Producer`'s."""
    _default["producer"] = producer = Producer(**settings)
    return producer


def is_configured() -> bool:
    """Whether there is a producer already."""
    return "producer" in _default


def default_producer() -> Producer:
    """Return the producer of this module's functions; it is made from the environment when there is none. `ConfigError` if it can't be."""
    producer = _default.get("producer")
    # Without a lock, which another thread could hold while we are forked: of two that are made at once, one is kept.
    return producer or _default.setdefault("producer", Producer())


def emit(topic: str, payload: Payload) -> bool:
    """Publish without waiting. See `Producer.emit`. Without a usable TOWERWS_BROKER every event is dropped, and a log line says so."""
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
    """Figures of this process. See `Producer.stats`."""
    return default_producer().stats()
