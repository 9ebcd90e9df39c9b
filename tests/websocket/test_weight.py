from __future__ import annotations

from autobahn.twisted.websocket import WebSocketServerProtocol

from tests.kit.ws_kit import edges


def test_the_options_are_in_force_and_no_connection_has_a_copy() -> None:
    """Each Autobahn option has the factory's value, on the class. No connection copies it, or formats it for a log."""
    with edges() as make:
        edge = make()
        connection = edge.connect().connection
        names = WebSocketServerProtocol.CONFIG_ATTRS
        assert len(names) > 20
        for name in names:
            assert getattr(connection, name) == getattr(edge.factory, name), name
            assert name not in vars(connection)


def test_what_autobahn_keeps_for_nothing_is_let_go_or_shared() -> None:
    """Open connections share one set of traffic counters and one queue. The queue always stays empty."""
    with edges() as make:
        edge = make()
        first, second = edge.open().connection, edge.open().connection
        edge.clients[0].ask({"job_events": [1]})
        edge.publish("job_events.1", {})
        assert first.trafficStats is second.trafficStats
        assert first.send_queue is second.send_queue
        assert not first.send_queue
        assert not {"http_request_data", "http_headers", "http_response_data", "_transport_details"} & set(vars(first))
