"""The floor: one `socket.send` of the same bytes per client and message, in a bare loop. `python -m benchmarks.floor PORT CLIENTS BYTES`.

The first CLIENTS connections are clients. The next connection sends one line: how many messages to send, and how many per second.
"""

from __future__ import annotations

import socket
import sys
import time

from benchmarks.messages import frame, payload


def main(port: int, clients: int, size: int) -> None:
    """Serve one run after the other until killed."""
    with socket.create_server(("127.0.0.1", port), backlog=4096) as server:
        print("ready", flush=True)
        sockets = [server.accept()[0] for _ in range(clients)]
        for each in sockets:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            control, _ = server.accept()
            with control, control.makefile() as line:
                messages, per_s = line.readline().split()
            run(sockets, int(messages), float(per_s), size)


def run(sockets: list[socket.socket], messages: int, per_s: float, size: int) -> None:
    """Send the messages."""
    start = time.monotonic()
    for number in range(messages):
        if per_s:
            time.sleep(max(0.0, start + number / per_s - time.monotonic()))
        data = frame(payload(number, size, stamp=True))
        for each in sockets:
            each.sendall(data)  # one send(), and more only if the buffer is full


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
