from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towerws.core.errors import HandshakeError
from towerws.core.handshake import END, Head, check_route, error_response, parse_head

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

FORBIDDEN = [bytes((octet,)) for octet in range(256) if octet in (*range(9), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F, *range(0x80, 0x100))]


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


@pytest.mark.parametrize("octet", FORBIDDEN, ids=lambda octet: octet.hex())
def test_no_octet_that_could_split_a_line_passes_anywhere(octet: bytes) -> None:
    """Whatever some parser takes for the end of a line, or is not ASCII, is refused in every place of the head."""
    for place in range(len(PLAIN) - len(END) + 1):
        assert status(PLAIN[:place] + octet + PLAIN[place:]) == 400


@pytest.mark.parametrize("ending", [b"\r", b"\n", b"\n\r", b"\r\r\n", b"\n\n"])
def test_a_bare_cr_or_lf_passes_nowhere(ending: bytes) -> None:
    """Lines end with CR LF; half of it, or both the wrong way round, never slips into a line."""
    lines = PLAIN[: -len(END)].split(b"\r\n")
    whole = 0
    for line in lines:
        for place in range(len(line)):
            at = whole + place
            assert status(PLAIN[:at] + ending + PLAIN[at:]) == 400
        whole += len(line) + 2


@pytest.mark.parametrize(
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Host", "a"),
        ("Origin", "https://a"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Version", "13"),
        ("Authorization", "Bearer x"),
        ("Cookie", "sessionid=x"),
        ("Content-Length", "0"),
    ],
)
def test_what_decides_something_stands_there_once(name: str, value: str) -> None:
    """A second header that only somebody else would read is refused, in whatever case it is written, equal or not."""
    host = "" if name == "Host" else "Host: a"
    parse_head(head(f"{name}: {value}", host=host), MAX_HEADERS)
    for second in (f"{name}: {value}", f"{name.upper()}: other", f"{name.lower()}:"):
        assert status(head(f"{name}: {value}", second, host=host)) == 400
        assert status(head(f"{name}: {value}", "X-Between: 1", second, host=host)) == 400


def test_other_headers_may_be_repeated() -> None:
    """Repeated ones are joined in their order, as RFC 9110 section 5.3 has it."""
    found = parse_head(head("X-Forwarded-For: 1", "x-other: 3", "x-forwarded-for: 2"), MAX_HEADERS).headers
    assert found["x-forwarded-for"] == "1, 2"


@pytest.mark.parametrize(
    "line", ["Content-Length: 1", "Content-Length: 00", "Content-Length: +0", "Content-Length: 0, 0", "Content-Length:"]
)
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


@pytest.mark.parametrize(
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
        "GET http://a/websocket/ HTTP/1.1",
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


@pytest.mark.parametrize(
    "line",
    [b"a:" + b" " * 16_000 + b"\n", b"a:" + b" \t" * 8000 + b"\r", b"a: x" + b" " * 16_000 + b"\n", b"a" * 16_000, b"a:" * 8000 + b"\n"],
    ids=range(5),
)
def test_a_head_is_read_in_linear_time(line: bytes) -> None:
    """The worst line that fits in 16 KiB costs less than 5 ms on an idle machine; a reader that is not linear takes seconds."""
    best = 1.0
    for _ in range(3):
        start = time.thread_time()
        assert status(b"GET / HTTP/1.1\r\nHost: a\r\n" + line + END) == 400
        best = min(best, time.thread_time() - start)
    assert best < 0.1


@given(st.binary() | st.text("GET /websocket HTTP/1.1\r\n:aHost \t").map(str.encode))
def test_any_octets_are_read_or_refused(block: bytes) -> None:
    """Nothing but `HandshakeError` is raised, and its text does not depend on what was sent."""
    try:
        found = parse_head(block + END, MAX_HEADERS)
    except HandshakeError as error:
        known = error
    else:
        assert found.headers["host"] is not None
        return
    assert known.status in (400, 431)


@pytest.mark.parametrize(
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
    """With or without a slash, under whatever page; nothing else is."""
    found = parse_head(head("Upgrade: websocket", first=f"GET {path} HTTP/1.1"), MAX_HEADERS)
    if expected is None:
        check_route(found)
    else:
        with pytest.raises(HandshakeError) as caught:
            check_route(found)
        assert caught.value.status == expected


@pytest.mark.parametrize(
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


@pytest.mark.parametrize("code", [400, 403, 404, 405, 426, 431, 500, 503, 505])
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
    assert found.get("sec-websocket-version") == ("13" if code == 426 else None)
    assert found.get("upgrade") == ("websocket" if code == 426 else None)
    assert found.get("retry-after") == ("2" if code == 503 else None)
    assert found.get("allow") == ("GET".lower() if code == 405 else None)


CANARY = "c4n4ry"


@pytest.mark.parametrize(
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
