"""The client's tokens: the token of the handshake, and the tokens that replace it before it ends."""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections.abc import Callable
from typing import Any

from towerws.client.frames import lasts_s
from towerws.client.items import ClientError, caused
from towerws.client.options import Options, Token, check_token

TRIES = 3
"""The client stops after so many refused tokens in a row. The daemon ends a connection at its third bad token."""

SHORTEST_S = 2.0
"""A failed renewal is not repeated if the token ends within this time. The daemon then ends the connection, and asks for a new token."""

RENEW_AT = (0.7, 0.8)
"""A token is renewed after a random part of its life between these two, so that not all clients ask at once."""


class NoToken(Exception):
    """There is no token to connect with. `reason` is for the user. `final`: a later attempt can't help."""

    def __init__(self, reason: ClientError, *, final: bool) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.final = final


class Tokens:
    """Fetches tokens, and renews the one in use.

    `renew_after` schedules a call of `send_new` after so many seconds, and cancels the call that was scheduled before.
    """

    def __init__(
        self,
        options: Options,
        *,
        renew_after: Callable[[float], None],
        send: Callable[[dict[str, Any]], None],
        report: Callable[[ClientError], None],
    ) -> None:
        self._source = options.token
        self._within_s = options.connect_s
        self._renew_after = renew_after
        self._send = send
        self._report = report
        # of the current connection
        self._sent: Token | None = None
        self._used: Token | None = None
        self._ends_at = 0.0
        self._bad = 0
        # over all connections
        self._refused: str | None = None
        self._refusals = 0

    @property
    def may_change(self) -> bool:
        """Whether a function gives the tokens, so that a refused token can be replaced by another one."""
        return callable(self._source)

    async def first(self) -> str | None:
        """Return the token for a new connection, None if the client has none. Raises `NoToken`."""
        self._sent = self._used = None
        self._ends_at, self._bad = 0.0, 0
        if self._source is None:
            return None
        try:
            self._sent = await self._fetch()
        except Exception as error:  # noqa: BLE001 - whatever the callback raises
            raise NoToken(caused("token", f"the token callback failed: {error}", error), final=False) from None
        if self._sent is None:
            raise NoToken(ClientError("token", "the token callback gave no token"), final=True)
        if self._sent.token == self._refused:
            raise NoToken(ClientError("token", "the token callback gave the refused token again"), final=True)
        return self._sent.token

    def refused(self) -> bool:
        """Note that the server refused the token of the handshake. Return whether another token may help."""
        assert self._sent is not None
        self._refused = self._sent.token
        self._refusals += 1
        return self.may_change and self._refusals < TRIES

    def accepted(self) -> None:
        """Note that the server accepted the token that was sent last, and schedule its renewal."""
        self._used = self._sent
        self._bad = 0
        if self._used is None or not self.may_change:
            return
        self._refused, self._refusals = None, 0
        now_s = time.time()
        left_s = lasts_s(self._used.token, now_s) if self._used.expires_at is None else self._used.expires_at - now_s
        if left_s is not None and left_s > 0:
            self._ends_at = asyncio.get_running_loop().time() + left_s
            self._renew_after(left_s * random.uniform(*RENEW_AT))  # noqa: S311 - only spreads the requests

    def not_accepted(self, code: str) -> None:
        """Handle the daemon's error for a new token. The previous token stays in use, and a later attempt sends another one."""
        if code != "unavailable":  # with this code the daemon could not check the token
            self._bad += 1
        self._try_again()

    async def send_new(self) -> None:
        """Fetch another token, and send it. Report an error, and try again while the token in use is valid."""
        try:
            async with asyncio.timeout(self._within_s):
                fresh = await self._fetch()
        except TimeoutError:
            self._report(ClientError("token", f"no new token within {self._within_s:g} s"))
            fresh = None
        except Exception as error:  # noqa: BLE001 - whatever the callback raises
            self._report(caused("token", f"the token callback failed: {error}", error))
            fresh = None
        if fresh is None or self._used is None or fresh.token == self._used.token:
            self._try_again()
        else:
            self._sent = fresh
            self._send({"token": fresh.token, "id": "token"})

    def _try_again(self) -> None:
        left_s = self._ends_at - asyncio.get_running_loop().time()
        if left_s > SHORTEST_S and self._bad < TRIES - 1:  # The next bad token would end the connection.
            self._renew_after(left_s / 2)

    async def _fetch(self) -> Token | None:
        found: Any = self._source
        if callable(found):
            found = found()
        if inspect.isawaitable(found):
            found = await found
        if found is None or found == "":
            return None
        token = Token(found) if isinstance(found, str) else found
        if not isinstance(token, Token):
            raise TypeError("the token callback must give text, or a Token")
        return token._replace(token=check_token(token.token))
