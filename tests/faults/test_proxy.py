"""The proxy with a client and a target on real sockets. The tests wait for bytes, never for time."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tests.faults.proxy import CONSUME_OK, DOWN, UP, FaultProxy

DEADLINE_S = 20.0
CONSUME_OK_FRAME = b"\x01\x00\x01\x00\x00\x00\x06" + CONSUME_OK + b"\x01t\xce"


class Ends:
    """Makes connections through the proxy, and gives both ends."""

    def __init__(self, proxy: FaultProxy, listener: socket.socket, leave: ExitStack) -> None:
        self.proxy = proxy
        self._listener = listener
        self._leave = leave

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """The client's end and the target's."""
        client = self._leave.enter_context(closing(socket.create_connection(("127.0.0.1", self.proxy.port), DEADLINE_S)))
        target = self._leave.enter_context(closing(self._listener.accept()[0]))
        target.settimeout(DEADLINE_S)
        return client, target


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A proxy in front of one listener."""
    with ExitStack() as leave:
        listener = leave.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
        listener.settimeout(DEADLINE_S)
        proxy = leave.enter_context(FaultProxy(("127.0.0.1", listener.getsockname()[1])))
        yield Ends(proxy, listener, leave)


def read(sock: socket.socket, size: int) -> bytes:
    """Exactly this many bytes."""
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"the end came after {data!r}"
        data += piece
    return data


def nothing_comes(sock: socket.socket) -> bool:
    """True if there is nothing to read. Only called after bytes that were sent later have arrived elsewhere."""
    sock.setblocking(False)
    try:
        return not sock.recv(1)
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(DEADLINE_S)


def test_forwards_both_ways_and_the_end_of_each(ends: Ends) -> None:
    """Bytes arrive unchanged. An end of stream is passed on, and the other direction goes on."""
    client, target = ends.connect()
    data = bytes(range(256)) * 4096
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    assert read(target, len(data)) == data
    sender.join()
    client.shutdown(socket.SHUT_WR)
    assert target.recv(1) == b""
    target.sendall(b"answer")
    assert read(client, 6) == b"answer"


@pytest.mark.parametrize("slice_bytes", [1, 7, 1000])
def test_slices(ends: Ends, slice_bytes: int) -> None:
    """The bytes are the same, in pieces of that size at most."""
    client, target = ends.connect()
    ends.proxy.slice(UP, slice_bytes, 0.001)
    client.sendall(b"abcdefghij" * 20)
    first = target.recv(10_000)
    assert len(first) <= slice_bytes
    assert first + read(target, 200 - len(first)) == b"abcdefghij" * 20


def test_a_black_hole_swallows_and_gives_back(ends: Ends) -> None:
    """Bytes sent into it arrive once it is healed. The other direction is not affected."""
    client, target = ends.connect()
    ends.proxy.black_hole(UP)
    client.sendall(b"held")
    target.sendall(b"down")
    assert read(client, 4) == b"down"
    assert nothing_comes(target)
    ends.proxy.heal()
    assert read(target, 4) == b"held"


def test_a_black_hole_takes_new_connections_too(ends: Ends) -> None:
    """A new connection is accepted, and nothing is forwarded."""
    ends.proxy.black_hole()
    client, target = ends.connect()
    client.sendall(b"x")
    assert ends.proxy.wait_for_accepted(1)
    assert nothing_comes(target)
    ends.proxy.heal()
    assert read(target, 1) == b"x"


def test_a_black_hole_hides_the_end_of_a_connection(ends: Ends) -> None:
    """The target does not see a client's end before the hole is healed."""
    client, target = ends.connect()
    other, other_target = ends.connect()
    ends.proxy.black_hole(UP)
    client.close()
    other.close()
    assert nothing_comes(target)
    ends.proxy.heal()
    assert target.recv(1) == b""
    assert other_target.recv(1) == b""


