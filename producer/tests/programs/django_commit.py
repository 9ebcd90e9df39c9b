"""Django's transactions, its encoder, and a signal receiver, with an in-memory database."""

import datetime
import decimal
import os
import uuid

import django
from django.conf import settings

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    TOWERWS_BROKER=os.environ["DJANGO_TOWERWS_BROKER"],
    TOWERWS_EXCHANGE=os.environ["DJANGO_TOWERWS_EXCHANGE"],
    USE_TZ=True,
)
django.setup()

from django.db import transaction  # noqa: E402 - needs the settings
from django.dispatch import Signal, receiver  # noqa: E402
from django.utils.functional import lazy  # noqa: E402
from pace import report  # noqa: E402

import towerws_producer  # noqa: E402
from towerws_producer.django import emit_on_commit  # noqa: E402

saved = Signal()


@receiver(saved)
def order_saved(sender: object, number: int, **_: object) -> None:
    """The documentation's recipe."""
    emit_on_commit("orders.%d" % number, {"by": "signal"})


def main() -> None:
    """Events of a rolled-back transaction are never published. The others are, in the order of the commits."""
    try:
        with transaction.atomic():
            emit_on_commit("orders.1", {"by": "rolled back"})
            raise ValueError("no")
    except ValueError:
        pass
    with transaction.atomic():
        state = {"by": "committed", "state": "then"}
        emit_on_commit("orders.1", state)
        state["state"] = "later"
        towerws_producer.emit("orders.1", {"by": "at once"})
        saved.send(sender=None, number=1)
    emit_on_commit("orders.1", {"by": "without a transaction"})
    types = {
        "when": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc),
        "price": decimal.Decimal("1.10"),
        "id": uuid.UUID(int=7),
        "text": lazy(lambda: "lazy", str)(),
    }
    emit_on_commit("orders.1", types)
    with transaction.atomic():
        emit_on_commit("orders.1", {"bad": object()})
        emit_on_commit("no topic", {})
    emit_on_commit("orders.1", {"by": "last"})
    report(flushed=towerws_producer.flush(20), stats=towerws_producer.stats(), django=django.get_version())


main()
