"""The only list of Autobahn's insides that towerws uses.

Autobahn documents the methods that an application overrides (`DOCUMENTED`). All others that our connections use are listed.
"""

from __future__ import annotations

from tests.insides import uses
from tests.insides.kit import Inside, check, unlisted
from tests.kit.rows import each_row

PROTOCOL = "autobahn.websocket.protocol:WebSocketProtocol"
SERVER = "autobahn.websocket.protocol:WebSocketServerProtocol"
FACTORY = "autobahn.websocket.protocol:WebSocketServerFactory"
ADAPTER = "autobahn.twisted.websocket:WebSocketAdapterProtocol"
FRAME = "autobahn.websocket.protocol:FrameHeader"
DEFLATE = "autobahn.websocket.compress_deflate:PerMessageDeflate"
TIMERS = ("self.factory._batched_timer.call_later(",)

_TWISTED = {"connectionLost", "connectionMade", "dataReceived", "protocol", "registerProducer", "unregisterProducer"}
_AUTOBAHN = {"onClose", "onMessage", "onMessageBegin", "onMessageFrameBegin", "onOpen", "onPing", "onPong", "setProtocolOptions"}
DOCUMENTED = frozenset(_TWISTED | _AUTOBAHN)
"""Names that Autobahn's and Twisted's documentation gives to an application."""

