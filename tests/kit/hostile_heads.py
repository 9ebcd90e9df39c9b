"""Ambiguous openings, and origins of pages with the right answer: one table each, used directly and through nginx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.kit.ws_kit import request

FORGED = "203.0.113.9"
"""The address that hostile heads claim. It must never be taken for the client's."""

COOKIE = "Cookie: sessionid=s3ss10n; csrftoken=c5rf"


class Hostile(NamedTuple):
    """A head that is refused with 400. `harmless`: nginx removes the hostile part, and may pass on the rest.

    `opaque`: the hostile bytes stay in their own value, and the head is accepted.
    """

    name: str
    raw: bytes
    harmless: bool = False
    opaque: bool = False


SPLITTERS: dict[str, bytes] = {
    **{f"{byte:#04x}": bytes((byte,)) for byte in b"\x00\x01\x08\x0b\x0c\x0e\x1b\x1c\x1d\x1e\x1f\x7f\x80\x85\xa0\xff"},
    "lf": b"\n",
    "cr": b"\r",
    "nel": b"\xc2\x85",
    "line-separator": b"\xe2\x80\xa8",
}
"""Bytes that some parser takes for the end of a line, or of a text."""

OPAQUE_PLACES = {"user-agent", "cookie", "protocol", "forwarded"}
"""Values in which bytes beyond ASCII have no meaning."""

CUT_BY_NGINX = {"lf", "cr"}
"""nginx itself takes these for the end of a line or of the head. The rest becomes a header, which it overwrites or leaves out."""


def hostile_heads() -> Iterator[Hostile]:
    """All hostile heads, each with a valid credential."""
    cookie = COOKIE.encode()
    for name, splitter in SPLITTERS.items():
        harmless = name in CUT_BY_NGINX
        smuggled = b"%bX-Forwarded-For: %b%bX-Remote-User: %b" % (splitter, FORGED.encode(), splitter, FORGED.encode())
        for place, plain, bad in (
            ("user-agent", b"", b"\r\nUser-Agent: x" + smuggled),
            ("cookie", cookie, cookie + smuggled),
            ("origin", b"", b"\r\nOrigin: https://tower.example.com" + smuggled),
            ("protocol", b"", b"\r\nSec-WebSocket-Protocol: towerws.v1" + smuggled),
            ("host", b"Host: tower.example.com", b"Host: tower.example.com" + smuggled),
            ("forwarded", b"", b"\r\nX-Other: 192.0.2.77" + splitter + b"X-Forwarded-For: " + FORGED.encode()),
            ("name", b"", b"\r\nX" + splitter + b"Forwarded-For: " + FORGED.encode()),
            ("path", b"GET /websocket/", b"GET /a" + splitter + b"b/websocket/"),
            ("query", b"GET /websocket/", b"GET /websocket/?a=" + splitter + b"b"),
        ):
            whole = request(added=[COOKIE])
            raw = whole.replace(plain, bad) if plain else whole.replace(b"\r\n\r\n", bad + b"\r\n\r\n")
            # nginx leaves out a header whose name it does not accept.
            opaque = place in OPAQUE_PLACES and splitter[0] >= 0x80
            yield Hostile(f"{place}-{name}", raw, harmless or place == "name", opaque)
    for name, lines, harmless in (
        ("two-hosts", [f"Host: {FORGED}"], False),
        ("two-origins", ["Origin: https://tower.example.com", f"Origin: https://{FORGED}"], False),
        ("two-keys", ["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="], False),
        ("two-cookies", [f"Cookie: sessionid={FORGED}"], False),
        ("two-authorizations", ["Authorization: Bearer a", f"authorization: Bearer {FORGED}"], False),
        ("folded", ["X-Folded: a", f" X-Forwarded-For: {FORGED}"], True),
        ("folded-tab", ["X-Folded: a", f"\tX-Forwarded-For: {FORGED}"], True),
        ("space-before-colon", [f"X-Forwarded-For : {FORGED}"], True),
        ("no-name", [f": {FORGED}"], True),
        ("no-colon", [FORGED], True),
        ("chunked", ["Transfer-Encoding: chunked"], True),
        ("length-and-chunked", ["Content-Length: 5", "Transfer-Encoding: chunked"], False),
        ("body", ["Content-Length: 5"], False),
        ("two-lengths", ["Content-Length: 0", "Content-Length: 5"], False),
    ):
        body = b"0\r\n\r\n" if "chunked" in name else b"hello" if name in ("body", "two-lengths") else b""
        yield Hostile(name, request(added=[COOKIE, *lines]) + body, harmless)


class PageOrigin(NamedTuple):
    """A page's origin, the `Host` it connects to, and whether it may use that host's cookie."""

    origin: str | None
    host: str
    allowed: bool


LISTED = ("https://portal.example.com", "http://10.0.0.1:3000")
"""The option `origins` for this table."""

PAGE_ORIGINS = [
    PageOrigin(*row)
    for row in (
        (None, "tower.example.com", True),
        ("https://tower.example.com", "tower.example.com", True),
        ("http://tower.example.com", "tower.example.com", True),
        ("https://tower.example.com", "tower.example.com:443", True),
        ("https://tower.example.com:443", "tower.example.com", True),
        ("https://tower.example.com:8043", "tower.example.com:8043", True),
        ("http://tower.example.com:8043", "tower.example.com:8043", True),
        ("HTTPS://TOWER.example.COM", "tower.EXAMPLE.com", True),
        ("http://[2001:db8::1]:8051", "[2001:DB8::1]:8051", True),
        ("http://localhost", "localhost", True),
        ("https://xn--bcher-kva.example", "xn--bcher-kva.example", True),
        ("https://portal.example.com", "tower.example.com", True),
        ("https://portal.example.com:443", "tower.example.com", True),
        ("http://10.0.0.1:3000", "tower.example.com", True),
        ("http://portal.example.com", "tower.example.com", False),
        ("https://portal.example.com:444", "tower.example.com", False),
        ("null", "tower.example.com", False),
        ("null", "null", False),
        ("", "", False),
        ("file://", "tower.example.com", False),
        ("file://tower.example.com", "tower.example.com", False),
        ("chrome-extension://tower.example.com", "tower.example.com", False),
        ("https://tower.example.com.evil.example", "tower.example.com", False),
        ("https://evil-tower.example.com", "tower.example.com", False),
        ("https://eviltower.example.com", "tower.example.com", False),
        ("https://tower.example.com@evil.example", "tower.example.com", False),
        ("https://tower.example.com:x@evil.example", "tower.example.com", False),
        ("https://evil.example/tower.example.com", "tower.example.com", False),
        ("https://tower.example.com/", "tower.example.com", False),
        ("https://tower.example.com:8043", "tower.example.com", False),
        ("https://tower.example.com", "tower.example.com:8043", False),
        ("http://tower.example.com:443", "tower.example.com", False),
        ("https://tower.example.com.", "tower.example.com", False),
        ("https://tower%2eexample.com", "tower.example.com", False),
        ("https://tower.example.com, https://evil.example", "tower.example.com", False),
        ("https://2001:db8::1", "2001:db8::1", False),
        ("https://" + "a" * 5000, "a" * 5000, False),
        ("//tower.example.com", "tower.example.com", False),
        ("tower.example.com", "tower.example.com", False),
    )
]
