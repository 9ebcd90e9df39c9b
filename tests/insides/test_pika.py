"""The only list of pika's insides that towerws and its producer use."""

from __future__ import annotations

from tests.insides import uses
from tests.insides.kit import Inside, check, unlisted
from tests.kit.rows import each_row

CONNECTION = "pika.connection:Connection"
ADAPTER = "pika.adapters.twisted_connection:_TwistedConnectionAdapter"

INSIDES = [
    Inside(
        owner="pika.adapters.twisted_connection",
        name="_TwistedConnectionAdapter",
        signature="(parameters, on_open_callback, on_open_error_callback, on_close_callback, custom_reactor=None)",
        why="as the base of the broker connection: pika's public one loses the reason of an end",
    ),
    Inside(
        owner=ADAPTER,
        name="connection_made",
        signature="(self, transport)",
        why="to begin the AMQP handshake",
    ),
    Inside(
        owner=ADAPTER,
        name="data_received",
        signature="(self, data)",
        phrases=("self._on_data_available(data)",),
        why="to hand over what was read",
    ),
    Inside(
        owner=CONNECTION,
        name="_on_data_available",
        signature="(self, data_in)",
        phrases=("self._frame_buffer += data_in", "self._process_frame(frame_value)"),
        why="to read frames ourselves: pika copies the rest of the buffer for each frame",
    ),
    Inside(
        owner=CONNECTION,
        name="_frame_buffer",
        why="as the place of a frame that is not whole yet",
    ),
    Inside(
        owner=CONNECTION,
        name="bytes_received",
        why="because pika's heartbeat check compares it with its last value",
    ),
    Inside(
        owner=CONNECTION,
        name="_process_frame",
        signature="(self, frame_value)",
        why="to let pika handle every frame that is no delivery",
    ),
    Inside(
        owner=CONNECTION,
        name="_adapter_disconnect_stream",
        signature="(self)",
        why="to abort where pika would wait for a flush",
    ),
    Inside(
        owner=CONNECTION,
        name="_error",
        why="as the reason of the end: the code and text of the broker's Connection.Close",
    ),
    Inside(
        owner=CONNECTION,
        name="_terminate_stream",
        through="_error",
        phrases=("self._error = error", "self._adapter_disconnect_stream()"),
        why="in this order: the reason is read while the stream is closed",
    ),
    Inside(
        owner=CONNECTION,
        name="_terminate_stream",
        signature="(self, error)",
        phrases=("self._remove_heartbeat()", "self._adapter_disconnect_stream()"),
        why="to abort a blocking connection at a deadline: its close waits for an answer",
    ),
    Inside(
        owner="pika.adapters.blocking_connection:BlockingConnection",
        name="_impl",
        why="to set timers that run during a call: those of the blocking connection wait for its end",
    ),
    Inside(
        owner=CONNECTION,
        name="_trim_frame_buffer",
        through="bytes_received",
        phrases=("self.bytes_received += byte_count",),
        why="as the one place where pika counts, which our read loop replaces",
    ),
    Inside(
        owner=CONNECTION,
        name="_remove_heartbeat",
        signature="(self)",
        why="to stop pika's timers when the connection has ended",
    ),
    Inside(
        owner=CONNECTION,
        name="_init_connection_state",
        through="_channels",
        phrases=("self._channels = dict()",),
        why="as the place of all channels: each refers to its connection, which would be a cycle when it has ended",
    ),
    Inside(owner=CONNECTION, name="_channels", why="to let go of the channels of a connection that has ended"),
    Inside(
        owner="pika.callback:CallbackManager",
        name="clear",
        signature="(self)",
        phrases=("self._stack = dict()",),
        why="to let go of all callbacks of a connection that has ended",
    ),
    Inside(owner=CONNECTION, name="callbacks", why="to let go of all callbacks of a connection that has ended"),
    Inside(
        owner="pika.adapters.base_connection:BaseConnection",
        name="_transport",
        why="to drop the socket of a silent broker: pika's close waits for an answer",
    ),
    Inside(
        owner="pika.adapters.utils.selector_ioloop_adapter:SelectorIOServicesAdapter",
        name="getaddrinfo",
        signature="(self, host, port, on_done, family=0, socktype=0, proto=0, flags=0)",
        why="to look names up on the producer's thread: Python 3.12 forbids new threads to an ending process",
    ),
    Inside(
        owner="pika.adapters.utils.selector_ioloop_adapter:SelectorIOServicesAdapter",
        name="add_callback_threadsafe",
        signature="(self, callback)",
        why="to report a look-up in the loop's next turn",
    ),
    Inside(
        owner="pika.adapters.utils.selector_ioloop_adapter:SelectorIOServicesAdapter",
        name="connect_socket",
        signature="(self, sock, resolved_addr, on_done)",
        why="to remember the sockets of connections that end while they connect: pika leaves those open",
    ),
    Inside(
        owner="pika.adapters.utils.nbio_interface:AbstractIOReference",
        name="cancel",
        signature="(self)",
        why="as the interface of a look-up",
    ),
]


@each_row("inside", INSIDES, ids=str)
def test_it_is_as_we_know_it(inside: Inside) -> None:
    """The installed pika has each name, with the signature that we call or replace."""
    check(inside, __file__)


def test_no_other_is_used() -> None:
    """A new use of pika's insides gets an entry here, with its reason."""
    assert unlisted(uses.inherited("pika") | uses.imported_privately("pika"), INSIDES) == []


def test_its_private_adapter_is_known_to_one_module() -> None:
    """If pika changes it, only that module needs a change."""
    places = uses.imported_privately("pika")["pika.adapters.twisted_connection._TwistedConnectionAdapter"]
    assert len(places) == 1
