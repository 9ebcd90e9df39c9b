"""The Python client of `towerws.v1`: stays connected, resumes at its position, and reports missing events (docs/python-client.md).

    live = connect("wss://example.com/websocket/")
    live.subscribe({"job_events": [42]}, lambda event: print(event.payload))

The client has the behaviour and the names of the JavaScript client in `clients/js`. `towerws.client.sync` is the same client for programs
without asyncio. The package imports nothing of the daemon but plain modules of `towerws.core`.
"""

from towerws.client.connection import Client, connect
from towerws.client.items import ClientError, Denied, DeniedTopic, Event, Gap, Item, Subscribed
from towerws.client.options import Options, StateChange, Store, Token
from towerws.client.store import FileStore
from towerws.client.subscription import Subscription

__all__ = [
    "Client",
    "ClientError",
    "Denied",
    "DeniedTopic",
    "Event",
    "FileStore",
    "Gap",
    "Item",
    "Options",
    "StateChange",
    "Store",
    "Subscribed",
    "Subscription",
    "Token",
    "connect",
]
