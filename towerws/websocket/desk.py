"""The desk: what all sessions share."""

from __future__ import annotations

import time
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from towerws.auth.base import Method
from towerws.core.groups import GroupTable
from towerws.core.hub import Hub
from towerws.core.intake import Intake
from towerws.core.settings import WebSocketSettings
from towerws.websocket.guard import Guard


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
    ) -> None:
        self.hub = hub
        self.intake = intake
        self.auth = auth
        self.groups = groups
        self.settings = settings
        self.reactor = reactor
        self.check_xrftoken = check_xrftoken
        self.guard = Guard(hub, auth, reactor, revalidate_s=revalidate_s, wall=wall)
        self.requests = 0
        self.bad_requests = 0
        self.denied = 0
