"""Reads a stream on one open connection: where to begin, whether it is the same log, when history is complete, what was lost.

The reader decides only by what it read. After a timeout it tries again, or gives the connection up. Silence proves nothing to it. The
facts about RabbitMQ's streams are from experiments with 3.10 and 4.0 (docs/reliability.md).

"Main" is the consumer that feeds history. A "scout" is a second consumer that only looks.

  state      | what the reader does                             | what ends the state                           | next state
  checking   | asks whether the stream exists                   | it exists; 404 "no queue"                     | attaching
  attaching  | main begins at the anchor: our newest marker,    | consume-ok                                    | proving, refilling,
             | else the newest delivery. If nothing was read:   |                                               | live
             | at an interval of the broker's clock             |                                               |
  proving    | main reads the anchor again; a scout is at       | main reads the newest delivery again          | refilling, live
             | `next`; a marker goes straight to the stream     | an offset that was read has other content, or | comparing
             |                                                  | our new marker has an offset that was read    |
             |                                                  | main begins after the newest offset read      | jumped
  comparing  | main begins at the oldest delivery of history    | main reads the newest delivery again          | refilling, live
             |                                                  | a delivery differs: a gap                     | attaching
  jumped     | offsets were left out: a scout is at `first`     | the first offset there is known: a gap or none | attaching
  refilling  | main reads into history                          | our marker, published after consume-ok, comes | live
             |                                                  | markers show that it began too late           | attaching
  live       | main's deliveries go to the clients              | offsets were left out                         | jumped

If markers are refused or an alarm blocks them, the first message that a scout at `next` gets takes the marker's place.
If the broker ended the connection with 541 where main begins, a scout at `next` comes first: `_look_for_evidence`.
`log_checks` judges what was read. What outlives the connection is in `reader.ReadProgress`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from pika.channel import Channel
from twisted.internet import interfaces
from twisted.logger import Logger

from towerws.broker.binding_watch import BindingWatch
from towerws.broker.connection import BrokerConnection
from towerws.broker.consumer import Consumer, Scout
from towerws.broker.failures import ConnectionFailure, RetryPolicy
from towerws.broker.log_checks import CLOCK_MARGIN_S, ClockCheck, ClockVerdict, LogComparison, SameLog
from towerws.broker.markers import MARKER_RETRY_S, MarkerPublisher, PositionMarkers, Proof, ProofMarkers
from towerws.broker.reader import ChannelRestarts, ReaderEvents, ReadProgress
from towerws.broker.topology import Mode, declare_stream, on_side_channel, set_prefetch, stream_exists
from towerws.core.deliveries import Marker, parse_marker
from towerws.core.errors import BrokerError, NotRouted, PublishersBlocked, PublishRefused
from towerws.core.settings import BrokerSettings
from towerws.core.sources import SourceState
from towerws.outgoing import Deadline

CLOCK_ANSWER_S: Final = 0.5
"""A node whose clock is right answers at once. After this time we publish another marker, so that any other node can answer, too."""

DELETION_S: Final = 0.25
"""RabbitMQ cancels the consumers of a stream before the stream is gone. What is declared, bound or consumed then meets a stream that is
being deleted: 404 or 541 in 4 of 300 deletions (3.10.8). So the next channel is opened after this pause."""


class _State(enum.Enum):
    CHECKING = "checking"
    ATTACHING = "attaching"
    PROVING = "proving"
    COMPARING = "comparing"
    JUMPED = "jumped"
    REFILLING = "refilling"
    LIVE = "live"


class StreamReader:
    """Reads the stream of `settings` on `connection` into the sink of `progress`, and tells `events` how far it got."""

    _log = Logger()

    def __init__(
        self,
        connection: BrokerConnection,
        settings: BrokerSettings,
        progress: ReadProgress,
        markers: MarkerPublisher,
        watch: BindingWatch,
        reactor: interfaces.IReactorTime,
        events: ReaderEvents,
    ) -> None:
        self.marker_key = settings.stream
        self.shares_log = True
        self._connection = connection
        self._settings = settings
        self._progress = progress
        self._sink = progress.sink
        self._markers = markers
        self._proofs = ProofMarkers(markers, settings.stream, progress.sink, reactor, self._marker_answered)
        self._positions = PositionMarkers(markers, settings.stream, progress.sink, reactor)
        self._watch = watch
        self._reactor = reactor
        self._events = events
        self._closed = False
        self._state = _State.CHECKING
        self._check: object = None  # identifies the question whether the stream exists
        self._main_start: object = None  # main's `x-stream-offset`
        self._consumer: Consumer | None = None
        self._scout: Scout | None = None
        self._rebinding: Channel | None = None
        """The channel of the last `rebind`."""
        self._deadline = Deadline(reactor)
        self._restarts = ChannelRestarts(reactor)
        self._comparison = LogComparison(progress)
        self._clock_check = ClockCheck()
        self._new_from: int | None = None
        """Without markers: the offset at which the scout found the first new message."""
        self._last_expected: int | None = None
        """The offset that main expected at the last check of its progress."""
        self._progress_checked = False
        """Whether `_last_expected` is from such a check."""

    # the session calls these

    def begin(self) -> None:
        """Set everything up. `reader_live` or `reader_failed` follows, unless the connection ends or `close` is called."""
        self._pause()
        self._sink.on_position_asked = self._prove_position
        if not self._sink.history_complete:
            self._positions.send_early()
        self._comparison.shared = self._new_from = self._proofs.newest = None
        self._clock_check.reset()
        self._check = check = object()  # an answer to an earlier check changes nothing
        stream_exists(self._connection, self._settings.stream, lambda exists: self._checked(check, exists=exists))
        self._deadline.set(self._settings.attempt_s, self._unanswered)

    def end_read(self) -> None:
        """One read from the socket was handled."""
        consumer = self._consumer
        if consumer is None:
            return
        consumer.end_read()
        if self._state is _State.REFILLING:
            self._check_refill()
        elif self._sink.waiting:
            self._prove_position()

    def close(self) -> None:
        """Acknowledge what was read, and close the channels. Nothing reaches the sink after that."""
        if not self._closed:
            self._closed = True
            self._sink.proven(False)
            self._sink.on_position_asked = _no_reader
            self._watch.stop()
            self._positions.close()
            self._proofs.close()
            self._close_channels()

    def connection_failed(self, failure: ConnectionFailure) -> None:
        """The connection ended. If that was with 541, note the place: an entry there may be one that AMQP 0-9-1 can't represent."""
        progress, consumer = self._progress, self._consumer
        if failure.code != 541 or consumer is None or self._state is _State.ATTACHING:
            return
        read = progress.read if consumer.expected is None else consumer.expected - 1
        if progress.unreadable.connection_ended(read):
            self._pass_over()

    # checking: does the stream exist?

    def _checked(self, check: object, *, exists: bool) -> None:
        if check is not self._check or self._closed:
            return
        self._check, missing = None, not exists
        progress, sink, unreadable = self._progress, self._sink, self._progress.unreadable
        unreadable.goes_on_after(progress.read)
        if progress.last_mode is Mode.QUEUE or (missing and progress.read is not None):
            # The stream is not the log that history holds: it was deleted, or a queue was read before.
            if progress.last_mode is not Mode.QUEUE:
                self._log.warn(
                    "stream {stream} was deleted: the log begins again, and clients are told of a gap", stream=self._settings.stream
                )
            sink.rewind(None)
            progress.read = progress.anchor = None
            progress.lost()
            progress.reach.reset(0)
            self._attach("first", bind=missing)
            return
        if progress.read is None:
            # Without markers nothing shows what is new. If the stream was empty the last time, all that it holds now is new to the clients.
            began = progress.last_mode is None or progress.marker_problem is None
            progress.by_interval = not missing and not unreadable.skip and began
            progress.reach.reset(None if progress.by_interval else 0)
        if unreadable.suspected and unreadable.evidence is None:
            self._look_for_evidence()
        else:
            self._attach_again(bind=missing)

    def _attach_again(self, *, bind: bool = False) -> None:
        """Attach where the reader was, or where the refill begins."""
        self._attach(self._progress.start(self._settings.refill_s), bind=bind)

    def _unanswered(self) -> None:
        self._fail(ConnectionFailure(f"{self._state.value}: no answer from the stream within {self._settings.attempt_s:g} s"))

    # attaching

    def _attach(self, start: object, *, bind: bool) -> None:
        """Open main at `start`. `bind`: bind the stream to the exchange as well."""
        self._state = _State.ATTACHING
        self._main_start = start
        self._proofs.consumer_accepted()
        bind = bind or self._progress.markers_refused

        def declare(channel: Channel) -> str:
            stream = declare_stream(channel, self._settings, bind=bind)
            set_prefetch(channel, self._settings)
            return stream

        self._consumer = Consumer(self._connection, Mode.STREAM, declare, start, self._settings, self._progress, self._reactor, self)
        self._deadline.set(self._settings.attempt_s, self._unanswered)

    def consumer_ok(self) -> None:
        """The broker accepted main: prove that it is the same log, compare, or refill."""
        progress, start = self._progress, self._main_start
        was_empty = progress.last_mode is Mode.STREAM and progress.read is None and start == "first" and not progress.hole
        progress.last_mode = Mode.STREAM
        self._proofs.consumer_accepted()
        if self._state is _State.COMPARING:
            self._watch_progress()
            self._proofs.send()
            return
        skip = progress.unreadable.skip
        if progress.read is None or skip or (progress.hole and isinstance(start, int) and start > progress.read):
            if skip and progress.read is not None:
                progress.lost()
            self._accept()
            # Without markers nothing shows what is new. The stream was empty, so all that it holds now is new.
            if was_empty and progress.marker_problem is not None:
                self._sink.caught_up(replay=True)
                self._go_live()
        else:
            self._state = _State.PROVING
            self._report(SourceState.PROVING, "position not proven: no delivery yet")
            # The marker is published when the broker has accepted the scout. A scout that begins after the marker may never read anything.
            self._open_scout("next", self._judge_end_of_log, ready=self._proofs.send)
        if self._state is not _State.LIVE:
            self._watch_progress()

    def _accept(self) -> None:
        """It is the same log: main's next deliveries are new. They go into history, and to the clients if history is complete."""
        progress = self._progress
        self._close_scout()
        if self._consumer is not None and progress.read is not None and not progress.hole:
            self._consumer.expected = progress.read + 1
        self._sink.proven(True)
        if self._sink.history_complete:
            self._go_live()
        else:
            self._state = _State.REFILLING
            self._report(SourceState.REFILLING, "history is being refilled")
            if self._proofs.none_sent:
                self._proofs.send()

    # ConsumerEvents

    def consumer_unexpected(self, consumer: Consumer, tag: int, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """Main read a message that is not simply the next one."""
        if consumer is not self._consumer:
            return
        if self._state is _State.PROVING:
            self._prove(consumer, tag, routing_key, body, offset, message_id)
        elif self._state is _State.COMPARING:
            consumer.skip(tag)
            self._compare(routing_key, body, offset)
        else:
            self._handle_next_offset(consumer, tag, routing_key, body, offset, message_id)

    def consumer_marker(self, marker: Marker, routing_key: str, body: bytes, offset: int) -> None:
        """Main read a marker, ours or another daemon's."""
        if self._proofs.arrived(marker, offset):
            self._progress.anchor = offset, body
            self._positions.marker_arrived()
            if self._proofs.is_proof(body):
                self._progress.marker_published()
        self._watch.marker_arrived(marker, routing_key, offset)
        if self._state is _State.REFILLING:
            self._progress.reach.marker(marker, self._markers.machine, self._markers.uptime())
            self._check_refill()

    def consumer_failed(self, failure: ConnectionFailure) -> None:
        """The broker closed main's channel: open a new one, or give the connection up."""
        self._consumer = None
        final = self._restarts.refuse(failure)
        if final is not None:
            self._fail(final)
            return
        self._events.reader_restarted(failure)
        self._pause()
        self._deadline.set(DELETION_S, self.begin)

    # proving: is it the same log?

    def _prove(self, consumer: Consumer, tag: int, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        assert self._progress.read is not None
        if offset > self._progress.read:
            self._accept()
            self._handle_next_offset(consumer, tag, routing_key, body, offset, message_id)
            return
        consumer.skip(tag)
        same = self._comparison.judge_from_anchor(routing_key, body, offset)
        if same is SameLog.NO:
            self._start_comparing(None)
        elif same is SameLog.YES:
            self._accept()

    def _judge_end_of_log(self, offset: int, routing_key: str, body: bytes) -> None:
        """Judge a message that the scout at `next` got, in case main gets none.

        At an offset that was read before, our new marker or other content shows that the log was changed.
        """
        read = self._progress.read
        if self._state is not _State.PROVING or read is None or offset > read:
            return
        if self._proofs.is_proof(body):
            self._start_comparing(offset)
        elif self._comparison.differs(routing_key, body, offset):
            self._start_comparing(None)

    # comparing: what does the log share with history?

    def _start_comparing(self, marker_offset: int | None) -> None:
        """Read the log again from history's oldest delivery on.

        `marker_offset` is the offset of our new marker, if it was read. If the oldest delivery is newer, nothing of the log is left.
        """
        oldest = self._sink.oldest
        self._close_channels()
        self._comparison.shared = None
        if oldest is None or (marker_offset is not None and marker_offset < oldest):
            self._diverged()
            return
        self._attach(oldest, bind=False)
        self._state = _State.COMPARING
        self._report(SourceState.PROVING, "the log was changed: looking for the part that is still the same")

    def _compare(self, routing_key: str, body: bytes, offset: int) -> None:
        same = self._comparison.judge_from_oldest(routing_key, body, offset, is_proof=self._proofs.is_proof)
        if same is SameLog.YES:
            self._accept()
        elif same is SameLog.NO:
            self._diverged()

    def _diverged(self) -> None:
        """It is another log, or the log was cut off and continued. Go on after the part that is the same, and tell clients of a gap."""
        progress, shared = self._progress, self._comparison.shared
        self._log.warn(
            "stream {stream} is not the one that was read up to offset {read}: {shared}; clients are told of a gap",
            stream=self._settings.stream,
            read=progress.read,
            shared="nothing of it is left" if shared is None else f"it is the same up to {shared}, and has other content from there",
        )
        self._close_channels()
        self._sink.rewind(shared)
        progress.read = shared
        if progress.anchor is not None and (shared is None or progress.anchor[0] > shared):
            progress.anchor = None
        progress.lost()
        self._attach("first" if shared is None else shared + 1, bind=False)

    # offsets that main does not expect

    def _handle_next_offset(self, consumer: Consumer, tag: int, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """Skip a message that was read before, deliver the next one, or find that offsets were left out."""
        progress = self._progress
        read = progress.read if consumer.expected is None else consumer.expected - 1
        if read is not None and offset <= read:
            consumer.skip(tag)
        elif read is None or progress.hole or offset <= read + 2:
            # A step of two leaves out the internal entry that opens a segment.
            if progress.hole_open and routing_key == self.marker_key and parse_marker(body) is not None:
                # A marker that needs no binding may come before the end of the hole.
                consumer.deliver(tag, routing_key, body, offset, message_id)
                progress.read, consumer.expected = offset, None
                return
            if progress.hole:
                unbound = progress.hole_open
                progress.hole = progress.hole_open = False
                self._sink.hole(routing_key, body, offset, message_id, "broker", marker_follows=unbound)
            progress.unreadable.skip = 0
            if read is None:
                progress.reach.begins(offset)
            consumer.deliver(tag, routing_key, body, offset, message_id)
        else:
            self._jump(read, offset)

    def _jump(self, read: int, offset: int) -> None:
        """Offsets were left out. How many says nothing. Whether events were lost depends on where the stream begins now.

        The same connection is asked, because another node might hold another part of the stream.
        """
        self._watch.stop()  # `_go_live` starts it again: before that, clients can't be told of a gap
        self._close_channels()
        self._progress.read = read
        self._state = _State.JUMPED
        self._report(SourceState.PROVING, f"offsets {read + 1} to {offset - 1} were left out: checking whether anything is lost")

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
                self._progress.lost()
            else:
                self._progress.read = offset - 1
            self._attach(offset, bind=False)

        self._open_scout("first", saw)
        self._deadline.set(self._settings.attempt_s * 3, self._unanswered)

    # refilling: is history complete?

    def _check_refill(self) -> None:
        """History is complete once our marker was read, and the refill is known to have begun early enough."""
        consumer, proof = self._consumer, self._proofs.newest
        if consumer is None:
            return
        if proof is None:
            if self._new_from is not None and consumer.expected is not None and consumer.expected > self._new_from:
                self._sink.caught_up()
                self._go_live()
            return
        if self._progress.by_interval:
            if not self._clock_check.running:
                self._check_clock(proof)
            return
        start = self._progress.reach.earlier_start(self._settings.refill_s, self._sink.oldest, proof.offset)
        if start is not None:
            self._refill_earlier(start)
            return
        self._sink.caught_up()
        self._go_live()

    def _check_clock(self, proof: Proof) -> None:
        """Ask the node for the last ten seconds (`ClockCheck`). Another marker makes sure that it has something to deliver."""
        check = self._clock_check

        def ready() -> None:
            check.asked(self._reactor.seconds())
            self._proofs.send_after(CLOCK_ANSWER_S)

        def saw(offset: int, _routing_key: str, _body: bytes) -> None:
            if not check.running:
                return
            clock = check.judge(offset)
            self._progress_checked = False
            self._proofs.clear()
            self._close_scout()
            self._watch_progress()
            if clock is ClockVerdict.RIGHT:
                self._progress.by_interval = False
                self._check_refill()
            elif clock is ClockVerdict.NOT_PROVEN:
                self._refill_from_first()
            else:
                self._proofs.newest = None
                self._proofs.send()

        check.begin(proof.offset, proof.sent_at)
        self._open_scout(f"{CLOCK_MARGIN_S}s", saw, ready=ready)
        self._deadline.set(self._settings.attempt_s * 3, self._unanswered)

    def _refill_from_first(self) -> None:
        """The node's clock is not proven: read everything. That is right with any clock."""
        self._log.warn(
            "the clock of {broker} seems to be ahead of the stream's leader: history is refilled from the stream's beginning;"
            " synchronize the clocks of the broker's nodes",
            broker=str(self._connection.url),
        )
        self._refill_from("first", 0)

    def _refill_earlier(self, start: int) -> None:
        """The broker's clock was set forward, so the interval left out events that history should hold: begin at an earlier offset."""
        self._log.info(
            "the refill of the last {seconds} s began too late, because the broker's clock was set forward: the stream is read again from"
            " offset {start} on",
            seconds=self._progress.refill_interval_s(self._settings.refill_s),
            start=start,
        )
        self._refill_from(start, start)

    def _refill_from(self, start: int | str, offset: int) -> None:
        progress = self._progress
        self._close_channels()
        self._sink.restart()
        progress.read = progress.anchor = None
        progress.by_interval = False
        progress.reach.reset(offset)
        self._proofs.newest = None
        self._attach(start, bind=False)

    def _go_live(self) -> None:
        self._state = _State.LIVE
        self._restarts.was_live = True
        self._deadline.clear()
        self._proofs.clear()
        self._close_scout()
        self._events.reader_live()
        self._watch.start(self)
        if self._sink.waiting:
            self._prove_position()

    # markers

    def _marker_answered(self, text: str, error: BrokerError | None) -> None:
        if self._closed or self._state is _State.LIVE:
            return
        if error is None:
            self._progress.marker_published()
            self._sink.marker_confirmed(text)
            return
        no_exchange = isinstance(error, PublishRefused) and error.code == 404
        if isinstance(error, NotRouted) or no_exchange:
            self._not_routed(error)
            return
        if isinstance(error, (PublishRefused, PublishersBlocked)):
            if self._progress.marker_problem is None:
                self._log.warn(
                    "no marker can be published: {reason}; until that is cured it is not proven that all events arrive", reason=str(error)
                )
            self._progress.marker_problem, self._progress.markers_refused = str(error), isinstance(error, PublishRefused)
            if self._state is _State.REFILLING and self._scout is None:
                self._open_scout("next", self._scout_found_new)
        self._send_again(f"markers can't be published: {error}")

    def _not_routed(self, error: BrokerError) -> None:
        """No queue took the marker. The stream was deleted, or its binding is missing and markers go through the exchange.

        Binding now would hide that the binding was missing. So the watch is told first, and the next marker tells of the hole.
        """
        if self._state in {_State.PROVING, _State.COMPARING, _State.REFILLING}:
            if self._markers.direct_refused:
                self._watch.missing(str(error))
            self._send_again(f"the marker was not routed: {error}")
            self.rebind(lambda _: None)

    def _send_again(self, why: str) -> None:
        """Publish another marker soon. `why` says what became of the last one."""
        state = SourceState.REFILLING if self._state is _State.REFILLING else SourceState.PROVING
        self._report(state, f"position not proven: no delivery yet; {why}")
        self._proofs.send_after(MARKER_RETRY_S)

    def _scout_found_new(self, offset: int, _routing_key: str, _body: bytes) -> None:
        if self._new_from is None and self._state is _State.REFILLING:
            self._new_from = offset
            self._check_refill()

    def _prove_position(self) -> None:
        """A client waits for a position: find out how far the log reaches."""
        if self._state is _State.LIVE:
            self._positions.ask()

    # Watched

    def rebind(self, done: Callable[[ConnectionFailure | None], None]) -> None:
        """Declare and bind again, on a channel of its own. `done` gets None, or why the broker refused."""
        self._rebinding = on_side_channel(
            self._connection,
            lambda channel, agreed: declare_stream(channel, self._settings, bind=True, callback=agreed),
            done,
            self._rebinding,
        )

    @property
    def deliveries(self) -> int:
        """How many messages were read so far."""
        return self._progress.deliveries

    @property
    def reading_since(self) -> float | None:
        """Since when the connection reads without a pause. None: it pauses."""
        return self._connection.reading_since

    def attach_again(self, reason: str) -> None:
        """Consume again, on this connection: from the anchor on, as after a lost connection."""
        if self._state is _State.LIVE:
            self._log.warn("{reason}: consuming again", reason=reason)
            self._report(SourceState.PROVING, "nothing came: consuming again")
            self.begin()

    def marker_sent(self, text: str) -> None:
        """A marker is being published: the sink notes which clients wait for it."""
        self._sink.marker_sent(text)

    def gap_before_next(self) -> None:
        """Tell clients of a gap before the next message. They then fetch their state again, and it includes the lost events."""
        consumer = self._consumer
        if self._state is _State.LIVE and consumer is not None and consumer.expected is not None:
            self._progress.read = consumer.expected - 1
            self._progress.hole = self._progress.hole_open = True
            consumer.expected = None

    def binding_restored(self) -> None:
        """Nothing to do: the marker itself tells every daemon of the hole."""

    def no_markers(self, reason: str) -> None:
        """Give this connection up. Another one may get markers, to another host if there is one."""
        self._fail(ConnectionFailure(reason, RetryPolicy.FAST))

    # an entry that can't be read

    def _look_for_evidence(self) -> None:
        """The broker ended the connection (541) where main has to begin: check whether it serves the end of this stream.

        Our marker shows that. Without markers a new message does, and if none comes, main tries this place again.
        """
        progress = self._progress
        self._report(SourceState.PROVING, "the broker ends the connection at this place in the stream: checking whether it serves the rest")
        self._state = _State.PROVING
        self._proofs.consumer_accepted()

        def saw(offset: int, _routing_key: str, body: bytes) -> None:
            # A replica that catches up delivers old messages at its end.
            new = progress.marker_problem is not None and (progress.read is None or offset > progress.read)
            if new or self._proofs.is_proof(body):
                # The broker serves the end. If it ends the connection again, the reason is an entry at the place where main begins.
                progress.unreadable.evidence = offset
                attach()

        def late() -> None:
            if progress.marker_problem is None:
                self._unanswered()
            else:
                attach()  # nothing was read, so nothing is passed over if the broker ends the connection again

        def attach() -> None:
            self._close_scout()
            self._attach_again()

        self._open_scout("next", saw, ready=self._proofs.send)
        self._deadline.set(self._settings.attempt_s, late)

    def _pass_over(self) -> None:
        progress, unreadable = self._progress, self._progress.unreadable
        if progress.read is None:
            if not progress.refill_interval_s(self._settings.refill_s):
                unreadable.evidence = None  # there is a newer entry after that offset: look at the stream's end again
                return
            self._log.warn(
                "stream {stream}: an entry of the last {seconds} s can't be read over AMQP 0-9-1; history begins after it",
                stream=self._settings.stream,
                seconds=progress.refill_interval_s(self._settings.refill_s),
            )
            unreadable.pass_over(nothing_read=True)
            return
        unreadable.pass_over(nothing_read=False)
        self._log.warn(
            "stream {stream}: an entry after offset {read} can't be read over AMQP 0-9-1; {skip} offsets are passed over, and clients are"
            " told of a gap",
            stream=self._settings.stream,
            read=progress.read,
            skip=unreadable.skip,
        )

    # our own

    def _pause(self) -> None:
        """Read nothing until `begin`."""
        self._sink.proven(False)
        self._watch.stop()
        self._close_channels()
        self._state = _State.CHECKING

    def _open_scout(self, start: object, saw: Callable[[int, str, bytes], None], ready: Callable[[], None] = lambda: None) -> None:
        self._close_scout()
        self._scout = Scout(
            self._connection,
            self._settings.stream,
            start,
            max_body_bytes=self._sink.max_payload_bytes,
            ready=ready,
            saw=saw,
            failed=self._scout_failed,
        )

    def _scout_failed(self, failure: ConnectionFailure) -> None:
        self._scout = None
        if self._state is not _State.LIVE:
            self._fail(failure)

    def _close_scout(self) -> None:
        scout, self._scout = self._scout, None
        if scout is not None:
            scout.close()

    def _watch_progress(self) -> None:
        """Give the connection up if nothing is proven and nothing is read within `_patience_s`.

        An alarm or a refusal of markers is waited out: another host would not help.
        """
        consumer = self._consumer
        expected = None if consumer is None else consumer.expected
        stuck = self._progress_checked and expected == self._last_expected
        if stuck and self._progress.marker_problem is None and self._state is not _State.ATTACHING:
            self._fail(ConnectionFailure(f"{self._state.value}: nothing was proven within {self._patience_s:g} s", RetryPolicy.FAST))
            return
        self._last_expected, self._progress_checked = expected, True
        self._deadline.set(self._patience_s, self._watch_progress)

    @property
    def _patience_s(self) -> float:
        """Longer with a single host, since there is no other to try."""
        return self._settings.attempt_s * (1 if len(self._settings.urls) > 1 else 6)

    def _report(self, state: SourceState, reason: str) -> None:
        self._events.reader_state(state, reason)

    def _close_channels(self) -> None:
        """Close every channel, and end every wait."""
        self._deadline.clear()
        self._proofs.clear()
        self._positions.clear()
        self._clock_check.running = self._progress_checked = False
        self._last_expected = None
        self._close_scout()
        self._check = None
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def _fail(self, failure: ConnectionFailure) -> None:
        self.close()
        self._events.reader_failed(failure)


def _no_reader() -> None:
    """No reader can prove a position."""