INSIDES = [
    # The state of a connection
    Inside(owner=PROTOCOL, name="STATE_CLOSED", value=0, why="to know what may be read and written"),
    Inside(owner=PROTOCOL, name="STATE_CONNECTING", value=1, why="to know what may be read and written"),
    Inside(owner=PROTOCOL, name="STATE_CLOSING", value=2, why="to know what may be read and written"),
    Inside(owner=PROTOCOL, name="STATE_OPEN", value=3, why="to know what may be read and written"),
    Inside(owner=PROTOCOL, name="state", why="to know what may be read and written"),
    Inside(
        owner=PROTOCOL,
        name="_connectionMade",
        signature="(self)",
        phrases=("for configAttr in self.CONFIG_ATTRS", "self.state = WebSocketProtocol.STATE_CONNECTING", 'self.data = b""', *TIMERS),
        why="once, to learn the state in which Autobahn starts a connection: all connections share it",
    ),
    Inside(owner=FACTORY, name="countConnections", why="because Autobahn counts it down when a connection ends"),
    Inside(owner="autobahn.twisted.websocket:WebSocketServerProtocol", name="CONFIG_ATTRS", why="to keep the options in the class"),
    Inside(owner=PROTOCOL, name="trafficStats", why="to share one: nobody reads it"),
    Inside(owner=PROTOCOL, name="send_queue", why="to share one: only chopped writes use it"),
    Inside(owner=PROTOCOL, name="is_open", why="to put an object without listeners in its place: a Deferred each would be garbage"),
    Inside(owner=PROTOCOL, name="is_closed", why="to put an object without listeners in its place: a Deferred each would be garbage"),
    Inside(owner=PROTOCOL, name="_transport_details", why="to keep none: nobody asks for them"),
    Inside(owner=ADAPTER, name="log", why="to drop its lines: they repeat what clients sent"),
    Inside(
        owner=PROTOCOL,
        name="_connectionLost",
        through="connectionLost",
        signature="(self, reason)",
        why="called directly, because the public method around it only writes debug lines",
    ),
    # A connection that moves to another process takes its unfinished input along
    Inside(owner=PROTOCOL, name="message_data", why="to move what has come of an unfinished message"),
    Inside(owner=PROTOCOL, name="message_is_binary", why="to move what has come of an unfinished message"),
    Inside(owner=PROTOCOL, name="frame_data", why="to move what has come of an unfinished frame"),
    Inside(owner=PROTOCOL, name="control_frame_data", why="to move what has come of an unfinished ping, pong or close"),
    Inside(owner=PROTOCOL, name="current_frame_masker", why="to know how much of an unfinished frame was read: `pointer()`"),
    # The opening handshake is ours
    Inside(
        owner=SERVER,
        name="succeedHandshake",
        through="websocket_protocol_in_use",
        phrases=("self.state = WebSocketProtocol.STATE_OPEN", "self.inside_message = False", "self.current_frame = None"),
        why="as the model of what we set when a connection opens",
    ),
    Inside(owner=SERVER, name="websocket_protocol_in_use", why="to say which subprotocol was chosen"),
    Inside(owner=SERVER, name="websocket_version", why="to say that every connection speaks version 13"),
    Inside(owner=PROTOCOL, name="openHandshakeTimeoutCall", why="to put our timer in place of Autobahn's"),
    Inside(owner=PROTOCOL, name="onOpenHandshakeTimeout", signature="(self)", why="to count handshakes that take too long"),
    # Timers
    Inside(
        owner=FACTORY,
        name="_batched_timer",
        why="to put our timers in place of txaio's, which can be a second early",
    ),
    Inside(owner=PROTOCOL, name="_sendAutoPing", signature="(self)", phrases=TIMERS, why="to start the pings of an open connection"),
    Inside(owner=PROTOCOL, name="autoPingPendingCall", why="to start the pings of an open connection"),
    Inside(owner=PROTOCOL, name="onAutoPingTimeout", signature="(self)", why="to count pings without an answer"),
    # Reading
    Inside(
        owner=PROTOCOL,
        name="_dataReceived",
        signature="(self, data)",
        phrases=("self.data +=", "self.consumeData()"),
        why="to hand over frames that are not one whole message",
    ),
    Inside(owner=PROTOCOL, name="consumeData", signature="(self)", why="to find a close frame behind what can't be inflated"),
    Inside(owner=PROTOCOL, name="data", why="to know whether part of a frame waits, and to let go of it"),
    Inside(owner=PROTOCOL, name="inside_message", why="to know whether a message has begun"),
    Inside(owner=PROTOCOL, name="current_frame", why="to know whether a frame has begun, and which"),
    Inside(owner=FRAME, name="opcode", on="frame", why="to tell control frames"),
    Inside(owner=FRAME, name="length", on="frame", why="to bound a frame before it is kept"),
    Inside(owner=FRAME, name="rsv", on="frame", why="to tell compressed messages"),
    Inside(owner=PROTOCOL, name="onFrameBegin", signature="(self)", why="to bound a frame before it is kept"),
    Inside(owner=PROTOCOL, name="utf8validator", why="to make one only when it is needed"),
    Inside(owner=PROTOCOL, name="utf8validateIncomingCurrentMessage", why="to validate nothing after a close"),
    Inside(owner=PROTOCOL, name="_isMessageCompressed", why="to inflate nothing after a close"),
    Inside(
        owner=PROTOCOL,
        name="_max_message_size_exceeded",
        signature="(self, msg_size, max_msg_size, reason)",
        why="to close with 1009 and our own words",
    ),
    # Compression
    Inside(owner=PROTOCOL, name="_perMessageCompress", why="to put our reader of compressed messages there"),
    Inside(owner=DEFLATE, name="start_decompress_message", signature="(self)", why="to read compressed messages exactly"),
    Inside(
        owner=DEFLATE,
        name="decompress_message_data",
        signature="(self, data, max_output_len=None)",
        why="to read compressed messages exactly",
    ),
    Inside(owner=DEFLATE, name="end_decompress_message", signature="(self)", why="to read compressed messages exactly"),
    Inside(owner=DEFLATE, name="max_message_size", why="as the bound of an inflated message"),
    # Closing
    Inside(owner=PROTOCOL, name="onCloseFrame", signature="(self, code, reasonRaw)", why="to answer a close with the client's own code"),
    Inside(
        owner=PROTOCOL,
        name="sendCloseFrame",
        signature="(self, code=None, reasonUtf8=None, isReply=False)",
        phrases=("self.sendFrame(opcode=8, payload=payload)", "self.state = WebSocketProtocol.STATE_CLOSING", *TIMERS),
        why="to send the codes that `sendClose` refuses",
    ),
    Inside(owner=PROTOCOL, name="_protocol_violation", signature="(self, reason)", why="to refuse an invalid close code"),
    Inside(owner=PROTOCOL, name="_invalid_payload", signature="(self, reason)", why="to refuse an invalid close reason"),
    Inside(owner=PROTOCOL, name="closeHandshakeTimeoutCall", why="to cancel it when a connection is lost: Autobahn lets it run"),
    Inside(
        owner=PROTOCOL,
        name="dropConnection",
        signature="(self, abort=False)",
        phrases=("self._closeConnection(abort)",),
        why="to bound how long a client may take to end",
    ),
    Inside(owner=ADAPTER, name="_closeConnection", signature="(self, abort=False)", why="to end our stream without a reset"),
    Inside(
        owner=PROTOCOL,
        name="_connectionLost",
        signature="(self, reason)",
        phrases=("self.autoPingPendingCall.cancel()", "self.autoPingTimeoutCall.cancel()", "self.openHandshakeTimeoutCall.cancel()"),
        why="to end a connection without the debug lines of the method that calls it",
    ),
    Inside(owner=PROTOCOL, name="failedByMe", why="to let Autobahn keep nothing of what comes after our close"),
    Inside(owner=PROTOCOL, name="wasClean", why="to tell an answered close from a violation"),
    Inside(owner=PROTOCOL, name="wasNotCleanReason", why="for the log's line of a connection that ended"),
]


@each_row("inside", INSIDES, ids=str)
def test_it_is_as_we_know_it(inside: Inside) -> None:
    """The installed Autobahn has each name, with the signature or value that we rely on."""
    check(inside, __file__)


def test_no_other_is_used() -> None:
    """A new use of Autobahn's insides gets an entry here, with its reason."""
    assert unlisted(uses.inherited("autobahn") | uses.imported_privately("autobahn"), INSIDES, DOCUMENTED) == []
