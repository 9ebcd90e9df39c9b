"""Well-behaved clients that must notice nothing of what other clients do."""

from __future__ import annotations

from collections.abc import Callable

from tests.kit.ws_kit import PING, PONG, Client, Edge, frame, request

COUNT = 50


class Bystanders:
    """Fifty clients on an edge in memory. They subscribe, answer pings, and get their own events."""

    def __init__(self, edge: Edge, count: int = COUNT, *, head: bytes | None = None) -> None:
        self._edge = edge
        self._published = 0
        self.clients: list[Client] = []
        for _ in range(count):
            client = edge.connect("198.51.100.1").send(head or request())
            assert client.status == 101, client.response
            client.ask({"jobs": ["status_changed"]})
            assert client.take()[-1]["groups_current"] == ["jobs-status_changed"]
            self.clients.append(client)

    def check(self, events: int = 1) -> None:
        """Each event reaches each of them at once and in order. They get no other event, and none was closed."""
        for _ in range(events):
            self._published += 1
            self._edge.publish("jobs.status_changed", {"n": self._published})
        wanted = [{"n": number} for number in range(self._published - events + 1, self._published + 1)]
        for client in self.clients:
            assert client.take() == wanted
            assert client.close_code() is None

    def pump(self, seconds: float, each: Callable[[], object] = lambda: None, step: float = 0.25) -> None:
        """Let time pass. `each` is called in every step, and the bystanders get an event each second."""
        for number in range(round(seconds / step)):
            each()
            self._edge.clock.advance(step)
            for client in self.clients:
                for ping in client.control(PING):
                    client.send(frame(PONG, ping))
                client.frames = [found for found in client.frames if found[0] != PING]
            if number % round(1 / step) == 0:
                self.check()

    def alone(self) -> None:
        """Check that no other client is left: not among the connections, the counts, the hub or the timers."""
        edge, count = self._edge, len(self.clients)
        assert list(edge.factory.connections) == [client.connection for client in self.clients]
        assert edge.factory.connection_limits.present == count
        assert len(edge.hub.subscribers) - edge.context.credential_monitor.watchers == count
        assert edge.hub.topics - edge.context.credential_monitor.watchers == 1
        self.check()
