"""A small HTTP server process on blocking sockets, so that its memory does not count for the caller.

`python -m tests.kit.plain_http [CERTIFICATE KEY]` prints its port, and ends when its standard input does. The last part of a path
chooses the answer: see `ANSWERS`.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

BODY: Final = b'{"results": [{"id": 7}], "keys": []}'

ME: Final = b'{"count": 1, "results": [{"id": 7, "is_superuser": true, "is_system_auditor": false}]}'

ANSWERS: Final = {
    "": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(ME), ME),
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "refused": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}",
    "empty": b"HTTP/1.1 204 No Content\r\n\r\n",
    "close": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(BODY), BODY),
    "until-close": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%s" % BODY,
    "chunked-close": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\nConnection: close\r\n\r\n%s" % BODY,
    "cut-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n%x\r\n%s" % (len(BODY), BODY[:5]),
    "hangup": b"",
    "garbage": b"nonsense\r\n\r\n",
    "hang": b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n%s" % BODY,
    "mute": b"",
}
"""A path that ends with a slash is `/api/v2/me/`. After `close` and similar ones the server closes the connection.

`hang` and `mute` keep it open, and send nothing more.
"""

_HANGS_UP: Final = frozenset({"close", "until-close", "chunked-close", "cut", "cut-chunk", "hangup", "garbage"})


@contextmanager
def plain_http(files: tuple[Path, Path] | None = None) -> Iterator[int]:
    """The port of a running server. With `files`, a certificate and its key, it speaks TLS."""
    command = [sys.executable, "-m", "tests.kit.plain_http", *map(str, files or ())]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.stdin.close()


def _serve(connection: socket.socket, context: ssl.SSLContext | None) -> None:
    try:
        with connection if context is None else context.wrap_socket(connection, server_side=True) as plain:
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    more = plain.recv(65536)
                    if not more:
                        if isinstance(plain, ssl.SSLSocket):
                            plain.unwrap()
                        return
                    data += more
                head, _, data = data.partition(b"\r\n\r\n")
                kind = head.split(b" ", 2)[1].rsplit(b"/", 1)[1].decode()
                plain.sendall(ANSWERS[kind])
                if kind in _HANGS_UP:
                    if isinstance(plain, ssl.SSLSocket):
                        plain.unwrap()  # as nginx does
                    return
    except OSError:
        pass


def _main() -> None:
    context = None
    if len(sys.argv) > 1:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[1], sys.argv[2])
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listening:
        sys.stdout.write(f"{listening.getsockname()[1]}\n")
        sys.stdout.flush()

        def accept() -> None:
            while True:
                connection, _ = listening.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=_serve, args=(connection, context), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        sys.stdin.read()


if __name__ == "__main__":
    _main()
