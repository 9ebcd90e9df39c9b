"""A parent that publishes before and after its children: forked, of multiprocessing, and of a forking server."""

import multiprocessing
import os
import socket
import socketserver
import sys
import threading

from pace import EXIT_S, report

import towerws_producer

EACH = 50


def emit_all(name: str) -> None:
    """Emit fifty events of one writer."""
    for number in range(EACH):
        towerws_producer.emit("job_events.42", {"by": name, "n": number})


def forked(name: str) -> int:
    """A child that ends as scripts do: the exit handler sends its events."""
    child = os.fork()
    if child == 0:
        emit_all(name)
        sys.exit(0)
    return os.waitpid(child, 0)[1]


def of_multiprocessing(name: str) -> int:
    """A child that ends with os._exit, after multiprocessing's own finalizers."""
    child = multiprocessing.get_context("fork").Process(target=emit_all, args=(name,))
    child.start()
    child.join()
    return child.exitcode or 0


class Handler(socketserver.BaseRequestHandler):
    """Publishes for one connection. socketserver's child ends with os._exit and runs no exit handler, so it flushes itself."""

    def handle(self) -> None:
        """Answer once the events are confirmed."""
        emit_all("served")
        assert towerws_producer.flush(20)
        self.request.sendall(b"done")


class Server(socketserver.ForkingMixIn, socketserver.TCPServer):
    """One process for each connection."""


def served() -> bytes:
    """One request to the forking server."""
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with socket.create_connection(server.server_address, timeout=30) as client:
            answer = client.recv(4)
        thread.join()
    return answer


def main() -> None:
    """The parent's connection exists before any fork, and is the same one afterwards."""
    towerws_producer.configure(exit_s=EXIT_S)
    towerws_producer.publish("job_events.42", {"by": "parent", "n": -1})
    statuses = [forked("forked"), of_multiprocessing("multiprocessing")]
    answer = served()
    emit_all("parent")
    flushed = towerws_producer.flush(20)
    report(statuses=statuses, answer=answer.decode(), flushed=flushed, stats=towerws_producer.stats())


main()
