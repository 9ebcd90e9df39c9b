"""How an opening handshake of `towerws doctor` arrived, for the doctor to compare with what it sent.

The doctor names a probe on the admin port, connects through the public URL with that name in a header, and asks again. So only a
user of the admin port learns which headers a proxy adds and which address the daemon counts. The handshake's answer tells none of it.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping

PROBE_HEADER = "x-towerws-probe"
"""The header with the probe's name. In lower case, as `Head.headers` has it."""

MAX_PROBES = 16
"""Probes that are remembered. One more drops the oldest."""

MAX_VALUE_CHARACTERS = 200

SHOWN = ("host", "origin", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "forwarded")
"""The headers that are remembered. None of them holds a credential."""

_is_name = re.compile("[0-9a-f]{32}", re.ASCII).fullmatch

Seen = Mapping[str, object]
"""`peer` and `peer_port` of the TCP connection, whether that is `trusted`, the client's `address` as it is counted, and `headers`."""


def parse_probe(body: bytes) -> str:
    """Return the name in the body of `POST /probe`, `{"probe": "<32 hexadecimal digits>"}`. Raises `ValueError` with the rule."""
    try:
        name = json.loads(body)["probe"]
    except (ValueError, LookupError, TypeError, RecursionError):
        name = None
    if not isinstance(name, str) or not _is_name(name):
        raise ValueError('the body must be {"probe": "…"} with 32 hexadecimal digits in lower case')
    return name


class HandshakeProbes:
    """Remembers the handshakes with a name that was asked for before."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, Seen | None] = OrderedDict()

    def ask(self, name: str) -> Seen | None:
        """Return how the newest handshake with this name arrived. The first question makes the name known, and returns None."""
        if name not in self._seen:
            self._seen[name] = None
            if len(self._seen) > MAX_PROBES:
                self._seen.popitem(last=False)
        return self._seen[name]

    def note(self, headers: Mapping[str, str], peer: str, peer_port: int, address: str, *, trusted: bool) -> None:
        """Remember a handshake with the header `PROBE_HEADER`. A name that the admin port doesn't know changes nothing."""
        name = headers[PROBE_HEADER]
        if name in self._seen:
            self._seen[name] = {
                "peer": peer,
                "peer_port": peer_port,
                "trusted": trusted,
                "address": address,
                "headers": {key: headers[key][:MAX_VALUE_CHARACTERS] for key in SHOWN if key in headers},
            }
