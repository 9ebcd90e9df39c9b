"""What Autobahn keeps for each connection, kept once for all of them.

Autobahn gives each connection some fifty attributes of its own at the start, copies thirty options to it and formats them for
a log line, whether anybody logs it or not. Nearly all of that is the same for every connection, or asked for by nobody. As
the class's it costs nothing: a connect and subscribe takes a third less CPU (make bench SCENARIO=storm), and 3 KB less memory.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from autobahn.websocket.protocol import TrafficStats, WebSocketProtocol

_SAME_FOR_ALL = int | float | str | bytes | None
"""A value of these types in the class serves as the attribute's first: nobody can change it in place."""


class _UnusedDeferred:
    """Stands for Autobahn's two Deferreds, which fire when a connection is open and closed: nobody here listens to them."""

    def callback(self, result: object) -> None:
        """Tell nobody."""


def with_shared_state(base: Any, factory: Any) -> Any:
    """A class of connections like `base`, with the options of `factory`, and the state in which Autobahn starts, in the class.

    What stays each connection's own is the timer of the handshake, which `connectionMade` makes, and the UTF-8 validator: one
    that is needed is made when it is.
    """
    options = {name: getattr(factory, name) for name in base.CONFIG_ATTRS}
    # A function would become a method.
    options = {name: staticmethod(value) if callable(value) else value for name, value in options.items()}
    shared = {
        "trafficStats": TrafficStats(),
        "send_queue": deque(),  # stays empty: only chopped sends are queued
        "is_open": _UnusedDeferred(),
        "is_closed": _UnusedDeferred(),
        "_transport_details": None,
        "utf8validator": None,
    }
    probe = type(base.__name__, (base,), {**options, "CONFIG_ATTRS": (), "openHandshakeTimeout": 0})()
    probe.factory = factory
    WebSocketProtocol._connectionMade(probe)  # noqa: SLF001 - what it sets is what is wanted
    start = {name: value for name, value in vars(probe).items() if isinstance(value, _SAME_FOR_ALL) and name != "factory"}
    return type(base.__name__, (base,), {**start, **options, **shared, "CONFIG_ATTRS": ()})
