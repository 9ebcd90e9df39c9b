"""`Producer`: the object that an application uses."""

import os
import threading
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

from towerws_producer import exits
from towerws_producer.buffer import Publication
from towerws_producer.errors import ConfigError, ProducerError
from towerws_producer.folded_log import FoldedLog
from towerws_producer.payload import Payload, encode
from towerws_producer.pika_log import forget_all_quiet
from towerws_producer.settings import Settings, utf8_bytes
from towerws_producer.topics import check_topic
from towerws_producer.worker import Worker

PUBLISH_S = 10.0
FLUSH_S = 10.0
EXIT_S = 10.0
"""How long an ending process waits for all its events, while the broker keeps confirming."""


class Producer:
    """Publishes events to towerws. Safe to share between threads, and to use after a fork.

    Arguments, all by name:
      broker             amqp:// or amqps:// URL, several with commas or as a list; otherwise TOWERWS_BROKER
      exchange           the topic exchange; otherwise TOWERWS_EXCHANGE, otherwise "towerws"
      declare            declare the exchange when connecting (True); without that permission it still publishes
      mandatory          the broker reports events that reach no queue (True); they are counted and logged
      tls_ca             a file with certificates to trust instead of the system's; otherwise TOWERWS_TLS_CA
      buffer_bytes       bytes kept while the broker is slow or away (16 MiB); beyond, the oldest are dropped and counted
      max_payload_bytes  larger payloads are refused (4 MiB, the daemon's own default)
      connect_s          timeout of a TCP connection (1)
      attempt_s          timeout of a whole attempt, with TLS and AMQP (5)
      confirm_s          timeout of a confirm, after which the connection counts as lost (10)
      blocked_s          seconds in a broker's memory or disk alarm before the next broker is tried (30)
      exit_s             seconds without a confirm that an ending process waits (0.8)
      heartbeat_s        AMQP heartbeats (10)

    `ConfigError` names the argument that can't be used. Nothing is connected before the first event.
    """

    def __init__(self, broker: Union[str, Sequence[str], None] = None, **settings: Any) -> None:
        unknown = set(settings) - ARGUMENTS
        if unknown:
            raise ConfigError("unknown setting {!r}: expected one of {}".format(min(unknown)[:80], ", ".join(sorted(ARGUMENTS))))
        self._settings = Settings(broker, **settings)
        self._log = FoldedLog()
        self._workers: Dict[int, Worker] = {}

    @property
    def max_payload_bytes(self) -> int:
        """The setting `max_payload_bytes`: larger payloads are refused."""
        return self._settings.max_payload_bytes

    def emit(self, topic: str, payload: Payload) -> bool:
        """Publish without waiting: buffer the event and return. It never raises and never waits for the broker.

        Returns False if the event was refused at once (a bad topic or payload). Such an event is counted and logged.
        """
        try:
            worker = self._worker()
            try:
                worker.put(check_topic(topic), encode(payload, self._settings.max_payload_bytes))
            except ProducerError as error:
                worker.refuse(str(topic), error)
                return False
        except Exception as error:  # noqa: BLE001 - `emit` promises that it never raises
            self._log.fold("bug", f"dropped an event: {type(error).__name__}")
            return False
        return True

    def publish(self, topic: str, payload: Payload, timeout: float = PUBLISH_S, message_id: Optional[str] = None) -> str:
        """Publish and wait for the broker's confirm. Returns the message id.

        Raises the reason why the event was not confirmed (towerws_producer.errors). `NotConfirmed`, after `timeout` seconds, means that the
        event is still in the buffer and may still arrive. If it is published again with the same `message_id`, the daemon drops the second
        copy.
        """
        answers: List[Optional[ProducerError]] = []
        done = threading.Event()

        def resolve(error: Optional[ProducerError]) -> None:
            answers.append(error)
            done.set()

        publication = self.submit(topic, payload, resolve, message_id)
        if not done.wait(timeout):
            raise self.gave_up(publication)
        if answers[0] is not None:
            raise answers[0]
        return str(publication.message_id)

    def submit(
        self, topic: str, payload: Payload, resolve: Callable[[Optional[ProducerError]], None], message_id: Optional[str] = None
    ) -> Publication:
        """Buffer an event. `resolve` is called from another thread: with None once the event is confirmed, otherwise with the error.

        Raises `ProducerError` for an event that can't be buffered.
        """
        if message_id is not None and not 1 <= utf8_bytes(message_id) <= 255:
            raise ConfigError("message_id: expected text of 1 to 255 bytes")
        publication = Publication(message_id, resolve)
        self._worker().put(check_topic(topic), encode(payload, self._settings.max_payload_bytes), publication)
        return publication

    def gave_up(self, publication: Publication) -> ProducerError:
        """Stop waiting for this event, which is still published. Returns the error that says why it isn't confirmed."""
        return self._worker().give_up(publication)

    def flush(self, timeout: float = FLUSH_S) -> bool:
        """Wait until the events so far are confirmed or dropped. Returns False if that takes longer than `timeout` seconds."""
        worker = self._workers.get(os.getpid())
        return True if worker is None else worker.flush(timeout)

    def flush_at_exit(self) -> None:
        """Flush because the process ends. Gives up after `exit_s` seconds without a confirm, and drops the remaining events."""
        worker = self._workers.get(os.getpid())
        if worker is None:
            return
        if not worker.flush(EXIT_S, self._settings.exit_s):
            worker.drop_rest()

    def close(self, timeout: float = FLUSH_S) -> None:
        """Flush, then end the thread and the connection. Events not confirmed after `timeout` seconds are dropped and counted."""
        worker = self._workers.get(os.getpid())
        if worker is not None:
            if timeout > 0:
                worker.flush(timeout)
            worker.close()
        exits.unregister(self)

    def stats(self) -> Dict[str, Any]:
        """Return this process's figures.

        Counts of events: `emitted`, `sent`, `confirmed`, `resent`, `nacked`, `dropped` (by reason), `buffered` (and `buffered_bytes`).
        `connected` is how often the producer connected. `state` is idle, connecting, ready, blocked or down. `reason` is why it is blocked
        or down.
        """
        return self._worker().stats()

    def __enter__(self) -> "Producer":  # noqa: PYI034 - Python 3.6 has no Self
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _worker(self) -> Worker:
        pid = os.getpid()
        worker = self._workers.get(pid)
        if worker is None:
            # `setdefault` is atomic. Another thread could hold a lock during a fork, so there is none.
            worker = self._workers.setdefault(pid, Worker(self._settings, FoldedLog() if self._workers else self._log))
            for other in list(self._workers):
                if other != pid:  # the parent's worker is not closed, because the parent still uses its connection
                    _parents.append(self._workers.pop(other))
                    forget_all_quiet()
            exits.register(self)
            exits.register_process()
        return worker


ARGUMENTS = {
    "exchange", "declare", "mandatory", "tls_ca", "buffer_bytes", "max_payload_bytes", "connect_s", "attempt_s", "confirm_s",
    "blocked_s", "exit_s", "heartbeat_s",
}  # fmt: skip
"""The arguments of `Producer`, without `broker`."""

_parents: List[Worker] = []
"""Workers of parent processes. This list keeps them, so that no destructor closes their connections."""
