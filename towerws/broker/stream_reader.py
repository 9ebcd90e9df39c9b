"""Reads a stream on one open connection: where to begin, when it is the same log, when history is complete, what was lost.

Every decision follows from something that was read. A timeout tries again, or gives the connection up; it never decides.
The facts about RabbitMQ's streams are from experiments with 3.10 and 4.0 (docs/reliability.md).

  state      | what is done                                     | what ends it                                  | next
  checking   | look whether the stream exists                   | it does; 404 "no queue"                       | attaching
  attaching  | main consumer at the anchor (our newest marker,  | consume-ok                                    | proving; refilling
             | else the newest delivery); nothing read yet: at  |                                               |
             | an interval of the broker's clock                |                                               |
  proving    | main repeats what was read; a scout at `next`;   | main repeats the newest delivery              | refilling; live
             | a marker straight to the stream                  | other content, or the marker below our newest | comparing
             |                                                  | main begins behind our newest                 | jumped
  comparing  | main at the oldest delivery that history holds   | the first that differs: a gap                 | refilling; live
  jumped     | offsets were left out: a scout at `first`        | the first offset that there is: a gap or none | refilling; live
  refilling  | read into history                                | our marker, published after consume-ok, comes | live

Where markers are refused, or an alarm blocks them, the first message that a scout at `next` gets takes the marker's place.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Protocol

from pika import exceptions as pika_exceptions
from pika.channel import Channel
from twisted.internet import interfaces
from twisted.logger import Logger

from towerws.broker.binding_watch import BindingWatch
from towerws.broker.connection import BrokerConnection
from towerws.broker.consumer import Consumer, Feed, Scout
from towerws.broker.deadline import Deadline
from towerws.broker.failures import ConnectionFailure, RetryPolicy
from towerws.broker.markers import MarkerPublisher
from towerws.broker.topology import Mode, declare_stream, no_deliveries, on_side_channel, set_prefetch
from towerws.core.errors import BrokerError, NotRouted, PublishersBlocked, PublishRefused
from towerws.core.markers import Marker, parse_marker
from towerws.core.settings import BrokerSettings
from towerws.core.sources import SourceState

RESTARTS: Final = 3
RESTARTS_S: Final = 60.0

MARKER_AGAIN_S: Final = 1.0
"""How long after a marker that could not be published the next one is tried."""

ASK_EVERY_S: Final = 0.1
"""However many clients ask what their position is worth, no more markers than one in this time are published for them."""

CLOCK_MARGIN_S: Final = 10
"""The refill begins so much earlier, and a node's clock may be so far ahead of the clock of the stream's leader."""

CLOCK_MARKER_S: Final = CLOCK_MARGIN_S - 1
"""A marker that is older than this when the node is asked for the last ten seconds says nothing about the node's clock."""

CLOCK_ANSWER_S: Final = 0.5
"""A node whose clock is right answers at once. After this time another marker is written, so that any node has something to deliver."""

CLOCK_PROBES: Final = 3
"""How often the node is asked with a younger marker. A link may be too slow for any of them: then everything is read."""

ANCHOR_REACH: Final = 50_000
"""A marker is the anchor only if no more than this was read behind it: all that is read once more."""

NEAR_SKIPS: Final = 8
"""So many offsets are tried one by one behind an entry that can't be read; from then on the distance doubles."""


class ReaderEvents(Protocol):
    """What a reader tells its owner. Nothing after `reader_failed` or `close`."""

    def reader_state(self, state: SourceState, reason: str) -> None:
        """It is not live; in a line what it waits for."""

    def reader_live(self) -> None:
        """Deliveries come as they are published."""

    def reader_restarted(self, failure: ConnectionFailure) -> None:
        """The channel was lost, a new one is being set up on the same connection."""

    def reader_failed(self, failure: ConnectionFailure) -> None:
        """This connection is of no more use."""


class _State(enum.Enum):
    CHECKING = "checking"
    ATTACHING = "attaching"
    PROVING = "proving"
    COMPARING = "comparing"
    JUMPED = "jumped"
    REFILLING = "refilling"
    LIVE = "live"


