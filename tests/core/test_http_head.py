from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.linear import LONG_BYTES
from tests.kit.rows import each_row
from towerws.core.errors import HandshakeError
from towerws.core.http_head import END, Head, Upgrade, check_route, error_response, find_head, parse_head, read_upgrade, switching_protocols

MAX_HEADERS = 100

PLAIN = (
    b"GET /websocket/?token=abc HTTP/1.1\r\n"
    b"Host: tower.example.com\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"User-Agent: a client\r\n"
    b"\r\n"
)

FORBIDDEN = [bytes((byte,)) for byte in range(256) if byte in (*range(9), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F)]
OPAQUE = [bytes((byte,)) for byte in range(0x80, 0x100)]


def head(*lines: str, first: str = "GET /websocket/ HTTP/1.1", host: str = "Host: a") -> bytes:
    """A request's head of these lines."""
    return "\r\n".join([first, *([host] if host else []), *lines, "", ""]).encode("latin-1")


def status(block: bytes, max_headers: int = MAX_HEADERS) -> int:
    """The status with which this head is refused."""
    with pytest.raises(HandshakeError) as caught:
        parse_head(block, max_headers)
    return caught.value.status


def test_a_plain_head_is_read() -> None:
    """Method, path, query and headers come out, names in lower case."""
    assert parse_head(PLAIN, MAX_HEADERS) == Head(
        "GET",
        "/websocket/",
        "token=abc",
        {
            "host": "tower.example.com",
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
            "sec-websocket-version": "13",
            "user-agent": "a client",
        },
    )


@each_row("byte", FORBIDDEN, ids=lambda byte: byte.hex())
def test_no_byte_that_could_split_a_line_passes_anywhere(byte: bytes) -> None:
    """A control character, which some parser may take for the end of a line, is refused in every place of the head."""
    for place in range(len(PLAIN) - len(END) + 1):
        assert status(PLAIN[:place] + byte + PLAIN[place:]) == 400


@each_row("byte", OPAQUE, ids=lambda byte: byte.hex())
def test_bytes_beyond_ascii_are_opaque_in_values_only(byte: bytes) -> None:
    """Findings P2: they belong to the value that they stand in (RFC 9110 section 5.5), and are refused everywhere else."""
    plain = parse_head(PLAIN, MAX_HEADERS)
    line_start = 0
    for line in PLAIN[: -len(END)].split(b"\r\n"):
        for at in range(len(line) + 1):
            block = PLAIN[: line_start + at] + byte + PLAIN[line_start + at :]
            name, colon, _ = line[:at].partition(b":")
            if line_start == 0 or not colon:
                assert status(block) == 400
                continue
            found = parse_head(block, MAX_HEADERS)
            changed = name.decode().lower()
            assert found.headers.keys() == plain.headers.keys(), "it makes no header of its own"
            assert found.headers[changed].encode("latin-1").count(byte) == 1
            assert {**found.headers, changed: ""} == {**plain.headers, changed: ""}
        line_start += len(line) + 2


@each_row(
    "line",
    [
        "Cookie: city=M\u00fcnchen; sessionid=x".encode(),
        "cf-ipcity: Montr\u00e9al".encode(),
        "cf-ipcity: Montr\u00e9al".encode("latin-1"),
        "X-SSL-Client-S-DN: CN=J\u00f6rg,O=B\u00e4ckerei".encode(),
        "X-SSL-Client-S-DN: CN=\u5f20\u4f1f".encode(),
        "X-Title: \U0001f680".encode(),
        b"X-Bytes: \x85\xa0\xff",
        b"X-Only: \xa0",
    ],
)
def test_what_real_clients_and_proxies_send(line: bytes) -> None:
    """Findings P2: a value is kept byte for byte, without the spaces and tabs around it and nothing else."""
    name, _, value = line.partition(b": ")
    found = parse_head(PLAIN[:-2] + line + END, MAX_HEADERS).headers
    assert found[name.decode().lower()].encode("latin-1") == value


@each_row("ending", [b"\r", b"\n", b"\n\r", b"\r\r\n", b"\n\n"])
def test_a_bare_cr_or_lf_passes_nowhere(ending: bytes) -> None:
    """Lines end with CR LF; half of it, or both the wrong way round, never slips into a line."""
    lines = PLAIN[: -len(END)].split(b"\r\n")
    whole = 0
    for line in lines:
        for place in range(len(line)):
            at = whole + place
            assert status(PLAIN[:at] + ending + PLAIN[at:]) == 400
        whole += len(line) + 2


