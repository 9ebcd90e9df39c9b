"""The desk: what all sessions share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime

from towerws.auth.base import Method
from towerws.core.deflate import Deflater, deflated
from towerws.core.deliveries import Delivery
from towerws.core.hub import Hub
from towerws.core.ingest import Ingest
from towerws.core.settings import HistorySettings, LimitSettings, WebSocketSettings
from towerws.core.topics import GroupTable
from towerws.websocket.credential_monitor import CredentialMonitor
from towerws.websocket.refusal_log import RefusalLog
from towerws.websocket.replay import ReplayBounds


class ConnectionContext:
    """The parts that a session asks, the settings it keeps to, and the figures it counts.

    `revalidate_s` is how often credentials are asked about anew, 0 never; `wall` tells the seconds since 1970.
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
        """The dialects of clients with whom compression was negotiated, by subprotocol."""
        self.limits: Counter[str] = Counter()
        """How often each limit was met, by the option's name: by a connection that ended on it, or a message that had to wait."""
        self.requests = 0
        self.bad_requests = 0
        self.denied = 0
        self.renewed = 0
        """Credentials replaced on an open connection."""

    def wait_for_position(self, position: str, call: Callable[[Delivery | None], None], late: Callable[[], None]) -> Callable[[], None]:
        """Call `call` once this position can be judged, or `late` after `resume_wait_s`. What is given back cancels both."""
        return _PositionWait(self, position, call, late).cancel


class _PositionWait:
    """A request that waits for its position to be judged. At its end it lets go of what refers back to it, and would be a cycle."""

    __slots__ = ("_call", "_forget", "_late", "_timer")

    def __init__(
        self, context: ConnectionContext, position: str, call: Callable[[Delivery | None], None], late: Callable[[], None]
    ) -> None:
        self._call: Callable[[Delivery | None], None] | None = call
        self._late: Callable[[], None] | None = late
        self._timer: Any = context.reactor.callLater(context.settings.resume_wait_s, self._over)
        self._forget: Callable[[], None] | None = context.ingest.wait_for_position(position, self._judged)

    def _judged(self, found: Delivery | None) -> None:
        call = self._call
        self.cancel()
        if call is not None:
            call(found)

    def _over(self) -> None:
        late = self._late
        self.cancel()
        if late is not None:
            late()

    def cancel(self) -> None:
        """Wait no longer. A second call does nothing."""
        forget, self._forget = self._forget, None
        timer, self._timer = self._timer, None
        self._call = self._late = None
        if forget is not None:
            forget()
        if timer is not None and timer.active():
            timer.cancel()
