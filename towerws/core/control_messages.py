"""The messages on the control exchange, and the daemons that take part: revocations, and three messages between daemons.

  object                                               | sender                             | meaning
  {"user": 7}, {"session": "…"}                        | any client that may publish there  | close these connections
  {"daemon": "<id>", "marker": "<text>", "name": "…"}  | each daemon, every few seconds     | it exists, and follows revocations
  {"daemon": "<id>", "done": "<message id>"}           | a daemon, about a daemon's message | that revocation was followed
  {"daemon": "<id>", "leaving": true}                  | a daemon that stops                | don't wait for it

Other keys in an object with "daemon" are ignored, so that a later version can add some.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from math import inf
from typing import Any, Final

from towerws.core.identity import MAX_REVOCATION_BYTES, Revocation, parse_revocation

MAX_TEXT_CHARACTERS: Final = 64
MAX_DAEMON_NAME_CHARACTERS: Final = 255
"""A host name has at most 253 (RFC 1035). A longer name is cut."""

_ID: Final = re.compile(r"[0-9a-f]{16}")
_REVOCATION_ID: Final = re.compile(r"[0-9a-f]{16}-[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class DaemonName:
    """A daemon's id, 16 hexadecimal digits that differ for each process, and its name for people, `host:pid`."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ControlMarker:
    """Says that a daemon exists, and follows revocations."""

    daemon: DaemonName
    text: str

    @property
    def body(self) -> bytes:
        """The message's body, as `parse_control` reads it."""
        return _body({"daemon": self.daemon.id, "marker": self.text, "name": self.daemon.name[:MAX_DAEMON_NAME_CHARACTERS]})


@dataclass(frozen=True, slots=True)
class Done:
    """Says that a daemon has closed the connections of the revocation with this message id."""

    daemon: str
    message_id: str

    @property
    def body(self) -> bytes:
        """The message's body, as `parse_control` reads it."""
        return _body({"daemon": self.daemon, "done": self.message_id})


@dataclass(frozen=True, slots=True)
class Leaving:
    """Says that a daemon stops, and has no connections left."""

    daemon: str

    @property
    def body(self) -> bytes:
        """The message's body, as `parse_control` reads it."""
        return _body({"daemon": self.daemon, "leaving": True})


def parse_control(body: bytes) -> Revocation | ControlMarker | Done | Leaving:
    """Read a control message. Raises `ValueError` that says what is wrong and repeats nothing of the message."""
    if len(body) > MAX_REVOCATION_BYTES:
        raise ValueError(f"a control message has at most {MAX_REVOCATION_BYTES} bytes")
    try:
        found = json.loads(body.decode())
    except (ValueError, RecursionError):
        found = None
    match found:
        case {"daemon": str() as daemon} if _ID.fullmatch(daemon):
            return _from_daemon(daemon, found)
    return parse_revocation(body)


def revocation_id(daemon: str, number: int) -> str:
    """Return the `message_id` of a daemon's revocation with this number."""
    return f"{daemon}-{number}"


def wants_answer(message_id: str | None) -> bool:
    """Return whether a revocation with this id came from a daemon, which waits for `Done`."""
    return message_id is not None and _REVOCATION_ID.fullmatch(message_id) is not None


def _from_daemon(daemon: str, found: dict[str, Any]) -> ControlMarker | Done | Leaving:
    match found:
        case {"marker": str() as text, "name": str() as name} if len(text) <= MAX_TEXT_CHARACTERS:
            return ControlMarker(DaemonName(daemon, name[:MAX_DAEMON_NAME_CHARACTERS]), text)
        case {"done": str() as message_id} if len(message_id) <= MAX_TEXT_CHARACTERS:
            return Done(daemon, message_id)
        case {"leaving": True}:
            return Leaving(daemon)
    raise ValueError('an object with "daemon" must have "marker" and "name", or "done", or "leaving"')


def _body(message: dict[str, object]) -> bytes:
    return json.dumps(message).encode("ascii")


PRESENT_S: Final = 30.0
"""How long after its last marker a daemon counts as present: three markers, one every 10 s. One or two may fail, for example during
an alarm of the broker or a move to another host."""

MAX_DAEMONS: Final = 256


class Daemons:
    """The other daemons that exist: those whose markers were read lately. Times are monotonic seconds.

    At most `MAX_DAEMONS` are kept. If there are more, `too_many` says so: then the list is not complete.
    """

    def __init__(self) -> None:
        self._heard: dict[DaemonName, float] = {}
        self._rejected_at = -inf

    def heard(self, daemon: DaemonName, now: float) -> bool:
        """Take note of a daemon's marker. Return True for a daemon that was not known."""
        self._forget(now)
        new = daemon not in self._heard
        if new and len(self._heard) >= MAX_DAEMONS:
            self._rejected_at = now
            return False
        self._heard[daemon] = now
        return new

    def left(self, daemon: str) -> None:
        """Remove a daemon, which said that it stops."""
        self._heard = {each: at for each, at in self._heard.items() if each.id != daemon}

    def restart_timeouts(self, now: float) -> None:
        """Give every daemon the full time again: until now this daemon could not read markers."""
        self._heard = dict.fromkeys(self._heard, now)

    def present(self, now: float) -> dict[DaemonName, float]:
        """Return the daemons whose marker was read within `PRESENT_S`, each with the seconds since then."""
        self._forget(now)
        return {daemon: now - at for daemon, at in self._heard.items()}

    def too_many(self, now: float) -> bool:
        """Return whether more than `MAX_DAEMONS` sent markers within `PRESENT_S`."""
        return now - self._rejected_at <= PRESENT_S

    def _forget(self, now: float) -> None:
        for daemon in [daemon for daemon, at in self._heard.items() if now - at > PRESENT_S]:
            del self._heard[daemon]
