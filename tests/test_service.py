"""What the service does with all its parts together. The daemon as a whole is in `tests/integration`."""

from __future__ import annotations

from twisted.internet.selectreactor import SelectReactor

from tests.kit.fakes import FakePeer
from tests.test_clock import close
from towerws.core.batch import PART_BYTES, WRITE_BYTES
from towerws.core.requests import Request
from towerws.core.settings import Settings
from towerws.core.wire import TOWER
from towerws.embedded import EmbeddedSource
from towerws.service import TowerwsService


def test_a_message_to_very_many_is_written_over_several_turns_of_the_reactor() -> None:
    """Other work need not wait for all of the writes. In the end every client has the message once."""
    reactor = SelectReactor()
    try:
        service = TowerwsService(Settings(broker=None, auth=("open",)), reactor)
        assert isinstance(service.source, EmbeddedSource)
        service.source.start()
        peers = [FakePeer() for _ in range(2 * PART_BYTES // WRITE_BYTES + 10)]
        for peer in peers:
            service.hub.subscribe(service.hub.join(peer, TOWER), Request(("jobs.status_changed",)))
        service.source.publish("jobs.status_changed", b"{}")
        service.source.flush()
        written = [sum(len(peer.writes) for peer in peers)]
        while reactor.getDelayedCalls():
            reactor.runUntilCurrent()
            written.append(sum(len(peer.writes) for peer in peers))
        assert 0 < written[0] < written[1] < written[-1] == len(peers)
        assert all(peer.take() == [b"{}"] for peer in peers)
    finally:
        close(reactor)
