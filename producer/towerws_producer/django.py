"""For Django: publish once the transaction is committed.

    from towerws_producer.django import emit_on_commit

    @receiver(post_save, sender=Order)
    def order_saved(sender, instance, **kwargs):
        emit_on_commit("orders.%d" % instance.pk, {"status": instance.status})

The broker is `TOWERWS_BROKER` in Django's settings or in the environment. `TOWERWS_EXCHANGE` likewise.
"""

from functools import partial
from typing import Dict, Optional

import towerws_producer
from towerws_producer.errors import ProducerError
from towerws_producer.payload import Payload, encode
from towerws_producer.producer import Producer


def emit_on_commit(topic: str, payload: Payload, using: Optional[str] = None) -> None:
    """Emit when the current transaction commits, or at once without one. A rollback emits nothing. It never raises for an event.

    A mapping is encoded now, so a receiver sees the state at this call.
    """
    from django.db import transaction  # noqa: PLC0415 - settings need not be there when this module is imported

    producer = _producer()
    if producer is None:
        return
    try:
        body = encode(payload, producer.max_payload_bytes)
    except ProducerError:
        producer.emit(topic, payload)  # counts and logs it
        return
    transaction.on_commit(partial(producer.emit, topic, body), using=using)


def _producer() -> Optional[Producer]:
    """The process's producer, made from Django's settings if they name a broker."""
    from django.conf import settings  # noqa: PLC0415

    if not towerws_producer.is_configured():
        named = {"broker": getattr(settings, "TOWERWS_BROKER", None), "exchange": getattr(settings, "TOWERWS_EXCHANGE", None)}
        given: Dict[str, str] = {name: value for name, value in named.items() if value}
        try:
            towerws_producer.configure(**given)
        except ProducerError as error:
            towerws_producer.say_once("config", f"dropped an event: {error}")
            return None
    return towerws_producer.default_producer()