def test_a_full_black_hole_stops_reading(ends: Ends) -> None:
    """It holds a bounded number of bytes. After that the sender's buffer fills up."""
    client, _target = ends.connect()
    ends.proxy.black_hole(UP)
    client.setblocking(False)
    sent = 0
    with selectors.DefaultSelector() as writable:
        writable.register(client, selectors.EVENT_WRITE)
        while writable.select(0.5):  # not writable for that long: the proxy does not read
            sent += client.send(bytes(1 << 16))
            assert sent < 64 << 20


def test_reset_reaches_both_sides(ends: Ends) -> None:
    """Each side sees a reset, not an end of stream."""
    client, target = ends.connect()
    client.sendall(b"x")
    read(target, 1)
    assert ends.proxy.reset() == 1
    for sock in (client, target):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_half_close(ends: Ends) -> None:
    """The target reads the end, and can still send to the client."""
    client, target = ends.connect()
    client.sendall(b"x")
    read(target, 1)
    ends.proxy.half_close(UP)
    assert target.recv(1) == b""
    client.sendall(b"swallowed")
    target.sendall(b"answer")
    assert read(client, 6) == b"answer"


def test_refuse_and_listen_again_on_the_same_port(ends: Ends) -> None:
    """New connections are refused, and open ones stay."""
    client, target = ends.connect()
    ends.proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ends.proxy.port), DEADLINE_S)
    client.sendall(b"still")
    assert read(target, 5) == b"still"
    ends.proxy.refuse(refused=False)
    again, again_target = ends.connect()
    again.sendall(b"again")
    assert read(again_target, 5) == b"again"
    assert ends.proxy.accepted == 2


@pytest.mark.parametrize("cut", [0, 1, 4, 9, 12, len(CONSUME_OK_FRAME)])
def test_what_follows_a_marked_frame_is_held_back(ends: Ends, cut: int) -> None:
    """The frame itself passes at once, however TCP cuts it. The bytes after it wait until the proxy is healed."""
    client, target = ends.connect()
    ends.proxy.delay_after(DOWN, CONSUME_OK, 3600)
    data = b"before" + CONSUME_OK_FRAME
    if cut:
        target.sendall(data[: 6 + cut])
        assert read(client, 6 + cut) == data[: 6 + cut]
        target.sendall(data[6 + cut :] + b"behind")
        assert read(client, len(data) - 6 - cut) == data[6 + cut :]
    else:
        target.sendall(data + b"behind")
        assert read(client, len(data)) == data
    client.sendall(b"x")
    assert read(target, 1) == b"x"
    assert nothing_comes(client)
    ends.proxy.heal()
    assert read(client, 6) == b"behind"


def test_delay_keeps_the_order(ends: Ends) -> None:
    """Delayed bytes come later and in order. When the delay ends, held bytes come at once."""
    client, target = ends.connect()
    ends.proxy.delay(UP, 3600)
    client.sendall(b"one")
    target.sendall(b"x")
    assert read(client, 1) == b"x"
    assert nothing_comes(target)
    ends.proxy.delay(UP, 0)
    client.sendall(b"two")
    assert read(target, 6) == b"onetwo"


def test_goes_to_the_next_target_when_one_refuses() -> None:
    """Targets are tried in rotation. If none is left the client is reset."""
    with ExitStack() as leave:
        alive = leave.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
        alive.settimeout(DEADLINE_S)
        dead = socket.create_server(("127.0.0.1", 0))
        dead_port = dead.getsockname()[1]
        dead.close()
        proxy = leave.enter_context(FaultProxy(("127.0.0.1", dead_port), ("127.0.0.1", alive.getsockname()[1])))
        ends = Ends(proxy, alive, leave)
        for _ in range(3):
            client, target = ends.connect()
            client.sendall(b"x")
            assert read(target, 1) == b"x"
        proxy.retarget(("127.0.0.1", dead_port))
        with pytest.raises(ConnectionResetError):  # the reset may come before the connect returns
            leave.enter_context(closing(socket.create_connection(("127.0.0.1", proxy.port), DEADLINE_S))).recv(1)


def test_stop_ends_everything(ends: Ends) -> None:
    """Open connections are reset, and the port is closed."""
    client, target = ends.connect()
    client.sendall(b"x")
    read(target, 1)
    assert ends.proxy.open_connections == 1
    ends.proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
