from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towerws.core.errors import HandshakeError
from towerws.core.handshake import Head
from towerws.core.upgrade import Upgrade, read_upgrade, switching_protocols

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3


def head(*, version: str = "1.1", **changed: str | None) -> Head:
    """A browser's head, with the headers changed that are given, or without those that are None."""
    headers: dict[str, str | None] = {
        "host": "tower.example.com",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-key": KEY,
        "sec-websocket-version": "13",
    }
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    return Head("GET", "/websocket/", "", {name: value for name, value in headers.items() if value is not None}, version)


def test_the_answer_of_the_rfc() -> None:
    """The sample of RFC 6455 section 1.3 gets the answer that stands there, and nothing that was not asked for."""
    upgrade = read_upgrade(head())
    assert upgrade == Upgrade(KEY, ())
    assert switching_protocols(upgrade, None) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )


def test_the_subprotocol_is_answered() -> None:
    """The subprotocol chosen stands in the answer; those offered are read in the client's order."""
    upgrade = read_upgrade(head(sec_websocket_protocol="chat,towerws.v1 , superchat"))
    assert upgrade.subprotocols == ("chat", "towerws.v1", "superchat")
    assert b"\r\nSec-WebSocket-Protocol: towerws.v1\r\n" in switching_protocols(upgrade, "towerws.v1")


@pytest.mark.parametrize("connection", ["Upgrade", "upgrade", "keep-alive, Upgrade", "keep-alive,UPGRADE"])
def test_connection_is_a_list_of_tokens(connection: str) -> None:
    """`Connection` names Upgrade among others, however it is written (Firefox: `keep-alive, Upgrade`)."""
    assert read_upgrade(head(connection=connection)).key == KEY


@pytest.mark.parametrize("host", ["a", "a:8051", "192.0.2.1", "[2001:db8::1]", "[2001:db8::1]:443", "tower_1.example.com"])
def test_hosts(host: str) -> None:
    """A host is a name or an address, with or without a port."""
    assert read_upgrade(head(host=host)).key == KEY


@pytest.mark.parametrize(
    ("status", "changed"),
    [
        (400, {"host": ""}),
        (400, {"host": "a:b"}),
        (400, {"host": "a:123456"}),
        (400, {"host": "a b"}),
        (400, {"host": "a/b"}),
        (400, {"host": "user@a"}),
        (400, {"host": "a\u00e9"}),
        (400, {"host": "a\u00a0"}),
        (400, {"host": "a:\u00b2"}),
        (400, {"connection": "Upgrade\u00a0"}),
        (426, {"sec_websocket_version": "13\u00a0"}),
        (400, {"sec_websocket_extensions": ";;;"}),
        (400, {"sec_websocket_extensions": 'foo; bar="a, permessage-deflate, b"'}),
        (400, {"sec_websocket_extensions": "foo; bar="}),
        (400, {"sec_websocket_extensions": "foo bar"}),
        (400, {"sec_websocket_extensions": "permessage-deflate; a\u00e9"}),
        (400, {"connection": None}),
        (400, {"connection": "keep-alive"}),
        (400, {"connection": "upgraded"}),
        (400, {"sec_websocket_version": None}),
        (426, {"sec_websocket_version": "8"}),
        (426, {"sec_websocket_version": "13, 8"}),
        (400, {"sec_websocket_key": None}),
        (400, {"sec_websocket_key": "c2hvcnQ="}),
        (400, {"sec_websocket_key": KEY + "AAAA"}),
        (400, {"sec_websocket_key": "dGhlIHNhbXBsZSBub25j*Q=="}),
        (400, {"sec_websocket_protocol": "a, b, a"}),
    ],
)
def test_what_is_no_handshake(status: int, changed: dict[str, Any]) -> None:
    """Each rule of RFC 6455 section 4.2.1 that is broken is refused with its status, and nothing of the value is repeated."""
    with pytest.raises(HandshakeError) as caught:
        read_upgrade(head(**changed))
    assert caught.value.status == status
    assert not any(value and len(value) > 3 and value in str(caught.value) for value in changed.values())


def test_only_http_1_1() -> None:
    """An upgrade over HTTP/1.0 is refused with 505: some proxy on the way does not pass upgrades."""
    with pytest.raises(HandshakeError) as caught:
        read_upgrade(head(version="1.0"))
    assert caught.value.status == 505


@given(st.binary(min_size=16, max_size=16))
def test_every_nonce_is_taken(nonce: bytes) -> None:
    """Any 16 bytes are a nonce."""
    key = b64encode(nonce).decode()
    assert read_upgrade(head(sec_websocket_key=key)).key == key
