"""The desk: what all sessions share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from towerws.auth.base import Method
from towerws.core.deflate import Deflater, deflated
from towerws.core.groups import GroupTable
from towerws.core.hub import Hub
from towerws.core.intake import Intake
from towerws.core.settings import HistorySettings, LimitSettings, WebSocketSettings
from towerws.websocket.guard import Guard
from towerws.websocket.refusal_log import RefusalLog
from towerws.websocket.replay import ReplayBounds

HOLD_S = 5.0
"""How long a request waits for history to be refilled. Half of what awxkit waits for its answer (awxkit/ws.py)."""


class Desk:
    """The parts that a session asks, the settings it keeps to, and the figures it counts.

    `revalidate_s` is how often credentials are asked about anew, 0 never; `wall` tells the seconds since 1970.
    """

    def __init__(
        self,
        hub: Hub,
        intake: Intake,
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
        self.intake = intake
        self.auth = auth
        self.groups = groups
        self.settings = settings
        self.reactor = reactor
        self.check_xrftoken = check_xrftoken
        self.guard = Guard(hub, auth, reactor, revalidate_s=revalidate_s, wall=wall)
        self.replays = replays or ReplayBounds(LimitSettings().replay_bytes_per_s, HistorySettings().max_octets)
        self.refusals = RefusalLog(reactor)
        self.deflater = Deflater(settings.compression_octets)
        self.deflated = deflated(self.deflater)
        """The dialects of clients with whom compression was negotiated, by subprotocol."""
        self.limits: Counter[str] = Counter()
        """How often each limit was met, by the option's name: by a connection that ended on it, or a message that had to wait."""
        self.requests = 0
        self.bad_requests = 0
        self.denied = 0
        self.renewed = 0
        """Credentials replaced on an open connection."""

    def when_flowing(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call this once history is refilled, after `HOLD_S` at the latest; what is given back cancels it.

        Until then nobody can say what a position is worth, or what came before a request.
        """

        def go_on() -> None:
            cancel()
            call()

        def cancel() -> None:
            forget()
            if timer.active():
                timer.cancel()

        forget = self.intake.when_flowing(go_on)
        timer = self.reactor.callLater(HOLD_S, go_on)
        return cancel
