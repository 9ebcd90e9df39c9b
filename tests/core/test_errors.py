from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.kit.rows import each_row
from towerws.core.errors import (
    MAX_PRINTABLE_CHARACTERS,
    BadDelivery,
    BadRequest,
    BrokerError,
    CloseReason,
    ConfigError,
    HandshakeError,
    TowerwsError,
    one_line,
    printable,
)


@each_row(
    "error",
    [
        BadDelivery("not_utf8", "text"),
        BadRequest("not_json", "text"),
        HandshakeError(400, "text"),
        ConfigError("text"),
        BrokerError("text"),
    ],
)
def test_every_error_has_one_root_and_shows_its_text(error: TowerwsError) -> None:
    """One `except` catches all that is raised on purpose, and `str` is what a person reads."""
    assert isinstance(error, TowerwsError)
    assert str(error) == "text"


def test_errors_carry_what_becomes_of_them() -> None:
    """A counter's label, a reply's code and id, an answer's status."""
    assert BadDelivery("not_utf8", "text").reason == "not_utf8"
    assert BadRequest("not_json", "text").code == "not_json"
    assert BadRequest("not_json", "text").request_id is None
    assert BadRequest("not_json", "text", {"a": 1}).request_id == {"a": 1}
    assert HandshakeError(503, "text").status == 503
    assert (HandshakeError(400, "text").reason, HandshakeError(503, "text", "user").reason) == ("request", "user")


def test_the_close_codes() -> None:
    """Clients rely on these: code, word and what to do next (docs/protocol.md)."""
    assert {name: (close.value.code, close.value.reason, close.value.action) for name, close in CloseReason.__members__.items()} == {
        "POLICY": (1008, "policy", "stop"),
        "CREDENTIAL": (1008, "credential no longer valid", "authenticate"),
        "NO_CREDENTIAL": (1008, "no credential", "authenticate"),
        "TOO_BIG": (1009, "too big", "stop"),
        "RESTART": (1012, "restart", "reconnect"),
        "HISTORY": (1013, "fell out of history", "reconnect"),
        "OVERLOAD": (1013, "overload", "reconnect"),
        "NOT_YET": (1013, "position can't be judged yet", "reconnect"),
        "UNCHECKED": (1013, "credential can't be checked", "reconnect"),
        "TOO_MANY_CONNECTIONS": (1013, "too many connections", "reconnect"),
    }


@each_row("reason", CloseReason)
def test_a_close_is_legal_and_never_final_by_mistake(reason: CloseReason) -> None:
    """Never 1000, which React's pages take as final; a reason that fits a control frame (RFC 6455 section 5.5)."""
    assert reason.value.code != 1000
    assert 1000 < reason.value.code < 1016
    assert len(reason.value.reason.encode()) <= 123


@each_row(
    ("text", "shown"),
    [
        ("ada", "ada"),
        (7, "7"),
        (None, "None"),
        ("Zoë 愛", "Zoë 愛"),
        ("a\r\n2026-01-01 root logged in", r"a\r\n2026-01-01 root logged in"),
        ("a\x1b[2Jb\x00\x85", r"a\x1b[2Jb\x00\x85"),
        ("\u202egnp.exe\u2028", r"\u202egnp.exe\u2028"),
        ("\ud800", r"\ud800"),
        (r"a\nb", r"a\\nb"),
        ("x" * 500, "x" * MAX_PRINTABLE_CHARACTERS + "…"),
    ],
)
def test_what_is_shown(text: object, shown: str) -> None:
    """People can read it, and nothing in it does anything."""
    assert printable(text) == shown


@given(st.text(alphabet=st.characters()))
def test_any_text_is_shown_on_one_line(text: str) -> None:
    """It is one line, printable, and survives the trip to a file; short texts that differ are shown differently."""
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode().decode() == shown
    if len(text) < MAX_PRINTABLE_CHARACTERS:
        assert printable(text + "\n") == shown + r"\n"


def test_the_text_of_another_library_is_short_and_on_one_line() -> None:
    """Its line ends become spaces. A longer text ends in an ellipsis."""
    assert one_line("a\n  b") == "a b"
    assert one_line("x" * 160) == "x" * 160
    assert one_line("x" * 161) == "x" * 159 + "…"
    assert one_line("x" * 1000, 300) == "x" * 299 + "…"
