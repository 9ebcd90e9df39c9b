"""One connection to one broker, from the attempt to its end.

A connection runs on the producer's thread, on pika's own event loop. pika's blocking connection would wait for each confirm before it
sends the next message. The other threads call `wake` and `stop` only.

state      | opened              | wake, confirm, return | blocked           | no answer in time  | closed, refused
connecting | -> ready, publish   | -                     | -                 | end (attempt_s)    | end
ready      | -                   | publish               | -> blocked        | end (confirm_s)    | end
blocked    | -                   | -                     | -                 | end (blocked_s)    | end
"""

import codecs
import time
from contextlib import suppress
from typing import Any, Optional

from pika import exceptions as pika_exceptions
from pika.adapters.select_connection import IOLoop, SelectConnection

from towerws_producer.address import Address
from towerws_producer.errors import Blocked, Unreachable
from towerws_producer.failures import Failure, judge
from towerws_producer.pika_io import Services, parameters
from towerws_producer.pika_log import quiet_pika
from towerws_producer.publishing import Events, Publishing
from towerws_producer.settings import Settings

codecs.lookup("idna")
# `getaddrinfo` imports this codec at its first call, on the producer's thread. If the process forked during that import, the child had a
# half-imported module, and could never connect. So import the codec here.

TICK_S = 0.5
"""Interval between two checks of the deadlines."""

CLOSE_S = 1.0
"""How long an orderly close may take. Then the socket is dropped."""


