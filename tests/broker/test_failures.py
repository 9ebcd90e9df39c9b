from __future__ import annotations

from OpenSSL import SSL
from twisted.internet import error
from twisted.python.failure import Failure

from tests.kit.rows import each_row
from towerws.broker.failures import RetryPolicy, from_broker, from_transport


@each_row(
    ("code", "text", "retry", "hint"),
    [
        (403, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.", RetryPolicy.SLOW, "check user and password"),
        (403, "ACCESS_REFUSED - access to queue 's' in vhost '/' refused for user 'u'", RetryPolicy.SLOW, "set_permissions"),
        (530, "NOT_ALLOWED - vhost nope not found", RetryPolicy.SLOW, "add_vhost"),
        (530, "NOT_ALLOWED - access to vhost '/' refused for user 'u'", RetryPolicy.SLOW, "set_permissions -p"),
        (404, "NOT_FOUND - no exchange 'x' in vhost '/'", RetryPolicy.SLOW, "passive = false"),
        (
            404,
            "NOT_FOUND - home node 'r@h' of durable queue 's' in vhost '/' is down or inaccessible",
            RetryPolicy.BACKOFF,
            "still starting",
        ),
        (406, "PRECONDITION_FAILED - stream 's' does not have a replica on the local node", RetryPolicy.BACKOFF, "add_replica"),
        (406, "PRECONDITION_FAILED - unknown delivery tag 5", RetryPolicy.SLOW, ""),
        (320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'", RetryPolicy.BACKOFF, ""),
        (541, "INTERNAL_ERROR", RetryPolicy.BACKOFF, ""),
    ],
)
def test_what_the_broker_says(code: int, text: str, retry: RetryPolicy, hint: str) -> None:
    """Code and text are kept complete, the policy sets the pace, and the hint names the next step if there is one."""
    failure = from_broker(code, text)
    assert (failure.text, failure.code, failure.retry) == (f"{code} {text}", code, retry)
    assert hint in failure.hint
    assert bool(failure.hint) == bool(hint)


@each_row(
    ("what", "hint"),
    [
        ("inequivalent arg 'x-max-age' for queue 's1' in vhost '/': received '2h' but current is '1h'", "set stream_max_age_s"),
        ("inequivalent arg 'x-max-length-bytes' for queue 's1' in vhost '/': received '5' but current is '9'", "set stream_max_bytes"),
        (
            "inequivalent arg 'x-stream-max-segment-size-bytes' for queue 's1' in vhost '/': received none but current is '1'",
            "set stream_segment_bytes",
        ),
        ("inequivalent arg 'durable' for queue 's1' in vhost '/': received 'true' but current is 'false'", "another name for `stream`"),
        ("inequivalent arg 'type' for exchange 's1' in vhost '/': received 'topic' but current is 'direct'", "another name for `exchange`"),
    ],
)
def test_what_differs_is_named(what: str, hint: str) -> None:
    """A 406 for other arguments names the argument, both values, and the setting."""
    failure = from_broker(406, f"PRECONDITION_FAILED - {what}")
    assert "'s1' exists with " in failure.hint
    assert hint in failure.hint
    assert failure.retry is RetryPolicy.SLOW


@each_row(
    ("reason", "retry", "text"),
    [
        (error.ConnectionRefusedError(), RetryPolicy.FAST, "connection refused"),
        (error.DNSLookupError("x"), RetryPolicy.BACKOFF, "can't be resolved"),
        (error.ConnectionDone(), RetryPolicy.BACKOFF, "the broker closed the connection (check that this is an AMQP port without TLS"),
        (error.ConnectionLost(), RetryPolicy.BACKOFF, "non-clean"),
        (SSL.Error([("SSL routines", "", "certificate verify failed")]), RetryPolicy.SLOW, "certificate verify failed"),
        (SSL.Error([("SSL routines", "", "wrong version number")]), RetryPolicy.SLOW, "that port doesn't use TLS"),
        (SSL.Error([("SSL routines", "", "internal error")]), RetryPolicy.SLOW, "check the TLS settings"),
        (SSL.Error(), RetryPolicy.SLOW, "TLS failed: Error"),
    ],
)
def test_what_the_network_says(reason: Exception, retry: RetryPolicy, text: str) -> None:
    """Each usual failure of TCP, DNS and TLS has a text of one line."""
    failure = from_transport(Failure(reason), "handshake", tls=False)
    assert text in str(failure)
    assert failure.retry is retry
    assert "\n" not in str(failure)
