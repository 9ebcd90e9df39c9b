"""The floor for connecting: only the necessary system calls, and prepared answers. `python -m benchmarks.greeter PORT`.

It accepts, reads the request, and sends 101 and a greeting in one write. Then it reads the subscription, and answers that. It
parses nothing. It uses one epoll, as Twisted does.
"""

from __future__ import annotations

import select
import socket
import sys

from benchmarks.messages import frame

SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n" + frame(b'{"accept": true, "user": 0}')
)
SUBSCRIBED = frame(b'{"groups_current": ["job_events-1234", "jobs-status_changed"], "groups_left": [], "groups_joined": []}')
ACCEPTS = 20
"""The most connections accepted in one iteration, as in towerws's AcceptThrottle."""


def main(port: int) -> None:
    """Serve until killed."""
    with socket.create_server(("127.0.0.1", port), backlog=4096) as server, select.epoll() as epoll:
        server.setblocking(False)
        epoll.register(server.fileno(), select.EPOLLIN)
        print("ready", flush=True)
        greeted: dict[int, bool] = {}
        sockets: dict[int, socket.socket] = {}
        while True:
            for fd, _ in epoll.poll():
                if fd == server.fileno():
                    accept(server, epoll, sockets, greeted)
                    continue
                client = sockets[fd]
                if not client.recv(65536):
                    epoll.unregister(fd)
                    del sockets[fd]
                    client.close()
                elif greeted[fd]:
                    client.send(SUBSCRIBED)
                else:
                    greeted[fd] = True
                    client.send(SWITCHING)


def accept(server: socket.socket, epoll: select.epoll, sockets: dict[int, socket.socket], greeted: dict[int, bool]) -> None:
    """Accept waiting connections, up to the bound."""
    for _ in range(ACCEPTS):
        try:
            client, _ = server.accept()
        except BlockingIOError:
            return
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fd = client.fileno()
        sockets[fd], greeted[fd] = client, False
        epoll.register(fd, select.EPOLLIN)


if __name__ == "__main__":
    main(int(sys.argv[1]))