class Connection:
    """One connection. `run` connects, and returns once the connection has ended. `again`: an earlier connection was lost or failed.

    The constructor raises `OSError` if the process has no free descriptor.
    """

    def __init__(self, address: Address, settings: Settings, events: Events, declare: bool, again: bool = False) -> None:
        self._address = address
        self._settings = settings
        self._events = events
        self._declare = declare
        self._loop = IOLoop()
        self._services = Services(self._loop)
        self._publishing = Publishing(settings, events, self._loop, again)
        self._connection: Any = None
        self._channel: Any = None
        self._open = False
        self._ready = False
        self._blocked_since: Optional[float] = None
        self._started = time.monotonic()
        self._failure: Optional[Failure] = None

    def run(self) -> Failure:
        """Connect, publish, and return why the connection ended."""
        quiet_pika()
        try:
            self._connection = SelectConnection(
                parameters(self._address, self._settings),
                on_open_callback=self._opened,
                on_open_error_callback=self._not_opened,
                on_close_callback=self._closed,
                custom_ioloop=self._services,
            )
            self._loop.call_later(TICK_S, self._tick)
            self._run_loop()
        except Exception as error:  # noqa: BLE001 - a damaged stream or a wrong TLS file can make pika raise any exception
            self._fail(self._judge(error, "connecting to" if not self._ready else "publishing to"))
            self._end_after_error()
        return self._failure or Failure(Unreachable(f"{self._address}: the connection ended"))

    def _end_after_error(self) -> None:
        """Run pika's loop again after it raised, so that it ends the connection. That takes an iteration or two."""
        if self._connection is not None:
            with suppress(Exception):
                self._give_up()
                self._run_loop()

    def _run_loop(self) -> None:
        # The loop's start needs a descriptor. If it fails there, pika's loop can neither run nor be closed. So try the poller first.
        self._loop.activate_poller()
        self._loop.deactivate_poller()
        self._loop.start()

    def close_loop(self) -> None:
        """Release all descriptors. Nothing may call `wake` after this."""
        self._services.close_sockets()
        with suppress(AssertionError):  # the loop could not start, because another thread took the last descriptor
            self._loop.close()

    def wake(self) -> None:
        """Make the connection send new events. May be called from any thread."""
        self._loop.add_callback_threadsafe(self._publishing.pump)

    def stop(self) -> None:
        """Close the connection in an orderly way. May be called from any thread."""
        self._loop.add_callback_threadsafe(self._stop)

    # Opening

    def _opened(self, _: Any) -> None:
        self._open = True
        self._connection.add_on_connection_blocked_callback(self._block)
        self._connection.add_on_connection_unblocked_callback(self._unblock)
        self._connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._channel_closed)
        if self._declare:
            channel.exchange_declare(self._settings.exchange, "topic", durable=True, callback=self._declared)
        else:
            self._declared(None)

    def _declared(self, _: Any) -> None:
        self._publishing.confirm_on(self._channel, self._confirming)

    def _confirming(self, _: Any) -> None:
        self._ready = True
        self._events.ready()
        if self._blocked_since is None and self._failure is None:
            self._publishing.start()

    # The broker's alarm

    def _block(self, _: Any, frame: Any) -> None:
        self._blocked_since = time.monotonic()
        self._publishing.pause()
        self._events.blocked(str(getattr(frame.method, "reason", "") or "no reason given")[:100])

    def _unblock(self, *_: Any) -> None:
        self._blocked_since = None
        self._events.blocked(None)
        if self._ready and self._failure is None:
            self._publishing.start()

    # Ending

    def _tick(self) -> None:
        """Check the deadlines."""
        now = time.monotonic()
        settings = self._settings
        if self._failure is None:
            waits_since = self._publishing.waits_since
            if not self._ready:
                if now - self._started > settings.attempt_s:
                    self._end(Failure(Unreachable(f"{self._address}: no answer within {settings.attempt_s:g} s")))
            elif self._blocked_since is not None:
                if now - self._blocked_since > settings.blocked_s:
                    self._end(Failure(Blocked(f"{self._address}: the broker takes no messages (memory or disk alarm)")))
            elif waits_since is not None and now - waits_since > settings.confirm_s:
                self._end(Failure(Unreachable(f"{self._address}: no confirm within {settings.confirm_s:g} s")))
        self._loop.call_later(TICK_S, self._tick)

    def _stop(self) -> None:
        if self._failure is not None:
            return
        self._fail(Failure(Unreachable(f"{self._address}: closed")))
        self._loop.call_later(CLOSE_S, self._give_up)
        try:
            self._connection.close()
        except pika_exceptions.AMQPError:
            self._give_up()

    def _end(self, failure: Failure) -> None:
        """End the connection at once, without a close: the broker is silent, and would not answer one."""
        self._fail(failure)
        self._give_up()

    def _fail(self, failure: Failure) -> None:
        """Stop publishing, and note the failure if it is the first one."""
        self._publishing.pause()
        if self._failure is None:
            self._failure = failure

    def _give_up(self) -> None:
        """Drop the socket. pika reports the end through the loop. If it does not, the loop ends anyway."""
        self._loop.call_later(CLOSE_S, self._loop.stop)
        self._drop_socket()

    def _drop_socket(self) -> None:
        """Drop the socket without a close frame.

        While the connection opens, pika's `close` does that. Later only the transport can, and pika has no public way to it.
        """
        connection = self._connection
        transport = getattr(connection, "_transport", None)
        try:
            if not self._open and not (connection.is_closing or connection.is_closed):
                connection.close()
            elif transport is not None:
                transport.abort()
        except (pika_exceptions.AMQPError, AssertionError):
            self._loop.stop()  # the connection is ending already

    def _not_opened(self, _: Any, error: Any) -> None:
        self._fail(self._judge(error if isinstance(error, BaseException) else Exception(str(error)), "connecting to"))
        self._loop.stop()

    def _closed(self, _: Any, error: BaseException) -> None:
        self._fail(self._judge(error, "publishing to"))
        self._loop.stop()

    def _channel_closed(self, _: Any, error: BaseException) -> None:
        """Close the connection, because the broker closed its only channel. The broker does that after an error in our requests."""
        if self._failure is not None:
            return
        self._fail(self._judge(error, "publishing to"))
        try:
            self._connection.close()
            self._loop.call_later(CLOSE_S, self._give_up)
        except pika_exceptions.AMQPError:
            self._give_up()

    def _judge(self, error: BaseException, doing: str) -> Failure:
        return judge(error, f"{doing} {self._address}", self._settings.exchange, self._ready)