class StreamReader:
    """See the module. `hosts` is how many there are: with another one to try, a connection that proves nothing is given up sooner."""

    _log = Logger()

    def __init__(
        self,
        connection: BrokerConnection,
        settings: BrokerSettings,
        feed: Feed,
        markers: MarkerPublisher,
        watch: BindingWatch,
        reactor: interfaces.IReactorTime,
        events: ReaderEvents,
    ) -> None:
        self.marker_key = settings.stream
        self._connection = connection
        self._settings = settings
        self._feed = feed
        self._sink = feed.sink
        self._markers = markers
        self._watch = watch
        self._reactor = reactor
        self._events = events
        self._closed = False
        self._state = _State.CHECKING
        self._was_live = False
        self._check: Any = None
        self._start: object = None
        self._consumer: Consumer | None = None
        self._scout: Scout | None = None
        self._deadline = Deadline(reactor)
        self._again = Deadline(reactor)
        self._restarts: deque[float] = deque(maxlen=RESTARTS)
        self._sent_before = 0
        """How many markers had been sent when the present consumer was accepted."""
        self._proof_offset = -1
        self._proof: str | None = None
        """The text of our newest marker that was read and that proves that history is complete."""
        self._proof_sent_at = 0.0
        self._probing = False
        """Whether the node is being asked for the last ten seconds."""
        self._probes = 0
        self._shared: int | None = None
        self._upto: int | None = None
        """Without markers: where the scout says that new messages begin."""
        self._asking = False
        self._asked_at = -ASK_EVERY_S
        self._sending = ""
        self._progress: int | None = None
        self._progress_asked = False

    # what the owner calls

    def begin(self) -> None:
        """Set everything up; ends in `reader_live` or `reader_failed`, unless the connection dies or `close` is called."""
        self._sink.proven(False)
        self._sink.on_position_asked = self._prove_head
        self._watch.stop()
        self._drop()
        if not self._sink.history_complete:
            self._send_early_marker()
        self._shared = self._upto = self._proof = None
        self._probes = 0
        self._state = _State.CHECKING
        self._check = self._connection.open_channel(self._checking, no_deliveries)
        self._check.add_on_close_callback(self._check_closed)
        self._deadline.set(self._settings.attempt_s, self._unanswered)

    def end_read(self) -> None:
        """One read from the socket was handled."""
        consumer = self._consumer
        if consumer is None:
            return
        consumer.end_read()
        if self._state is _State.REFILLING:
            self._refilled()
        elif self._sink.waiting:
            self._prove_head()

    def close(self) -> None:
        """Acknowledge and end the channels; nothing reaches the sink any more."""
        if not self._closed:
            self._closed = True
            self._sink.proven(False)
            self._sink.on_position_asked = _nobody
            self._watch.stop()
            self._drop()

    def connection_lost(self, failure: ConnectionFailure) -> None:
        """The connection is gone, perhaps for an entry that AMQP 0-9-1 can't read.

        Then the broker ends it (541) each time at the same place. 541 has other causes too, all of which pass: only one that comes again,
        with nothing read in between and after the end of the stream was read at this broker, is taken for such an entry.
        """
        feed, consumer = self._feed, self._consumer
        if failure.code != 541 or consumer is None or self._state is _State.ATTACHING:
            return
        read = feed.read if consumer.expected is None else consumer.expected - 1
        if feed.unreadable and feed.stuck_at == read:
            if feed.evidence is not None:
                self._pass_over()
        else:
            feed.unreadable, feed.stuck_at, feed.evidence, feed.skip = True, read, None, 0

    # checking: does the stream exist?

    def _checking(self, channel: Channel) -> None:
        if channel is self._check:
            channel.queue_declare(self._settings.stream, passive=True, callback=lambda _: self._checked(missing=False))

    def _check_closed(self, channel: object, reason: Exception) -> None:
        # "No queue" is an answer. 404 alone is not: a queue whose node is just coming up has it too. Any other refusal the consumer's
        # channel meets again, and reports.
        if channel is self._check:
            missing = (
                isinstance(reason, pika_exceptions.ChannelClosedByBroker) and reason.reply_code == 404 and "no queue" in reason.reply_text
            )
            self._checked(missing=missing)

    def _checked(self, *, missing: bool) -> None:
        check, self._check = self._check, None
        if check is None or self._closed:
            return
        if check.is_open:
            check.close()
        feed, sink = self._feed, self._sink
        if feed.attached is Mode.QUEUE or (missing and feed.read is not None):
            # Another log, by what the broker said: the one that history holds is gone.
            if feed.attached is not Mode.QUEUE:
                self._log.warn("stream {stream} was deleted: its log begins again", stream=self._settings.stream)
            sink.rewind(None)
            feed.read = feed.anchor = None
            self._feed.hole = True
            self._attach("first", bind=missing)
        elif feed.read is None:
            # Without markers nothing shows what is new. Attached before, and nothing came: all that there is by now is new to the clients.
            feed.by_interval = not missing and not feed.skip and (feed.attached is None or feed.unprovable is None)
            if feed.unreadable and feed.evidence is None:
                self._look_for_evidence()
            else:
                self._attach_again(bind=missing)
        elif feed.unreadable and feed.evidence is None:
            self._look_for_evidence()
        else:
            self._attach_again()

    def _attach_again(self, *, bind: bool = False) -> None:
        """Where we were; where nothing was read yet, as far back as history should reach; or behind what can't be read."""
        feed = self._feed
        start: object
        if feed.read is not None:
            start = feed.read + 1 + feed.skip if feed.skip else self._anchor(feed.read)
        elif feed.skip:
            start = f"{seconds}s" if (seconds := self._interval_s) else feed.evidence
        elif feed.by_interval:
            start = f"{self._interval_s}s"
        else:
            start = "first"
        self._attach(start, bind=bind)

    @property
    def _interval_s(self) -> int:
        """How far back the refill begins: half as far for each time that an entry was met there that can't be read. 0: nothing is left."""
        return (math.ceil(self._settings.refill_s) + CLOCK_MARGIN_S) >> self._feed.skip

    def _anchor(self, read: int) -> int:
        anchor, newest = self._feed.anchor, self._sink.newest
        if anchor is not None and read - anchor[0] <= ANCHOR_REACH:
            return anchor[0]
        return read if newest is None else newest

    def _unanswered(self) -> None:
        self._fail(ConnectionFailure(f"{self._state.value}: no answer from the stream within {self._settings.attempt_s:g} s"))

    # attaching

    def _attach(self, start: object, *, bind: bool) -> None:
        self._state = _State.ATTACHING
        self._start = start
        self._sent_before = self._markers.count
        bind = bind or self._feed.unprovable is not None

        def topology(channel: Channel) -> str:
            stream = declare_stream(channel, self._settings, bind=bind)
            set_prefetch(channel, self._settings)
            return stream

        self._consumer = Consumer(self._connection, Mode.STREAM, topology, start, self._settings, self._feed, self._reactor, self)
        self._deadline.set(self._settings.attempt_s, self._unanswered)

    def consumer_ok(self) -> None:
        """Attached: prove, or refill."""
        feed = self._feed
        again = feed.attached is Mode.STREAM and feed.read is None and self._start == "first" and not self._feed.hole
        feed.attached = Mode.STREAM
        self._sent_before = self._markers.count
        if self._state is _State.COMPARING:
            self._watch_progress()
            self._send_marker()
            return
        if feed.read is None or feed.skip or (feed.hole and isinstance(self._start, int) and self._start > feed.read):
            if feed.skip:
                feed.hole = feed.read is not None
            self._accept()
            if again and self._feed.unprovable is not None:
                self._sink.caught_up(replay=True)
                self._go_live()
        else:
            self._state = _State.PROVING
            self._say(SourceState.PROVING, "position not proven: no delivery yet")
            self._open_scout("next", self._scout_saw)
        if self._state is not _State.LIVE:
            self._watch_progress()
            self._send_marker()

    def _accept(self) -> None:
        """What main delivers from now on is new: into history, and out to the connections if that is complete."""
        feed = self._feed
        self._close_scout()
        if self._consumer is not None and feed.read is not None and not feed.hole:
            self._consumer.expected = feed.read + 1
        self._sink.proven(True)
        if self._sink.history_complete:
            self._go_live()
        else:
            self._state = _State.REFILLING
            self._say(SourceState.REFILLING, "history is being refilled")

    # ConsumerEvents

    def consumer_saw(self, consumer: Consumer, tag: int, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """A message that is not simply the next one."""
        if consumer is not self._consumer:
            return
        if self._state is _State.PROVING:
            self._prove(consumer, tag, routing_key, body, offset, message_id)
        elif self._state is _State.COMPARING:
            consumer.skip(tag)
            self._compare(routing_key, body, offset)
        else:
            self._step(consumer, tag, routing_key, body, offset, message_id)

    def consumer_marker(self, marker: Marker, routing_key: str, body: bytes, offset: int) -> None:
        """A marker was read."""
        number = self._markers.number(marker)
        if number is not None:
            self._feed.anchor = offset, body
            self._asking = False
            if number > self._sent_before:
                self._proof, self._proof_offset = marker.text, offset
                self._proof_sent_at = self._markers.sent_at(marker)
        self._watch.came(marker, routing_key, offset)
        if self._state is _State.REFILLING:
            self._refilled()

    def consumer_lost(self, failure: ConnectionFailure) -> None:
        """Again on a new channel; or give the connection up when that happens too often or was refused."""
        self._consumer = None
        now = self._reactor.seconds()
        worn_out = len(self._restarts) == RESTARTS and now - self._restarts[0] < RESTARTS_S
        if not self._was_live or worn_out:
            self._fail(replace(failure, retry=RetryPolicy.FAST) if worn_out else failure)
            return
        self._restarts.append(now)
        self._events.reader_restarted(failure)
        self.begin()

    # proving: is it the same log?

    def _prove(self, consumer: Consumer, tag: int, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        feed, newest = self._feed, self._sink.newest
        assert feed.read is not None
        if offset > feed.read:
            self._accept()
            self._step(consumer, tag, routing_key, body, offset, message_id)
            return
        consumer.skip(tag)
        same = self._sink.compare(routing_key, body, offset)
        if same is None and feed.anchor is not None and offset == feed.anchor[0]:
            same = body == feed.anchor[1]
        if same is False:
            self._start_comparing(None)
        elif newest is None or offset >= newest:
            self._accept()

    def _scout_saw(self, offset: int, routing_key: str, body: bytes) -> None:
        """While main is silent, what is written at the end of the log tells more. Only main feeds history."""
        read = self._feed.read
        if self._state is not _State.PROVING or read is None or offset > read:
            return
        if self._is_proof(body):
            self._start_comparing(offset)
        elif self._sink.compare(routing_key, body, offset) is False:
            self._start_comparing(None)

    def _is_proof(self, body: bytes) -> bool:
        """Whether this is a marker of ours that was published after the present consumer was accepted."""
        marker = parse_marker(body)
        if marker is None:
            return False
        number = self._markers.number(marker)
        return number is not None and number > self._sent_before

    # comparing: what does the log share with history?

    def _start_comparing(self, marker_offset: int | None) -> None:
        oldest = self._sink.oldest
        self._drop()
        self._shared = None
        if oldest is None or (marker_offset is not None and marker_offset < oldest):
            self._diverged()
            return
        self._attach(oldest, bind=False)
        self._state = _State.COMPARING
        self._say(SourceState.PROVING, "the log was changed; looking for what is left of it")

    def _compare(self, routing_key: str, body: bytes, offset: int) -> None:
        newest = self._sink.newest
        same = self._sink.compare(routing_key, body, offset)
        if same:
            self._shared = offset
            if offset == newest:
                self._accept()
        elif same is False or newest is None or offset > newest or self._is_proof(body):
            self._diverged()

    def _diverged(self) -> None:
        """The log is another one, or was cut off and written on."""
        feed, shared = self._feed, self._shared
        self._log.warn(
            "stream {stream} is not the one that was read up to offset {read}: {shared}; clients are told of a gap",
            stream=self._settings.stream,
            read=feed.read,
            shared="nothing of it is left" if shared is None else f"the same up to {shared}, other content from there",
        )
        self._drop()
        self._sink.rewind(shared)
        feed.read = shared
        if feed.anchor is not None and (shared is None or feed.anchor[0] > shared):
            feed.anchor = None
        self._feed.hole = True
        self._attach("first" if shared is None else shared + 1, bind=False)

    # a step in the offsets

    def _step(self, consumer: Consumer, tag: int, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        feed = self._feed
        read = feed.read if consumer.expected is None else consumer.expected - 1
        if read is not None and offset <= read:
            consumer.skip(tag)
        elif read is None or feed.hole or offset <= read + 2:
            # A step of two leaves out the internal entry that opens a segment.
            if feed.hole:
                feed.hole = False
                self._sink.hole(routing_key, body, offset, message_id, "broker")
            feed.skip = 0
            consumer.take(tag, routing_key, body, offset, message_id)
        else:
            self._jump(read, offset)

    def _jump(self, read: int, offset: int) -> None:
        """Its size says nothing. Where the stream begins now says whether anything was lost, asked on the connection that jumped."""
        self._drop()
        self._feed.read = read
        self._state = _State.JUMPED
        self._say(SourceState.PROVING, f"offsets {read + 1} to {offset - 1} were left out; looking whether anything is lost")

        def saw(first: int, _routing_key: str, _body: bytes) -> None:
            if self._state is not _State.JUMPED:
                return
            self._close_scout()
            lost = first > read + 1
            self._log.warn(
                "stream {stream}: the broker went from offset {read} to {offset}, the stream begins at {first}: {verdict}",
                stream=self._settings.stream,
                read=read,
                offset=offset,
                first=first,
                verdict="events were lost, clients are told of a gap" if lost else "nothing was lost",
            )
            if lost:
                self._feed.hole = True
            else:
                self._feed.read = offset - 1
            self._attach(offset, bind=False)

        self._open_scout("first", saw)
        self._deadline.set(self._settings.attempt_s * 3, self._unanswered)

    # refilling: is history complete?

    def _refilled(self) -> None:
        consumer = self._consumer
        if consumer is None:
            return
        if self._proof is None:
            if self._upto is not None and consumer.expected is not None and consumer.expected > self._upto:
                self._sink.caught_up()
                self._go_live()
            return
        if self._feed.by_interval:
            if not self._probing:
                self._probe_clock()
            return
        self._sink.caught_up()
        self._go_live()

    def _probe_clock(self) -> None:
        """Ask the node for the last ten seconds. If its clock is right, our marker, which was just written, is among them.

        To a node whose clock is ahead everything is older than that, and it delivers what is written next. Another marker sees to it
        that something is.
        """
        proof, sent_at = self._proof_offset, self._proof_sent_at
        asked_at = 0.0

        def ready() -> None:
            nonlocal asked_at
            asked_at = self._reactor.seconds()
            self._again.set(CLOCK_ANSWER_S, self._send_marker)

        def saw(offset: int, _routing_key: str, _body: bytes) -> None:
            if not self._probing:
                return
            self._probing = self._progress_asked = False
            self._again.clear()
            self._close_scout()
            self._watch_progress()
            if offset <= proof:
                self._feed.by_interval = False
                self._refilled()
            elif asked_at - sent_at <= CLOCK_MARKER_S or self._probes >= CLOCK_PROBES:
                self._clock_is_not_proven()
            else:
                # The marker was older than ten seconds itself.
                self._proof = None
                self._send_marker()

        self._probing = True
        self._probes += 1
        self._open_scout(f"{CLOCK_MARGIN_S}s", saw, ready=ready)
        self._deadline.set(self._settings.attempt_s * 3, self._unanswered)

    def _clock_is_not_proven(self) -> None:
        """Then read everything: that is right whatever clocks say."""
        self._log.warn(
            "the clock of {broker} seems to be ahead of the stream's leader: history is refilled from the stream's beginning",
            broker=str(self._connection.url),
        )
        self._drop()
        self._sink.restart()
        self._feed.read = self._feed.anchor = None
        self._feed.by_interval = False
        self._proof = None
        self._attach("first", bind=False)

    def _go_live(self) -> None:
        self._state = _State.LIVE
        self._was_live = True
        self._deadline.clear()
        self._again.clear()
        self._close_scout()
        self._events.reader_live()
        self._watch.start(self)
        if self._sink.waiting:
            self._prove_head()

    # markers

    def _send_marker(self) -> None:
        """A marker straight to the stream, published after the consumer was accepted."""
        self._markers.send_direct(self._settings.stream, self._marker_answered, self._sink_marker_sent)

    def _send_early_marker(self) -> None:
        """Clients that subscribe during the refill are due what lies behind the markers confirmed by then: the sooner, the better."""
        text = ""

        def sent(name: str) -> None:
            nonlocal text
            text = name

        def answered(error: BrokerError | None) -> None:
            if error is None and not self._closed:
                self._sink.marker_confirmed(text)

        self._markers.send_direct(self._settings.stream, answered, sent)

    def _sink_marker_sent(self, text: str) -> None:
        self._sending = text
        self._sink.marker_sent(text)

    def _marker_answered(self, error: BrokerError | None) -> None:
        if self._closed or self._state is _State.LIVE:
            return
        if error is None:
            self._feed.unprovable = None
            self._sink.marker_confirmed(self._sending)
            return
        if isinstance(error, NotRouted):
            self._missing_route()
            return
        if isinstance(error, (PublishRefused, PublishersBlocked)):
            if self._feed.unprovable is None:
                self._log.warn("no marker can be published: {reason}", reason=str(error))
            self._feed.unprovable = str(error)
            if self._state is _State.REFILLING and self._scout is None:
                self._open_scout("next", self._scout_found_the_end)
        self._say(
            SourceState.PROVING if self._state is not _State.REFILLING else SourceState.REFILLING,
            f"position not proven: no delivery yet; markers don't get through: {error}",
        )
        self._again.set(MARKER_AGAIN_S, self._send_marker)

    def _missing_route(self) -> None:
        """No queue took it: the stream is gone; or the binding, where markers go through the exchange."""
        if self._state in {_State.PROVING, _State.COMPARING, _State.REFILLING}:
            self.rebind(lambda _: None)
            self._again.set(MARKER_AGAIN_S, self._send_marker)

    def _scout_found_the_end(self, offset: int, _routing_key: str, _body: bytes) -> None:
        if self._upto is None and self._state is _State.REFILLING:
            self._upto = offset
            self._refilled()

    def _prove_head(self) -> None:
        """A client waits for a position: a marker that is published now tells how far the log reaches."""
        if self._state is not _State.LIVE or self._asking:
            return
        self._asking = True
        now = self._reactor.seconds()
        if now - self._asked_at < ASK_EVERY_S:
            self._again.set(ASK_EVERY_S, self._ask_again)
            return
        self._asked_at = now

        def answered(error: BrokerError | None) -> None:
            if error is not None:
                self._again.set(MARKER_AGAIN_S, self._ask_again)

        # The next one goes out when this one has come back, or should have.
        self._again.set(MARKER_AGAIN_S, self._ask_again)
        self._markers.send_direct(self._settings.stream, answered, self._sink.marker_sent)

    def _ask_again(self) -> None:
        self._asking = False
        if self._sink.waiting:
            self._prove_head()

    # Watched

    def rebind(self, done: Callable[[ConnectionFailure | None], None]) -> None:
        """Declare and bind once more, on a channel of its own."""
        on_side_channel(self._connection, lambda channel, agreed: declare_stream(channel, self._settings, bind=True, callback=agreed), done)

    def marker_sent(self, text: str) -> None:
        """The sink remembers who waits."""
        self._sink.marker_sent(text)

    def tell_before_next(self) -> None:
        """The next message is looked at, and the gap told before it. What a client then fetches is from after the hole."""
        consumer = self._consumer
        if self._state is _State.LIVE and consumer is not None and consumer.expected is not None:
            self._feed.read, self._feed.hole = consumer.expected - 1, True
            consumer.expected = None

    def hole_closed(self) -> None:
        """The marker itself tells of the hole, to every daemon."""

    def deaf(self, reason: str) -> None:
        """Another connection, at another host where there is one, may hear more. This one is not worth keeping."""
        self._fail(ConnectionFailure(reason, RetryPolicy.FAST))

    # our own

    def _look_for_evidence(self) -> None:
        """The broker ended the connection (541) where main should begin: see whether it serves the end of this stream."""
        self._say(SourceState.PROVING, "the broker ends the connection where we read on; looking whether the stream works otherwise")
        self._state = _State.ATTACHING
        self._sent_before = self._markers.count

        def saw(offset: int, _routing_key: str, body: bytes) -> None:
            if not self._is_proof(body):
                return
            # It does. If the broker ends the connection again, it is for something that lies where we read on.
            self._close_scout()
            self._feed.evidence = offset
            self._attach_again()

        self._open_scout("next", saw, ready=self._send_marker)
        self._deadline.set(self._settings.attempt_s, self._unanswered)

    def _pass_over(self) -> None:
        feed = self._feed
        if feed.read is None:
            self._log.warn(
                "stream {stream}: an entry of the last {seconds} s can't be read over AMQP 0-9-1; history begins behind it",
                stream=self._settings.stream,
                seconds=self._interval_s,
            )
            feed.skip += 1
            return
        feed.skip = feed.skip + 1 if feed.skip < NEAR_SKIPS else feed.skip * 2
        self._log.warn(
            "stream {stream}: an entry behind offset {read} can't be read over AMQP 0-9-1; going on {skip} offsets behind it",
            stream=self._settings.stream,
            read=feed.read,
            skip=feed.skip,
        )

    def _open_scout(self, start: object, saw: Callable[[int, str, bytes], None], ready: Callable[[], None] = lambda: None) -> None:
        self._close_scout()
        self._scout = Scout(self._connection, self._settings.stream, start, ready=ready, saw=saw, lost=self._scout_lost)

    def _scout_lost(self, failure: ConnectionFailure) -> None:
        self._scout = None
        if self._state is not _State.LIVE:
            self._fail(failure)

    def _close_scout(self) -> None:
        scout, self._scout = self._scout, None
        if scout is not None:
            scout.close()

    def _watch_progress(self) -> None:
        """Nothing proven within this time, and nothing read: the next host. An alarm or a refusal lasts as long as it lasts."""
        consumer = self._consumer
        at = None if consumer is None else consumer.expected
        if self._feed.unprovable is None and at == self._progress and self._state is not _State.ATTACHING and self._progress_asked:
            self._fail(ConnectionFailure(f"{self._state.value}: nothing was proven within {self._patience_s:g} s", RetryPolicy.FAST))
            return
        self._progress, self._progress_asked = at, True
        self._deadline.set(self._patience_s, self._watch_progress)

    @property
    def _patience_s(self) -> float:
        return self._settings.attempt_s * (1 if len(self._settings.urls) > 1 else 6)

    def _say(self, state: SourceState, reason: str) -> None:
        self._events.reader_state(state, reason)

    def _drop(self) -> None:
        """Let go of every channel."""
        self._deadline.clear()
        self._again.clear()
        self._asking = self._progress_asked = self._probing = False
        self._progress = None
        self._close_scout()
        check, self._check = self._check, None
        if check is not None and check.is_open and not self._connection.dead:
            check.close()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def _fail(self, failure: ConnectionFailure) -> None:
        self.close()
        self._events.reader_failed(failure)


def _nobody() -> None:
    """No reader is there to ask."""
