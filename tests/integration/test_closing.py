"""How connections end on real sockets: the client reads the close code, and an answered close ends without a reset."""

from __future__ import annotations

import random
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.test_websocket_daemon import present, wait_until
from tests.integration.test_websocket_transports import tls, unix
from tests.kit.daemon import DEADLINE_S, Daemon
from tests.kit.nginx import Nginx
from tests.kit.rows import each_row
from tests.kit.ws_kit import BINARY, CLOSE, PING, TEXT, close, frame, request, text
from tests.test_outgoing import certificate
from tests.websocket.test_compression import deflate

Dial = Callable[[], socket.socket]

LINGER_S = 2


def tcp(folder: Path) -> tuple[str, Dial]:
    """The plain port, which every daemon of these tests has."""
    return "", lambda: pytest.fail("not dialled by itself")


@pytest.fixture(scope="module", params=[tcp, tls, unix], ids=lambda transport: str(transport.__name__))
def dial(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dial]:
    """A way to a daemon, for one kind of transport."""
    folder = tmp_path_factory.mktemp("daemon")
    endpoint, way = request.param(folder)
    listen = ["--listen", endpoint] if endpoint else []
    with Daemon(folder, "embedded:", *listen, f"--websocket-linger-s={LINGER_S}") as daemon:
        yield way if endpoint else lambda: socket.create_connection(("127.0.0.1", daemon.port))


def open_socket(dial: Dial) -> socket.socket:
    """An open websocket. Its first frame has been read."""
    client = dial()
    client.settimeout(DEADLINE_S)
    client.sendall(request(host="localhost"))
    came = b""
    while not came.endswith(b"}"):
        came += client.recv(65536)
    return client


def rest(client: socket.socket) -> bytes:
    """All bytes until the server ends its stream. A reset is an error."""
    came = b""
    while piece := client.recv(65536):
        came += piece
    return came


def opcodes(came: bytes) -> list[int]:
    """The opcode of each frame. All of them must be whole, final and short, as pings are."""
    found = []
    while came:
        assert came[0] & 0x80, came
        assert came[1] < 126, came
        assert len(came) >= 2 + came[1], came
        found.append(came[0] & 0x0F)
        came = came[2 + came[1] :]
    return found


def code_of(came: bytes) -> int | None:
    """The code of the close frame, which must be the only thing that came."""
    assert came[:1] == b"\x88", came
    assert len(came) == 2 + came[1], came
    return None if came[1] == 0 else int(struct.unpack("!H", came[2:4])[0])


