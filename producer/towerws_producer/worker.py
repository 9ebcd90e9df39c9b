"""The thread that publishes, one per producer and process, and what it shares with the callers.

Callers put events into the buffer under a lock and return. The thread owns the connection: it sends, takes confirms, reconnects.
After a fork the child has a worker of its own (towerws_producer.producer), with an empty buffer: what the parent had buffered is
the parent's to send.
"""

import logging
import os
import random
import threading
import time
from collections import Counter
from typing import Any, Dict, List, Optional
from uuid import uuid4

from towerws_producer.address import Address
from towerws_producer.buffer import Buffer, Event, Resolve
from towerws_producer.connection import Connection, Events, Failure, forget_quiet, quiet_pika
from towerws_producer.errors import Blocked, BufferFull, NotConfirmed, ProducerClosed, ProducerError, Unroutable
from towerws_producer.folded_log import FoldedLog, say
from towerws_producer.settings import MIB, Settings

WINDOW_EVENTS = 1000
WINDOW_BYTES = MIB
"""What may be in flight: enough to keep the broker busy over a slow line, and little to send again after a loss."""

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 15.0

CLOSE_S = 2.0
"""How long closing waits for the thread to say goodbye to the broker."""


class Worker(Events):
    """The buffer, the counters and the thread of one process."""

    def __init__(self, settings: Settings, log: FoldedLog) -> None:
        self.pid = os.getpid()
        self._settings = settings
        self._log = log
        # Reentrant: a signal handler or a log handler may emit while this thread is in here.
        self._lock = threading.RLock()
        self._buffer = Buffer(settings.buffer_bytes)
        self._ids = uuid4().hex[:20]
        self._seq = 0
        self._thread: Optional[threading.Thread] = None
        self._connection: Optional[Connection] = None
        self._pause = threading.Event()
        self._awake = False
        self._closing = False
        self._state = "idle"
        self._down: Optional[ProducerError] = None
        self._rounds_failed = 0
        self._suspects = 0
        self._may_declare = settings.declare
        self._flushing: List[Any] = []
        self.counters: Dict[str, int] = {"emitted": 0, "sent": 0, "confirmed": 0, "resent": 0, "connected": 0}
        self.dropped: Counter[str] = Counter()

    # Called from any thread

    def put(self, topic: str, body: bytes, resolve: Optional[Resolve] = None, message_id: Optional[str] = None) -> Event:
        """Buffer an event. It returns at once; the oldest events go when there is no room."""
        with self._lock:
            if self._closing:
                raise ProducerClosed("the producer is closed")
            self._seq += 1
            event = Event(topic, body, self._seq, message_id, int(time.time()), resolve)
            self.counters["emitted"] += 1
            gone = self._buffer.add(event)
            if self._thread is None:
                self._start()
            if not self._awake:
                self._awake = True
                if self._connection is not None:
                    self._connection.wake()
        if gone:
            self._evict(gone)
        return event

    def message_id(self, event: Event) -> str:
        """The event's id: given by its publisher, or made once it is needed."""
        if event.message_id is None:
            event.message_id = f"{self._ids}-{event.seq:x}"
        return event.message_id

    def withdraw(self, event: Event) -> None:
        """Stop telling anybody about this event; it is still published."""
        with self._lock:
            event.resolve = None

    def why_not(self) -> ProducerError:
        """Why an event was not confirmed in the time its publisher gave it."""
        with self._lock:
            if self._down is not None:
                return self._down
            if self._state == "ready":
                return NotConfirmed("the broker has not confirmed the event in time")
            return NotConfirmed(f"no connection to {self._settings.addresses[0]} yet")

    def flush(self, timeout: float, give_up_s: Optional[float] = None) -> bool:
        """Wait until what was buffered before this call is confirmed or dropped. False after `timeout` seconds.

        With `give_up_s`, it also ends when nothing was confirmed for so long.
        """
        done = threading.Event()
        with self._lock:
            last = self._seq
            if not self._holds(last):
                return True
            self._flushing.append((last, done))
        deadline = time.monotonic() + timeout
        moved, progress = time.monotonic(), -1
        try:
            while not done.is_set():
                now = time.monotonic()
                if self.counters["confirmed"] != progress:
                    moved, progress = now, self.counters["confirmed"]
                left = deadline - now
                if give_up_s is not None:
                    left = min(left, moved + give_up_s - now)
                    if self._rounds_failed:  # nobody there: waiting longer at exit is no use
                        return False
                    left = min(left, 0.05) if left > 0 else left
                if left <= 0:
                    return False
                done.wait(left)
        finally:
            with self._lock:
                self._flushing = [entry for entry in self._flushing if entry[1] is not done]
        return True

    def close(self) -> None:
        """End the thread and the connection. What is still buffered is dropped and counted."""
        with self._lock:
            self._closing = True
            thread, connection = self._thread, self._connection
            self._pause.set()
            if connection is not None:
                connection.stop()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_S)
        self.drop_rest()

    def drop_rest(self) -> None:
        """Give up what is buffered."""
        with self._lock:
            gone = self._buffer.clear()
        for event in gone:
            self._lose(event, ProducerClosed("the producer ended before the event was confirmed"))

    def stats(self) -> Dict[str, Any]:
        """The figures."""
        with self._lock:
            return {
                **self.counters,
                "dropped": dict(self.dropped),
                "buffered": len(self._buffer),
                "buffered_bytes": self._buffer.bytes,
                "state": self._state,
                "reason": None if self._down is None else str(self._down),
            }

    # Events: called from the thread

    def take(self, most: int) -> List[Event]:
        """Up to `most` events, as far as the window allows."""
        with self._lock:
            window = 1 if self._suspects else WINDOW_EVENTS
            events = self._buffer.take(most, window, WINDOW_BYTES)
            # What waits now waits for a confirm or for the next turn, both of which take again. Otherwise the next event wakes us.
            self._awake = self._buffer.waiting > 0
            for event in events:
                self.message_id(event)
            self.counters["sent"] += len(events)
            self.counters["resent"] += sum(event.sends > 0 for event in events)
        return events

    def confirmed(self, events: List[Event]) -> None:
        """Let go of them, and tell who waits."""
        told = []
        with self._lock:
            for event in events:
                if self._buffer.done(event):
                    self.counters["confirmed"] += 1
                    if event.resolve is not None:
                        told.append(event.resolve)
            self._rounds_failed = 0
            self._suspects = max(0, self._suspects - len(events))
        for resolve in told:
            resolve(None)
        self._flushed()

    def failed(self, event: Event, error: ProducerError) -> None:
        """Drop it, and tell who waits."""
        with self._lock:
            ours = self._buffer.done(event)
            self._suspects = max(0, self._suspects - 1)
            if isinstance(error, Unroutable):
                self._rounds_failed = 0
        if ours:
            self._lose(event, error)
        self._flushed()

    def ready(self) -> None:
        """Say so once after an outage."""
        with self._lock:
            was_down, self._down = self._down, None
            self.counters["connected"] += 1
            self._state = "ready"
        if was_down is not None:
            dropped = sum(self.dropped.values())
            say(logging.INFO, f"publishing to the broker again; {dropped} events were dropped since the start")

    def blocked(self, reason: Optional[str]) -> None:
        """Say so; the connection stays."""
        with self._lock:
            self._state = "ready" if reason is None else "blocked"
            self._down = None if reason is None else Blocked(f"the broker takes no messages: {reason}")
        if reason is not None:
            self._log.fold("blocked", f"{self._down}; events are kept, up to {self._settings.buffer_bytes} bytes")

    # The thread

    def _start(self) -> None:
        """Start the thread. An ending interpreter starts none any more: the event then stays buffered, and is counted at the exit."""
        thread = threading.Thread(target=self._run, name="towerws-producer", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return
        self._thread = thread

    def _run(self) -> None:
        quiet_pika()
        addresses = list(self._settings.addresses)
        try:
            while not self._is_closing():
                for address in addresses:
                    failure = self._one_connection(address)
                    if self._is_closing():
                        return
                    self._note(failure)
                    if failure.may_not_declare or failure.suspect:
                        break
                self._wait(failure)
        except Exception as error:
            say(logging.ERROR, f"the publishing thread failed with {type(error).__name__}: the next event starts another")
            logging.getLogger("towerws_producer").debug("traceback", exc_info=True)  # for a developer; it holds no payload
        finally:
            forget_quiet()
            with self._lock:
                self._connection, self._thread, self._awake, self._state = None, None, False, "idle"
                self._buffer.recall()

    def _is_closing(self) -> bool:
        with self._lock:
            return self._closing

    def _one_connection(self, address: Address) -> Failure:
        connection = Connection(address, self._settings, self, self._may_declare)
        with self._lock:
            self._connection, self._state, self._awake = connection, "connecting", True
            if self._closing:
                connection.stop()
        try:
            return connection.run()
        finally:
            with self._lock:
                self._connection, self._state = None, "down"
                connection.close_loop()

    def _note(self, failure: Failure) -> None:
        """Have what was in flight wait again; tell those who wait for a publication that can't succeed."""
        error = failure.error
        culprit = None
        told: List[Event] = []
        with self._lock:
            self._down = error
            recalled = self._buffer.recall()
            if failure.may_not_declare:
                self._may_declare, self._down = False, None
                return
            if failure.suspect:
                # One of these made the broker close the channel. Alone in flight, it is known.
                if len(recalled) == 1:
                    culprit = recalled[0]
                self._suspects = len(recalled)
            elif not failure.retryable:
                told = self._buffer.with_resolve()
                self._buffer.remove_waiting(told)
        if culprit is not None:
            with self._lock:
                self._buffer.remove_waiting([culprit])
                self._suspects = 0
            self._lose(culprit, error)
        for event in told:
            self._lose(event, error)
        self._log.fold("down " + error.reason, f"{error}; events are kept, up to {self._settings.buffer_bytes} bytes")
        self._flushed()

    def _wait(self, failure: Failure) -> None:
        """Back off, with jitter under a bound that doubles until something is confirmed."""
        if failure.may_not_declare or (failure.suspect and self._suspects):
            return
        with self._lock:
            self._rounds_failed += 1
            bound = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** min(self._rounds_failed, 10))
        self._pause.wait(random.uniform(bound / 2, bound))  # noqa: S311 - only spreads the attempts

    def _lose(self, event: Event, error: ProducerError) -> None:
        with self._lock:
            self.dropped[error.reason] += 1
            resolve, event.resolve = event.resolve, None
        if resolve is not None:
            resolve(error)
        else:
            self.dropped_one(event.topic, error)

    def _evict(self, events: List[Event]) -> None:
        error = BufferFull(f"the buffer of {self._settings.buffer_bytes} bytes is full")
        nobody = [event for event in events if event.resolve is None]
        with self._lock:
            self.dropped[error.reason] += len(nobody)
        if nobody:
            self.dropped_one(nobody[0].topic, error)
        for event in events:
            if event.resolve is not None:
                self._lose(event, error)

    def dropped_one(self, topic: str, error: ProducerError) -> None:
        """Log a dropped event, folded. Never its payload."""
        self._log.fold("dropped " + error.reason, f"dropped an event on {topic[:200]!r}: {error}")

    def count_refusal(self, error: ProducerError) -> None:
        """Count an event that never reached the buffer."""
        with self._lock:
            self.dropped[error.reason] += 1

    def _holds(self, seq: int) -> bool:
        oldest = self._buffer.oldest
        return oldest is not None and oldest.seq <= seq

    def _flushed(self) -> None:
        if self._flushing:
            with self._lock:
                for last, done in self._flushing:
                    if not self._holds(last):
                        done.set()
