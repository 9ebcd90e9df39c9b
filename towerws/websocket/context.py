"""What all connections of a daemon share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from towerws.auth.base import Method
from towerws.core.deflate import Deflater, deflated
from towerws.core.hub import Hub
from towerws.core.ingest import Ingest
from towerws.core.settings import HistorySettings, LimitSettings, Settings, WebSocketSettings
from towerws.core.topics import GroupTable
from towerws.websocket.credential_monitor import CredentialMonitor
from towerws.websocket.logs import RefusalLog
from towerws.websocket.replay import ReplayBounds


class ConnectionContext:
    """The services that a session calls, its settings, and its counters.

    `revalidate_s`: seconds between two checks of a connected credential; 0 disables the checks. `wall` returns the seconds
    since 1970.
    """

    def __init__(
        self,
        hub: Hub,
        ingest: Ingest,
        auth: Method,
        groups: GroupTable,
        settings: WebSocketSettings,
        reactor: IReactorTime,
        *,
        check_xrftoken: bool = True,
        revalidate_s: float = 0,
        wall: Callable[[], float] = time.time,
        replays: ReplayBounds | None = None,
    ) -> None:
        self.hub = hub
        self.ingest = ingest
        self.auth = auth
        self.groups = groups
        self.settings = settings
        self.reactor = reactor
        self.check_xrftoken = check_xrftoken
        self.credential_monitor = CredentialMonitor(hub, auth, reactor, revalidate_s=revalidate_s, wall=wall)
        self.replays = replays or ReplayBounds(LimitSettings().replay_bytes_per_s, HistorySettings().max_bytes)
        self.refusals = RefusalLog(reactor)
        self.deflater = Deflater(settings.compression_bytes)
        self.deflated = deflated(self.deflater)
        """By subprotocol: the dialects of clients that negotiated compression."""
        self.limit_counts: Counter[str] = Counter()
        """By option: how often its limit ended a connection or delayed a message."""
        self.requests = 0
        """Messages of clients, event streams, and pages of history. A refused message counts, a refused plain request does not."""
        self.bad_requests = 0
        """Messages that were answered with an error."""
        self.denied = 0
        """Topics that a client was denied, or that were taken away from it."""
        self.renewed = 0
        """Credentials that were replaced on an open connection."""

    def reload(self, settings: Settings, groups: GroupTable) -> None:
        """Put new settings in force. Open connections stay, and keep the values that they copied from the old ones."""
        self.groups = groups
        self.settings = settings.websocket
        self.check_xrftoken = settings.access.check_xrftoken
        self.deflater.min_bytes = settings.websocket.compression_bytes
        self.replays.set_rate(settings.limits.replay_bytes_per_s)
        self.credential_monitor.set_interval(settings.access.revalidate_s)