@each_row(
    "line",
    [
        " folded",
        "\tfolded",
        "X-Header : value",
        "X Header: value",
        " X-Header: value",
        ": value",
        "no colon",
        "X-H\u00e4der: value",
        "X-Header\t: value",
        'X-"Header": value',
        "X(Header): value",
        "X[Header]: value",
        "X/Header: value",
        "X" * 129 + ": value",
        "GET / HTTP/1.1",
        "@: value",
    ],
)
def test_a_line_that_is_not_name_and_value_is_refused(line: str) -> None:
    """Folded lines, spaces before the colon, names with separators: proxies read them differently, so nobody reads them."""
    assert status(head(line)) == 400
    assert status(head("X-First: 1", line, "X-Last: 1")) == 400


def test_an_empty_line_ends_the_head() -> None:
    """Nothing can stand behind an empty line."""
    assert status(head("X-First: 1", "", "X-Last: 1")) == 400


@each_row(
    ("name", "value"),
    [
        ("Host", "a"),
        ("Origin", "https://a"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Version", "13"),
        ("Authorization", "Bearer x"),
        ("Cookie", "sessionid=x"),
        ("Content-Length", "0"),
    ],
)
def test_what_decides_something_stands_there_once(name: str, value: str) -> None:
    """A second header that only another reader would use is refused, in any case of letters, equal or not."""
    host = "" if name == "Host" else "Host: a"
    parse_head(head(f"{name}: {value}", host=host), MAX_HEADERS)
    for second in (f"{name}: {value}", f"{name.upper()}: other", f"{name.lower()}:"):
        assert status(head(f"{name}: {value}", second, host=host)) == 400
        assert status(head(f"{name}: {value}", "X-Between: 1", second, host=host)) == 400


def test_other_headers_may_be_repeated() -> None:
    """Repeated ones are joined in their order, as RFC 9110 section 5.3 has it."""
    found = parse_head(head("X-Forwarded-For: 1", "x-other: 3", "x-forwarded-for: 2"), MAX_HEADERS).headers
    assert found["x-forwarded-for"] == "1, 2"


@each_row(
    "lines",
    [
        ["Upgrade: websocket", "Upgrade: websocket"],
        ["Upgrade: h2c", "Upgrade: websocket"],
        ["upgrade: WebSocket", "UPGRADE:"],
        ["Upgrade: , websocket ,"],
        ["Upgrade: h2c,\twebsocket"],
    ],
)
def test_upgrade_is_a_list(lines: list[str]) -> None:
    """Findings P3: `Upgrade` may come in several lines, and with empty elements (RFC 9110 sections 5.3 and 5.6.1)."""
    assert parse_head(head(*lines), MAX_HEADERS).is_websocket


@each_row("value", ["websocket\u00a0", "\u0085websocket", "websockets", "web socket", "websocket/13", ""])
def test_what_is_no_websocket(value: str) -> None:
    """Only the very word asks for a websocket. Bytes that Python takes for spaces are none here."""
    assert not parse_head(head(f"Upgrade: {value}"), MAX_HEADERS).is_websocket


@each_row(
    ("target", "host", "path", "query"),
    [
        ("http://tower.example.com/websocket/", "tower.example.com", "/websocket/", ""),
        ("https://tower.example.com:8443/a/websocket?token=x", "tower.example.com:8443", "/a/websocket", "token=x"),
        ("ws://[2001:db8::1]:80/websocket/", "[2001:db8::1]:80", "/websocket/", ""),
        ("WSS://tower.example.com/websocket/", "tower.example.com", "/websocket/", ""),
        ("http://tower.example.com:/websocket/", "tower.example.com", "/websocket/", ""),
        ("http://tower.example.com", "tower.example.com", "/", ""),
        ("http://tower.example.com?a=/websocket/", "tower.example.com", "/", "a=/websocket/"),
        ("http://a/websocket/?next=http://b/", "a", "/websocket/", "next=http://b/"),
    ],
)
def test_the_absolute_form(target: str, host: str, path: str, query: str) -> None:
    """Findings P3: its host counts, not the one of the header, which must still be there (RFC 9112 section 3.2.2)."""
    found = parse_head(head(first=f"GET {target} HTTP/1.1", host="Host: evil.example"), MAX_HEADERS)
    assert (found.headers["host"], found.path, found.query) == (host, path, query)
    assert status(head(first=f"GET {target} HTTP/1.1", host="")) == 400
    assert status(head("Host: b", first=f"GET {target} HTTP/1.1")) == 400


@each_row(("sent", "host"), [("a:", "a"), ("a:8051", "a:8051"), ("[::1]:", "[::1]"), ("a::", "a:")])
def test_an_empty_port(sent: str, host: str) -> None:
    """Findings P3: a host may come with a colon and no port behind it (RFC 3986 section 3.2.3)."""
    assert parse_head(head(host=f"Host: {sent}"), MAX_HEADERS).headers["host"] == host


@each_row(
    ("data", "found"),
    [
        (b"G", (0, -1)),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", (0, 23)),
        (b"\r", (0, -1)),
        (b"\r\n", (2, -1)),
        (b"\r\nG", (2, -1)),
        (b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", (2, 25)),
    ],
)
def test_one_empty_line_is_passed_over(data: bytes, found: tuple[int, int]) -> None:
    """Findings P3: in front of the request (RFC 9112 section 2.2)."""
    assert find_head(data) == found


@each_row(
    ("data", "reason"),
    [
        (b"\x16", "tls"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "tls"),
        (b"\x16\x03\x03\r\n\r\n", "tls"),
        (b"\x80\x2e\x01\x03\x01", "request"),  # a ClientHello of SSL 2
        (b"\r\n\x16\x03\x01", "request"),
        (b"\r\n\r\n\x00\r\nQUIT\n", "request"),  # PROXY protocol, version 2
        (b"\r\n\r", "request"),
        (b"\r\n\r\n", "request"),
        (b"\n", "request"),
        (b"\rG", "request"),
        (b" GET", "request"),
        (b"get", "request"),
        (b"\x00", "request"),
        (b"\xff", "request"),
        (b"{", "request"),
    ],
)
def test_what_begins_no_request_is_known_at_once(data: bytes, reason: str) -> None:
    """Findings P11: nobody waits for the end of a head that will never be one."""
    with pytest.raises(HandshakeError) as caught:
        find_head(data)
    assert (caught.value.status, caught.value.reason) == (400, reason)


@each_row("code", [400, 404, 405, 426, 431, 503])
def test_head_gets_no_body(code: int) -> None:
    """Findings P3: the answer to HEAD says how long the body would be, and has none (RFC 9110 section 9.3.2)."""
    error = HandshakeError(code, "no")
    assert error_response(error) == error_response(error, with_body=False) + b"no\n"


@each_row("line", ["Content-Length: 1", "Content-Length: 00", "Content-Length: +0", "Content-Length: 0, 0", "Content-Length:"])
def test_a_body_is_refused(line: str) -> None:
    """A request with a body is no opening handshake; one that says that it has none is."""
    assert status(head(line)) == 400
    assert status(head("Transfer-Encoding: chunked")) == 400
    assert status(head("Content-Length: 0", "Transfer-Encoding: identity")) == 400
    assert parse_head(head("Content-Length: 0"), MAX_HEADERS).headers["content-length"] == "0"


def test_the_number_of_headers_has_a_limit() -> None:
    """So many headers are read, and not one more."""
    lines = [f"X-{number}: 1" for number in range(9)]
    assert len(parse_head(head(*lines), 10).headers) == 10
    assert status(head(*lines, "X-9: 1"), 10) == 431


@each_row(
    "first",
    [
        "",
        "GET",
        "GET /websocket/",
        "GET  /websocket/ HTTP/1.1",
        "GET /websocket/  HTTP/1.1",
        "GET /websocket/ HTTP/1.1 ",
        " GET /websocket/ HTTP/1.1",
        "GET /websocket/ HTTP/2.0",
        "GET /websocket/ HTTP/1.10",
        "GET /websocket/ HTTP/0.9",
        "GET /websocket/ http/1.1",
        "GET websocket/ HTTP/1.1",
        "GET http:///websocket/ HTTP/1.1",
        "GET http:a/websocket/ HTTP/1.1",
        "GET //a/websocket/ HTTP/1.0 HTTP/1.1",
        "GET ftp://a/websocket/ HTTP/1.1",
        "GET http://a b/websocket/ HTTP/1.1",
        "GET a/websocket/ HTTP/1.1",
        "CONNECT a:80 HTTP/1.1",
        "GET http://" + "a" * 301 + "/websocket/ HTTP/1.1",
        "GET * HTTP/1.1",
        "GET /web\tsocket/ HTTP/1.1",
        "GET /web socket/ HTTP/1.1",
        "get /websocket/ HTTP/1.1",
        "G=T /websocket/ HTTP/1.1",
        "A" * 21 + " /websocket/ HTTP/1.1",
        "PRI * HTTP/2.0",
    ],
)
def test_only_a_plain_request_line_is_read(first: str) -> None:
    """One method, one path of this server, one version, one space between them."""
    assert status(head(first=first)) == 400


def test_a_host_is_needed() -> None:
    """Without a host nobody can say whether the origin is the same (RFC 9112 section 3.2)."""
    assert status(head(host="")) == 400


def test_values_come_without_the_space_around_them() -> None:
    """Spaces and tabs around a value are not part of it; inside they are."""
    found = parse_head(head("A:b", "C: \t d\te  f \t", "G:", "H: \t "), MAX_HEADERS).headers
    assert (found["a"], found["c"], found["g"], found["h"]) == ("b", "d\te  f", "", "")


@each_row(
    "line",
    [
        b"a:" + b" " * LONG_BYTES + b"\n",
        b"a:" + b" \t" * (LONG_BYTES // 2) + b"\r",
        b"a: x" + b" " * LONG_BYTES + b"\n",
        b"a" * LONG_BYTES,
        b"a:" * (LONG_BYTES // 2) + b"\n",
    ],
    ids=range(5),
)
def test_a_head_is_read_in_linear_time(line: bytes) -> None:
    """A line 100 times as long as a head may be. A quadratic reader would not end before the timeout."""
    assert status(b"GET / HTTP/1.1\r\nHost: a\r\n" + line + END) == 400


@given(st.binary() | st.text("GET /websocket HTTP/1.1\r\n:aHost \t").map(str.encode))
def test_any_bytes_are_read_or_refused(block: bytes) -> None:
    """Nothing but `HandshakeError` is raised, and its text does not depend on what was sent."""
    try:
        found = parse_head(block + END, MAX_HEADERS)
    except HandshakeError as error:
        known = error
    else:
        assert found.headers["host"] is not None
        return
    assert known.status in (400, 431)


@each_row(
    ("path", "expected"),
    [
        ("/websocket", None),
        ("/websocket/", None),
        ("/websocket?token=x", None),
        ("/websocket/?session_key=x&token=/other/", None),
        ("/api/websocket/", None),
        ("/api/controller/v2/websocket/", None),
        ("/%77ebsocket/", None),
        ("/", 404),
        ("/?/websocket", 404),
        ("/websocket//", 404),
        ("/websocket/broadcast/", 404),
        ("/websocket/relay/", 404),
        ("/xwebsocket/", 404),
        ("/websockets/", 404),
        ("/WebSocket/", 404),
        ("/websocket%00", 404),
        ("/websocket%20", 404),
        ("/websocket/%0d%0a", 404),
        ("/%ff", 404),
        ("/favicon.ico", 404),
    ],
)
def test_any_path_whose_last_segment_is_websocket_is_the_websocket(path: str, expected: int | None) -> None:
    """With or without a slash, and under any page. No other path is."""
    found = parse_head(head("Upgrade: websocket", first=f"GET {path} HTTP/1.1"), MAX_HEADERS)
    if expected is None:
        check_route(found)
    else:
        with pytest.raises(HandshakeError) as caught:
            check_route(found)
        assert caught.value.status == expected


@each_row(
    ("method", "lines", "expected"),
    [
        ("GET", [], 426),
        ("GET", ["Upgrade: h2c"], 426),
        ("GET", ["Upgrade:"], 426),
        ("GET", ["Connection: Upgrade"], 426),
        ("HEAD", ["Upgrade: websocket"], 405),
        ("POST", ["Upgrade: websocket"], 405),
        ("OPTIONS", [], 405),
        ("GET", ["Upgrade: WebSocket"], None),
        ("GET", ["Upgrade: h2c, websocket"], None),
    ],
)
def test_what_is_no_upgrade_is_told_so(method: str, lines: list[str], expected: int | None) -> None:
    """A plain GET learns that this is a websocket, other methods that it takes a GET."""
    found = parse_head(head(*lines, first=f"{method} /websocket/ HTTP/1.1"), MAX_HEADERS)
    if expected is None:
        check_route(found)
    else:
        with pytest.raises(HandshakeError) as caught:
            check_route(found)
        assert caught.value.status == expected


@each_row("code", [400, 403, 404, 405, 426, 431, 500, 503, 505])
def test_a_refusal_is_a_whole_answer(code: int) -> None:
    """Status, type, length and the end of the connection are said, and the body is the fixed text."""
    answer = error_response(HandshakeError(code, "no"))
    lines, _, body = answer.partition(END)
    first, *headers = lines.decode().split("\r\n")
    found = dict(line.lower().split(": ", 1) for line in headers)
    assert first.startswith(f"HTTP/1.1 {code} ")
    assert body == b"no\n"
    assert found["content-length"] == "3"
    assert found["connection"] == "close"
    assert found["cache-control"] == "no-store"
    assert found["x-content-type-options"] == "nosniff"
    assert found.get("sec-websocket-version") == ("13" if code == 426 else None)
    assert found.get("upgrade") == ("websocket" if code == 426 else None)
    assert found.get("retry-after") == ("2" if code == 503 else None)
    assert found.get("allow") == ("GET".lower() if code == 405 else None)


CANARY = "c4n4ry"


@each_row(
    "block",
    [
        head(first=f"GET /{CANARY} HTTP/1.1"),
        head(first=f"GET /{CANARY}/websocket HTTP/1.1"),
        head(first=f"{CANARY.upper()[:1]}X /websocket?token={CANARY} HTTP/1.1"),
        head(first=f"GET /websocket?token={CANARY} HTTP/1.1"),
        head(first=f"GET {CANARY} HTTP/1.1"),
        head(f"{CANARY} : x"),
        head(f"{CANARY}: \x0b{CANARY}"),
        head(f"Host: {CANARY}"),
        head(f"Authorization: {CANARY}", f"Authorization: {CANARY}"),
        head(f"Content-Length: {CANARY}"),
        head(*[f"X-{CANARY}-{number}: {CANARY}" for number in range(200)]),
    ],
    ids=range(11),
)
def test_a_refusal_repeats_nothing_that_was_sent(block: bytes) -> None:
    """No part of a request stands in the answer, its headers or its text."""
    with pytest.raises(HandshakeError) as caught:
        check_route(parse_head(block, MAX_HEADERS))
    assert CANARY not in error_response(caught.value).decode()
    assert CANARY not in str(caught.value)


KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3


def upgrade_head(*, version: str = "1.1", **changed: str | None) -> Head:
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
    upgrade = read_upgrade(upgrade_head())
    assert upgrade == Upgrade(KEY, ())
    assert switching_protocols(upgrade, None) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )


def test_the_subprotocol_is_answered() -> None:
    """The subprotocol chosen stands in the answer; those offered are read in the client's order."""
    upgrade = read_upgrade(upgrade_head(sec_websocket_protocol="chat,towerws.v1 , superchat"))
    assert upgrade.subprotocols == ("chat", "towerws.v1", "superchat")
    assert b"\r\nSec-WebSocket-Protocol: towerws.v1\r\n" in switching_protocols(upgrade, "towerws.v1")


@each_row("connection", ["Upgrade", "upgrade", "keep-alive, Upgrade", "keep-alive,UPGRADE"])
def test_connection_is_a_list_of_tokens(connection: str) -> None:
    """`Connection` names Upgrade among others, however it is written (Firefox: `keep-alive, Upgrade`)."""
    assert read_upgrade(upgrade_head(connection=connection)).key == KEY


@each_row("host", ["a", "a:8051", "192.0.2.1", "[2001:db8::1]", "[2001:db8::1]:443", "tower_1.example.com"])
def test_hosts(host: str) -> None:
    """A host is a name or an address, with or without a port."""
    assert read_upgrade(upgrade_head(host=host)).key == KEY


@each_row(
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
        read_upgrade(upgrade_head(**changed))
    assert caught.value.status == status
    assert not any(value and len(value) > 3 and value in str(caught.value) for value in changed.values())


def test_only_http_1_1() -> None:
    """An upgrade over HTTP/1.0 is refused with 505: some proxy on the way does not pass upgrades."""
    with pytest.raises(HandshakeError) as caught:
        read_upgrade(upgrade_head(version="1.0"))
    assert caught.value.status == 505


@given(st.binary(min_size=16, max_size=16))
def test_every_nonce_is_taken(nonce: bytes) -> None:
    """Any 16 bytes are a nonce."""
    key = b64encode(nonce).decode()
    assert read_upgrade(upgrade_head(sec_websocket_key=key)).key == key
