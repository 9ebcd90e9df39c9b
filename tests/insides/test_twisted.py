"""The only list of Twisted's insides that towerws uses."""

from __future__ import annotations

from tests.insides import test_autobahn, test_pika, uses
from tests.insides.kit import Inside, check, unlisted
from tests.kit.rows import each_row

DESCRIPTOR = "twisted.internet.abstract:FileDescriptor"

INSIDES = [
    # Writing past the transport
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
    # A connection that moves to another process
    Inside(owner=DESCRIPTOR, name="_tempDataBuffer", why="to move the bytes that wait in a transport"),
    Inside(
        owner="twisted.internet.tcp:_SocketCloser",
        name="_shouldShutdown",
        value=True,
        why="to close our descriptor without ending the TCP connection, which another process goes on with",
    ),
    # A listening socket that moves to another process
    Inside(
        owner="twisted.internet.unix:Port",
        name="_fromListeningDescriptor",
        signature="(reactor, fd, factory)",
        why="to adopt a UNIX socket without making its file writable for everybody",
    ),
    Inside(
        owner="twisted.internet.tcp",
        name="_reservedFD",
        why="to keep a descriptor with which a UNIX port of systemd's can refuse clients when there is no other, as Twisted's ports do",
    ),
    # Reading from the broker
    Inside(owner=DESCRIPTOR, name="bufferSize", value=64 * 1024, why="to read more, or less, from the broker at once"),
    # Accepting
    Inside(
        owner="twisted.internet.tcp:Port",
        name="doRead",
        through="numberAccepts",
        phrases=("numAccepts = self.numberAccepts", "self.numberAccepts += 20"),
        why="as the place that accepts so many at once, and changes the number",
    ),
    Inside(owner="twisted.internet.tcp:Port", name="numberAccepts", why="to accept a few connections at a time"),
    # The reactor
    Inside(
        owner="twisted.internet.base:ReactorBase",
        name="callLater",
        through="seconds",
        phrases=("self.seconds() + delay",),
        why="to let every timer follow the monotonic clock by one assignment to `seconds`",
    ),
    Inside(owner="twisted.internet.base:ReactorBase", name="_exitSignal", value=None, why="to end with status 0 after an orderly stop"),
    # Connecting
    Inside(
        owner="twisted.internet.endpoints:HostnameEndpoint",
        name="connect",
        through="_badHostname",
        phrases=("if self._badHostname:", "self._hostText, portNumber=self._port"),
        why="to resolve names that break the rules of IDNA, as names in Docker's DNS do",
    ),
    Inside(owner="twisted.internet.endpoints:HostnameEndpoint", name="_badHostname", why="to resolve names that break the rules of IDNA"),
    # The HTTP client
    Inside(owner="twisted.web._newclient", name="HTTP11ClientProtocol", why="as the base of our connections to the API"),
    Inside(
        owner="twisted.web._newclient:HTTP11ClientProtocol",
        name="_disconnectParser",
        signature="(self, reason)",
        why="to break the cycle between a chunked answer's decoder and its parser",
    ),
    Inside(owner="twisted.web._newclient:HTTP11ClientProtocol", name="_parser", why="to reach the parser before Twisted drops it"),
    Inside(
        owner="twisted.internet.endpoints:_WrappingFactory", name="_connector", why="to break the cycle of a closed connection's connector"
    ),
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
    # The HTTP server
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


@each_row("inside", INSIDES, ids=str)
def test_it_is_as_we_know_it(inside: Inside) -> None:
    """The installed Twisted has each name, with the value or the source that we rely on."""
    check(inside, __file__)


def test_no_other_is_used() -> None:
    """A new use of Twisted's private names gets an entry here, with its reason."""
    private = {name: places for name, places in uses.inherited("twisted").items() if uses.is_private(name)}
    assert unlisted(private | uses.imported_privately("twisted"), INSIDES) == []


def test_nobodys_private_name_is_used_unlisted() -> None:
    """For any library, a private name on a foreign object is on one of the lists."""
    everything = [*INSIDES, *test_autobahn.INSIDES, *test_pika.INSIDES]
    assert unlisted(uses.private_elsewhere(), everything) == []
