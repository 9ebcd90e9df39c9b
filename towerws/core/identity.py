"""Who is at the other end of a connection, as far as the core needs to know."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

from towerws.core.settings import Secret


@dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated user, and what follows from how it was authenticated."""

    user_id: int | str | None = None
    """What the clients are told of themselves; None for an anonymous user."""
    method: str = "open"
    """The name of the method that vouches for it, which is also asked what it may listen to."""
    session: str | None = None
    """Names the credential in logs and revocations: a hash, never the credential."""
    also: tuple[str, ...] = ()
    """More names that it can be revoked by: an AWX page may bring several session cookies, and only AWX knows which one counts."""
    cookie: bool = False
    """Whether the browser sent the credential by itself: then `xrftoken` must vouch for the page."""
    csrftoken: Secret | None = None
    """AWX's `csrftoken` cookie at the opening handshake."""
    expires_at: float | None = None
    """When the credential ends, in seconds since 1970; None when it does not say."""
    checked_at: float | None = None
    """When what vouches for it was asked about (monotonic seconds); None for just now, or for what needs no asking."""
    private: object = field(default=None, repr=False)
    """The method's own: nobody else looks at it."""

    @property
    def user(self) -> str | None:
        """The user as text, by which its connections are found: `7` and `"7"` are one, whatever method vouches for it."""
        return None if self.user_id is None else str(self.user_id)

    @property
    def account(self) -> str | None:
        """The user as text, under which its connections are limited. The same id of two methods is two users."""
        return None if self.user_id is None else f"{self.method}:{self.user_id}"

    @property
    def sessions(self) -> tuple[str, ...]:
        """All names that the credential can be revoked by."""
        return self.also if self.session is None else (self.session, *self.also)

    def vouched_for_by(self, xrftoken: object) -> bool:
        """Whether the page knows what only the site's own pages can read, where the browser sends the cookie by itself."""
        if not self.cookie:
            return True
        if self.csrftoken is None or not isinstance(xrftoken, str):
            return False
        known, told = self.csrftoken.reveal().encode(), xrftoken.encode()
        return known != b"" != told and hmac.compare_digest(known, told)