VIOLATIONS = {
    "999": (close(999), 1002),
    "1005": (close(1005), 1002),
    "1016": (close(1016), 1002),
    "one byte": (frame(CLOSE, b"x"), 1002),
    "a bad reason": (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "unmasked": (frame(CLOSE, b"\x03\xe8", masked=False), 1002),
    "behind another violation": (frame(TEXT, b"x", masked=False) + close(), 1002),
    "behind text that is not UTF-8": (frame(TEXT, b"\xff") + close(), 1007),
    "two behind another": (frame(3) + frame(CLOSE, b"x") + close(999), 1002),
    "behind a message that is too long": (text("x" * 70_000) + close(), 1009),
    "with much behind it": (close(999) + frame(BINARY, b"x" * 500_000), 1002),
    "with requests behind it": (frame(3) + text({"groups": {}}) * 50 + close(), 1002),
    "violations only": (frame(3) * 10_000, 1002),
    "pings": (frame(PING, b"x" * 126) + frame(PING) * 20 + close(), 1002),
}


@each_row(("raw", "code"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_violation_is_told(dial: Dial, raw: bytes, code: int) -> None:
    """Findings P5: the client reads the code and then the end of the stream, even if more stood in the same write."""
    with open_socket(dial) as client:
        client.sendall(raw)
        assert code_of(rest(client)) == code


@each_row("code", [None, 1000, 1001, 1014, 3001, 4001, 4999])
def test_a_clients_close_is_echoed(dial: Dial, code: int | None) -> None:
    """Findings P6: the close is echoed with the client's code, or without one."""
    with open_socket(dial) as client:
        client.sendall(frame(CLOSE) if code is None else close(code))
        assert code_of(rest(client)) == code


def test_a_close_of_ours_that_is_answered(dial: Dial) -> None:
    """Findings P5: the server's own close ends without a reset once it is answered, even with requests pending."""
    for more in (b"", text({"groups": {"job_events": [1]}})):
        with open_socket(dial) as client:
            client.sendall(frame(PING) * 60)
            came = b""
            while b"\x88" not in came:
                came += client.recv(65536)
            client.sendall(more + close(1008))
            assert rest(client) == b""
            assert came.endswith(b"policy")


REFUSED = {
    "a body": request(host="localhost", added=["Content-Length: 500000"]) + b"x" * 500_000,
    "another path": request("/elsewhere", host="localhost") + b"x" * 500_000,
    "no request": b"x" * 500_000,
}


@each_row("raw", REFUSED.values(), ids=REFUSED)
def test_a_refusal_is_read_whole(dial: Dial, raw: bytes) -> None:
    """A client that keeps sending while it is refused still reads the answer."""
    with dial() as client:
        client.settimeout(DEADLINE_S)
        client.sendall(raw)
        came = rest(client)
    head, _, body = came.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 4")
    assert f"Content-Length: {len(body)}\r\n".encode() in head


def answered(client: socket.socket, raw: bytes) -> int | None:
    """Make the server close, and answer with its code. Returns the code."""
    client.sendall(raw)
    came = b""
    while b"\x88" not in came or len(came) < (at := came.index(b"\x88")) + 2 + came[at + 1]:
        came += client.recv(65536)
    code = code_of(came[at:])
    assert code is not None
    client.sendall(close(code))
    assert rest(client) == b""
    return code


def reset(client: socket.socket) -> None:
    """Reset the connection, as the kernel does for a process that is killed with unread bytes."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def sends(*pieces: bytes) -> Callable[[socket.socket], object]:
    """Send these, and read to the end."""

    def end(client: socket.socket) -> None:
        for piece in pieces:
            client.sendall(piece)
        rest(client)

    return end


def answers(raw: bytes) -> Callable[[socket.socket], object]:
    """Send this, and answer the server's close."""
    return lambda client: answered(client, raw)


CLIENT_ENDS: dict[str, Callable[[socket.socket], object]] = {
    "closes with 1000": sends(close(1000)),
    "closes with 1001": sends(close(1001)),
    "closes with 4001": sends(close(4001)),
    "closes without a code": sends(frame(CLOSE)),
    "closes in two pieces": sends(close()[:3], close()[3:]),
    "policy": answers(text("[]") * 10),
    "pings": answers(frame(PING) * 60),
    "too big": answers(text("x" * 70_000)),
    "not UTF-8": answers(frame(TEXT, b"\xff")),
    "unmasked": answers(frame(TEXT, b"x", masked=False)),
    "a bad close": sends(close(999)),
    "two violations": sends(frame(3), frame(3)),
    "hangs up": socket.socket.close,
    "is killed": reset,
}


COMPRESSED_ENDS: dict[str, Callable[[socket.socket], object]] = {
    "what can't be inflated": answers(frame(TEXT, b"\xff\xff", rsv=4)),
    "a bomb": answers(frame(TEXT, deflate(b"x" * 500_000), rsv=4)),
    "a compressed request before the close": sends(frame(TEXT, deflate(b'{"groups": {}}'), rsv=4) + close(1001)),
}

REFUSED_BY_US = [
    request(host="localhost", without=["Sec-WebSocket-Key"]),
    request(host="localhost", without=["Upgrade"]),
    request(host="localhost").replace(b"GET", b"HEAD"),
    request(host="localhost", added=["Origin: https://evil.example"]),
    request(host="localhost", added=["Sec-WebSocket-Extensions: ;;;"]),
]


class BehindNginx:
    """A daemon behind nginx with its clients: with TLS and compression, or with neither. `leave` ends all of it."""

    def __init__(self, folder: Path, nginx: Callable[..., Nginx], leave: ExitStack, *flags: str, secure: bool) -> None:
        files = certificate(folder) if secure else None
        self._trust = None if files is None else ssl.create_default_context(cafile=str(files[0]))
        self._offer = ["Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"] if secure else []
        compression = ["--websocket-compression"] if secure else []
        self._leave = leave
        self.daemon = leave.enter_context(Daemon(folder, "embedded:", "--trusted-proxies", "127.0.0.1", *compression, *flags))
        self.proxy = nginx(f"127.0.0.1:{self.daemon.port}", errors="warn", certificate=files)
        self.entered = 0

    def dial(self) -> socket.socket:
        """A connection. Each one has its own address."""
        self.entered += 1
        client = socket.create_connection(("127.0.0.1", self.proxy.port), DEADLINE_S, (f"127.0.5.{self.entered}", 0))
        self._leave.enter_context(client)
        return client if self._trust is None else self._leave.enter_context(self._trust.wrap_socket(client, server_hostname="127.0.0.1"))

    def enter(self) -> socket.socket:
        """A client that has subscribed."""
        client = self.dial()
        client.sendall(request(host="localhost", added=self._offer) + text({"groups": {"job_events": [1]}}))
        hear(client, b"groups_current")
        return client

    def errors(self) -> str:
        """All error lines of nginx."""
        logs = self.proxy.logs()
        return logs["towerws-error.log"] + "".join(line for line in logs["error.log"].splitlines() if "[notice]" not in line)


def hear(client: socket.socket, word: bytes) -> bytes:
    """All bytes up to the end of the message with this word."""
    came = b""
    while word not in came or not came.endswith(b"}"):
        came += client.recv(65536)
    return came


@pytest.fixture(params=[False, True], ids=["plain", "with TLS and compression"])
def secure(request: pytest.FixtureRequest) -> bool:
    """With TLS and compression, and with neither."""
    return bool(request.param)


def test_nginx_has_nothing_to_complain_about(tmp_path: Path, nginx: Callable[..., Nginx], secure: bool) -> None:
    """Findings P5: 100 clients connect, subscribe, get events and end in all ways. nginx logs no error for any of them."""
    ends = [*CLIENT_ENDS.values(), *(COMPRESSED_ENDS.values() if secure else [])]
    with ExitStack() as leave:
        site = BehindNginx(tmp_path, nginx, leave, secure=secure)
        clients = [site.enter() for _ in range(100)]
        site.daemon.publish("job_events.1", {"stdout": "ok: [localhost]\r\n" * 50})
        site.daemon.publish("job_events.1", {"n": 1})
        for client in clients:
            assert hear(client, b'"n": 1').startswith(b"\xc1" if secure else b"\x81")
        staying, leaving = clients[:20], clients[20:]
        for number, client in enumerate(leaving):
            ends[number % len(ends)](client)
        for refused in REFUSED_BY_US:
            client = site.dial()
            client.sendall(refused)
            assert client.recv(12)[:10] == b"HTTP/1.1 4"
        wait_until(lambda: present(site.daemon) == len(staying))
        site.daemon.begin_stop()
        for client in staying:
            assert answered(client, b"") == 1012
        site.daemon.stop()
        assert site.proxy.logs()["towerws.log"].count('" 101 ') == 100
        assert site.errors() == ""


def test_nginx_does_not_complain_about_clients_that_sleep(tmp_path: Path, nginx: Callable[..., Nginx], secure: bool) -> None:
    """Findings P5: it logs no error for clients that answer neither pings nor a close, such as sleeping laptops."""
    flags = ("--websocket-ping-s=1", "--websocket-pong-s=1", f"--websocket-linger-s={LINGER_S}", "--websocket-drain-s=1")
    with ExitStack() as leave:
        site = BehindNginx(tmp_path, nginx, leave, *flags, secure=secure)
        sleeping = [site.enter() for _ in range(5)]
        for client in sleeping:
            assert set(opcodes(rest(client))) <= {PING}
        told = [site.enter() for _ in range(5)]
        for client in told:
            client.sendall(frame(3))
        assert [code_of(rest(client)) for client in told] == [1002] * 5
        stopped = [site.enter() for _ in range(5)]
        site.daemon.stop()
        assert [code_of(rest(client)) for client in stopped] == [1012] * 5
        assert site.errors() == ""


def test_nginx_does_not_complain_about_slow_clients(tmp_path: Path, nginx: Callable[..., Nginx], secure: bool) -> None:
    """Findings P5: it logs no error for a reader so slow that it fell out of history and is closed with 1013."""
    small = ("--max-payload-bytes", "65536", "--history-max-bytes", "524288")
    with ExitStack() as leave:
        site = BehindNginx(tmp_path, nginx, leave, *small, secure=secure)
        slow, bystander = site.enter(), site.enter()
        for number in range(400):  # 24 MB: more than the buffers of all the sockets hold
            site.daemon.publish("job_events.1", {"x": random.randbytes(30_000).hex()})
            site.daemon.publish("job_events.1", {"n": number})
            hear(bystander, b'"n": %d}' % number)
        assert site.daemon.get("/status")[1]["hub"]["behind"] == 1
        came = rest(slow)
        assert came.endswith(b"\x88\x15\x03\xf5fell out of history"), came[-40:]
        assert site.errors() == ""
