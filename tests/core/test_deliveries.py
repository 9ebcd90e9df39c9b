from __future__ import annotations

import hashlib
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from tests.kit.rows import each_row
from towerws.core.deliveries import (
    BEFORE,
    MAX_MARKER_BYTES,
    Delivery,
    Fingerprint,
    Marker,
    OversizedBody,
    derive_key,
    parse_marker,
    parse_position,
)

KEY = Fingerprint(b"a key")


def stream(offset: int = 7, topic: str = "a.1", payload: bytes = b"{}", message_id: str | None = None) -> Delivery:
    """A delivery of a stream."""
    return Delivery(1, topic, payload, offset, KEY, message_id)


def test_the_position_in_a_log_of_our_own_names_the_log() -> None:
    """Offset and tag."""
    assert Delivery(1, "a.1", b"{}", 7, "5b0c").position == "7-5b0c"


def test_the_position_in_a_stream_is_fixed() -> None:
    """Clients keep positions across restarts and versions: offset, and 48 bits of keyed BLAKE2b of topic, NUL, id, NUL, payload."""
    keyed = hashlib.blake2b(b"a.1\0\0{}", digest_size=6, key=b"a key").hexdigest()
    assert stream().position == f"7-{keyed}"


def test_the_position_in_a_stream_is_made_of_what_every_process_sees() -> None:
    """Neither where a process began to count nor when it got the delivery matters."""
    assert Delivery(1, "a.1", b"{}", 7, KEY, "m", 1.0).position == Delivery(99, "a.1", b"{}", 7, KEY, "m", 5.0).position


def test_without_the_key_a_position_says_nothing() -> None:
    """A client that may not see an event can't try out what its content was (C11)."""
    guess = Delivery(1, "a.1", b"{}", 7, Fingerprint(b""))
    assert guess.position != stream().position
    assert Delivery(1, "a.1", b"{}", 7, Fingerprint(b"another key")).position != stream().position


def test_the_key_is_the_same_in_every_process_and_another_for_every_secret() -> None:
    """All daemons of a broker derive the same one; it fits BLAKE2b."""
    key = derive_key(b"secret", b"salt")
    assert key == derive_key(b"secret", b"salt")
    assert len({key, derive_key(b"secre", b"salt"), derive_key(b"secret", b"sal")}) == 3
    assert len(key) == 32


def test_the_position_is_the_same_in_another_process() -> None:
    """It does not depend on Python's seed for hashes."""
    code = "from towerws.core.deliveries import *; print(Delivery(1, 'a.1', b'{}', 7, Fingerprint(b'a key')).position)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": "3"})
    assert told.stdout.strip() == stream().position


def test_a_place_that_can_not_be_resumed_from_has_no_position() -> None:
    """No answer carries a position that is worth nothing."""
    assert Delivery(0, "", b"", 7, "").position == ""


@each_row(
    "other",
    [
        stream(offset=8),
        stream(topic="a.2"),
        stream(payload=b"{ }"),
        stream(message_id="m"),
        stream(topic="a", payload=b".1{}"),
        stream(message_id="\0"),
    ],
)
def test_another_delivery_has_another_position(other: Delivery) -> None:
    """Offset, topic, payload and message id all count, each by itself."""
    assert other.position != stream().position


@given(st.integers(0, 2**63 - 1), st.binary(max_size=50), st.none() | st.text(max_size=20, alphabet=st.characters(codec="utf-8")))
def test_a_position_is_opaque_text_that_can_be_read_back(offset: int, payload: bytes, message_id: str | None) -> None:
    """Plain ASCII of bounded length, that needs no escaping in JSON; its offset is found again."""
    position = stream(offset, payload=payload, message_id=message_id).position
    assert len(position) <= 32
    for text in (position, position + BEFORE):
        match = parse_position(text)
        assert match is not None
        assert int(match[1]) == offset


@each_row(
    "text",
    [
        "",
        "-",
        "7",
        "7-",
        "-a",
        "7-A",
        "7-a\n",
        " 7-a",
        "+7-a",
        "7_0-a",
        "\u0667-a",
        "\uff17-a",
        "7-\u00e9",
        "1" * 20 + "-a",
        "7-" + "a" * 33,
        "7--a",
        "-1-a",
    ],
)
def test_what_no_position_looks_like_is_not_read(text: str) -> None:
    """Other digits, signs, spaces and sizes are refused before anything is looked up."""
    assert parse_position(text) is None


def test_a_body_that_was_not_kept() -> None:
    """It is as long as the body was, and is no marker. Each process gives it the same fingerprint, and another size another one."""
    body = OversizedBody(2**40)
    assert len(body) == 2**40
    assert parse_marker(body) is None
    assert KEY("a.1", None, body) == KEY("a.1", None, OversizedBody(2**40)) != KEY("a.1", None, OversizedBody(2**40 + 1))


def test_deliveries_are_compared_by_identity() -> None:
    """Two with the same content are two."""
    assert stream() != stream()
    assert len({stream(), stream()}) == 2


names = st.text("0123456789abcdef", min_size=8, max_size=16)
counts = st.integers(0, 2**63 - 1)
ages = st.tuples(names, counts | st.none()) | st.just(("", None))
markers = st.builds(lambda text, *rest: Marker(text.rjust(32, "0"), *rest[:2], *rest[2]), names, names, st.none() | counts, ages)


@given(markers)
def test_a_marker_is_read_as_it_was_written(marker: Marker) -> None:
    """The largest one fits, too."""
    assert len(marker.body) <= MAX_MARKER_BYTES
    assert parse_marker(marker.body) == marker


@each_row(
    "age",
    [
        '"machine": "nothex!!", "previous_s": 1',
        '"machine": "0123456789abcdef", "previous_s": -1',
        '"machine": "0123456789abcdef", "previous_s": 1.5',
        '"machine": "0123456789abcdef", "previous_s": true',
        '"previous_s": 1',
    ],
)
def test_a_marker_whose_age_can_not_be_read(age: str) -> None:
    """It is still a marker, like one of an earlier version. It proves what its text proves."""
    assert parse_marker(b'{"marker": "aaaaaaaa", "daemon": "bbbbbbbb", %s}' % age.encode()) == Marker("aaaaaaaa", "bbbbbbbb")
