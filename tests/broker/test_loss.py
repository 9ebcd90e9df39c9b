from __future__ import annotations

import pytest
from OpenSSL import SSL
from twisted.internet import error
from twisted.python.failure import Failure

from towerws.broker.loss import Cure, from_broker, from_transport


@pytest.mark.parametrize(
    ("code", "text", "cure", "hint"),
    [
        (403, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.", Cure.OPERATOR, "check user and password"),
        (403, "ACCESS_REFUSED - access to queue 's' in vhost '/' refused for user 'u'", Cure.OPERATOR, "set_permissions"),
        (530, "NOT_ALLOWED - vhost nope not found", Cure.OPERATOR, "add_vhost"),
        (530, "NOT_ALLOWED - access to vhost '/' refused for user 'u'", Cure.OPERATOR, "set_permissions -p"),
        (404, "NOT_FOUND - no exchange 'x' in vhost '/'", Cure.OPERATOR, "passive = false"),
        (404, "NOT_FOUND - home node 'r@h' of durable queue 's' in vhost '/' is down or inaccessible", Cure.TIME, "coming up"),
        (406, "PRECONDITION_FAILED - stream 's' does not have a replica on the local node", Cure.TIME, "add_replica"),
        (406, "PRECONDITION_FAILED - unknown delivery tag 5", Cure.OPERATOR, ""),
        (320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'", Cure.TIME, ""),
        (541, "INTERNAL_ERROR", Cure.TIME, ""),
    ],
)
def test_what_the_broker_says(code: int, text: str, cure: Cure, hint: str) -> None:
    """Code and text are kept whole; the cure sets the pace; the hint names the next step where there is one."""
    loss = from_broker(code, text)
    assert (loss.text, loss.code, loss.cure) == (f"{code} {text}", code, cure)
    assert hint in loss.hint
    assert bool(loss.hint) == bool(hint)


@pytest.mark.parametrize(
    ("what", "hint"),
    [
        ("inequivalent arg 'x-max-age' for queue 's1' in vhost '/': received '2h' but current is '1h'", "set stream_max_age_s"),
        ("inequivalent arg 'x-max-length-bytes' for queue 's1' in vhost '/': received '5' but current is '9'", "set stream_max_octets"),
        (
            "inequivalent arg 'x-stream-max-segment-size-bytes' for queue 's1' in vhost '/': received none but current is '1'",
            "set stream_segment_octets",
        ),
        ("inequivalent arg 'durable' for queue 's1' in vhost '/': received 'true' but current is 'false'", "another name for `stream`"),
        ("inequivalent arg 'type' for exchange 's1' in vhost '/': received 'topic' but current is 'direct'", "another name for `exchange`"),
    ],
)
def test_what_differs_is_named(what: str, hint: str) -> None:
    """A 406 for other arguments says which, what was asked, what is there, and which setting that is."""
    loss = from_broker(406, f"PRECONDITION_FAILED - {what}")
    assert "'s1' exists with " in loss.hint
    assert hint in loss.hint
    assert loss.cure is Cure.OPERATOR


@pytest.mark.parametrize(
    ("reason", "cure", "text"),
    [
        (error.ConnectionRefusedError(), Cure.SOON, "connection refused"),
        (error.DNSLookupError("x"), Cure.TIME, "can't be resolved"),
        (error.ConnectionDone(), Cure.TIME, "the broker closed the connection (is this an AMQP port without TLS?"),
        (error.ConnectionLost(), Cure.TIME, "non-clean"),
        (SSL.Error([("SSL routines", "", "certificate verify failed")]), Cure.OPERATOR, "certificate verify failed"),
        (SSL.Error([("SSL routines", "", "wrong version number")]), Cure.OPERATOR, "that port doesn't speak TLS"),
        (SSL.Error([("SSL routines", "", "internal error")]), Cure.OPERATOR, "check the TLS settings"),
        (SSL.Error(), Cure.OPERATOR, "TLS failed: Error"),
    ],
)
def test_what_the_network_says(reason: Exception, cure: Cure, text: str) -> None:
    """Each usual failure of TCP, DNS and TLS is said in one line."""
    loss = from_transport(Failure(reason), "handshake", tls=False)
    assert text in str(loss)
    assert loss.cure is cure
    assert "\n" not in str(loss)
