"""For Django: publish once the transaction is committed.

    from towerws_producer.django import emit_on_commit

    @receiver(post_save, sender=Order)
    def order_saved(sender, instance, **kwargs):
        emit_on_commit("orders.%d" % instance.pk, {"status": instance.status})

`TOWERWS_BROKER` and `TOWERWS_EXCHANGE`, in Django's settings or in the environment, name the broker and the exchange.
"""

from functools import partial
from typing import Dict, Optional

import towerws_producer
from towerws_producer.errors import ProducerError
from towerws_producer.payload import Payload, encode
from towerws_producer.producer import Producer


def emit_on_commit(topic: str, payload: Payload, using: Optional[str] = None) -> None:
    """Emit when the current transaction commits, or at once without a transaction. A rollback emits nothing. It never raises for an event.

    It encodes the payload at this call, so later changes of a mapping are not published.
    """
    from django.db import transaction  # noqa: PLC0415 - Django's settings may not exist yet when this module is imported

    producer = _producer()
    if producer is None:
        return
    try:
        body = encode(payload, producer.max_payload_bytes)
    except ProducerError:
        producer.emit(topic, payload)  # counts and logs the bad payload
        return
    transaction.on_commit(partial(producer.emit, topic, body), using=using)


def _producer() -> Optional[Producer]:
    """Return the process's producer. The first call makes it, from Django's settings or the environment. None if they can't be used."""
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
