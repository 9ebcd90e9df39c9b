"""The insides of Twisted that towerws uses: the only list of them."""

from __future__ import annotations

import pytest

from tests.insides import test_autobahn, test_pika, uses
from tests.insides.kit import Inside, check, unlisted

DESCRIPTOR = "twisted.internet.abstract:FileDescriptor"

INSIDES = [
    # writing past the transport
    Inside(
        owner=DESCRIPTOR,
        name="dataBuffer",
        why="to know how many bytes wait in a transport",
    ),
    Inside(owner=DESCRIPTOR, name="offset", on="transport", why="to know how many bytes wait in a transport"),
    Inside(owner=DESCRIPTOR, name="_tempDataLen", why="to know how many bytes wait in a transport"),
    Inside(
        owner=DESCRIPTOR,
        name="doWrite",
        through="_tempDataLen",
        phrases=("len(self.dataBuffer) - self.offset", "self._tempDataLen = 0", "self.producer.resumeProducing()"),
        why="as the place that says where waiting bytes are, and that a pull producer is asked when none are left",
    ),
    Inside(owner="twisted.internet.tcp:Connection", name="socket", on="transport", why="to write to it when nothing waits"),
    Inside(owner="twisted.internet.tcp:Connection", name="TLS", value=False, why="to tell a plain connection from an encrypted one"),
    # reading from the broker
    Inside(owner=DESCRIPTOR, name="bufferSize", value=64 * 1024, why="to read more, or less, from the broker at once"),
    # accepting
    Inside(
        owner="twisted.internet.tcp:Port",
        name="doRead",
        through="numberAccepts",
        phrases=("numAccepts = self.numberAccepts", "self.numberAccepts += 20"),
        why="as the place that accepts so many at once, and changes the number",
    ),
    Inside(owner="twisted.internet.tcp:Port", name="numberAccepts", why="to accept a few connections at a time"),
    # the reactor
    Inside(
        owner="twisted.internet.base:ReactorBase",
        name="callLater",
        through="seconds",
        phrases=("self.seconds() + delay",),
        why="to let every timer follow the monotonic clock by one assignment to `seconds`",
    ),
    Inside(owner="twisted.internet.base:ReactorBase", name="_exitSignal", value=None, why="to end with status 0 after an orderly stop"),
    # the HTTP client
    Inside(owner="twisted.web.client:HTTPConnectionPool", name="_factory", why="to silence its two log lines for each connection"),
    Inside(
        owner="twisted.web.client:HTTPConnectionPool",
        name="_newConnection",
        through="_factory",
        phrases=("self._factory(quiescentCallback, repr(endpoint))",),
        why="as the place that makes a connection's factory",
    ),
    Inside(
        owner="twisted.web._newclient:TransportProxyProducer",
        name="_producer",
        why="to abort a connection of the HTTP client: its public way waits for the peer",
    ),
    Inside(
        owner="twisted.web._newclient",
        name="HTTP11ClientProtocol",
        why="as the base of the HTTP client's connection: Twisted's leaves cycles",
    ),
    Inside(
        owner="twisted.web._newclient:HTTP11ClientProtocol",
        name="_disconnectParser",
        signature="(self, reason)",
        through="_parser",
        phrases=("self._parser",),
        why="as the place where an answer has ended: the decoder of a chunked one refers to the parser",
    ),
    Inside(owner="twisted.web._newclient:HTTP11ClientProtocol", name="_parser", why="to part the decoder of a chunked answer from it"),
    # an outgoing connection
    Inside(
        owner="twisted.internet.endpoints:_WrappingFactory",
        name="startedConnecting",
        through="_connector",
        phrases=("self._connector = connector",),
        why="as the place that makes a cycle of a socket, its connector and the endpoint's factory",
    ),
    Inside(owner="twisted.internet.endpoints:_WrappingFactory", name="_connector", why="to let go of the connector of a closed socket"),
    # the HTTP server
    Inside(
        owner="twisted.web.http:Request",
        name="handleContentChunk",
        signature="(self, data)",
        why="to bound a body while it arrives",
    ),
    Inside(
        owner="twisted.web.http:Request",
        name="requestReceived",
        signature="(self, command, path, version)",
        why="to answer nothing that was refused already",
    ),
]


@pytest.mark.parametrize("inside", INSIDES, ids=str)
def test_it_is_as_we_know_it(inside: Inside) -> None:
    """The installed Twisted has each name, with the value or the source that we rely on."""
    check(inside, __file__)


def test_no_other_is_used() -> None:
    """A new use of Twisted's private names gets an entry here, with its reason."""
    private = {name: places for name, places in uses.inherited("twisted").items() if uses.is_private(name)}
    assert unlisted(private | uses.imported_privately("twisted"), INSIDES) == []


def test_nobodys_private_name_is_used_unlisted() -> None:
    """Whatever the library: a private name on a foreign object is on one of the lists."""
    everything = [*INSIDES, *test_autobahn.INSIDES, *test_pika.INSIDES]
    assert unlisted(uses.private_elsewhere(), everything) == []
