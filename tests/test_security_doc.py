"""docs/security.md's table of what one user may cost: its figures are those of the code, and a test holds each limit."""

from __future__ import annotations

import re
from pathlib import Path

from towerws.auth import tower_limits
from towerws.auth.jwt_key_set import MAX_TRIED, UNKNOWN_KID_S
from towerws.auth.tower_objects import PARALLEL_CHECKS
from towerws.core.settings import AccessSettings, LimitSettings, TowerSettings, WebSocketSettings
from towerws.websocket.logs import FOLD_S, REFUSALS_PER_S
from towerws.websocket.replay import CONNECTION_SHARE, HISTORIES_AT_ONCE
from towerws.websocket.tokens import INBOX_BYTES

ROOT = Path(__file__).parents[1]
KIB, MIB = 1024, 1024**2
LIMITS, SOCKET, TOWER, ACCESS = LimitSettings(), WebSocketSettings(), TowerSettings(url="http://tower"), AccessSettings()

ROWS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # the table's first cell: what its second cell says, and the tests that hold the limit
    "connections": (
        (f"{LIMITS.per_user:,}",),
        (
            "websocket/test_admission.py::test_too_many_of_a_user",
            "websocket/test_admission.py::test_too_many_from_an_address",
            "websocket/test_admission.py::test_the_defaults_are_for_an_office",
        ),
    ),
    "memory for what a connection does not read": (
        (f"{SOCKET.backlog_bytes // KIB} KiB",),
        ("websocket/test_send_buffer.py::test_bound", "test_protocol.py::test_asks_but_never_reads"),
    ),
    "memory for messages of a connection that wait": (
        (f"{INBOX_BYTES // KIB} KiB",),
        ("websocket/test_limits.py::test_each_limit_is_counted_by_its_name",),
    ),
    "memory during the handshake, per address": (
        (f"{LIMITS.half_open:,} heads", f"{SOCKET.head_bytes // KIB} KiB", f"{SOCKET.handshake_s:g} s"),
        (
            "core/test_limits.py::test_during_the_handshake",
            "websocket/test_admission.py::test_pending_handshakes_are_limited_per_address",
            "websocket/test_tokens.py::test_an_unauthenticated_connection_counts_as_a_pending_handshake",
        ),
    ),
    "new connections": (
        (f"{LIMITS.accepts_per_s:,} a second",),
        ("websocket/test_accept_throttle.py::test_5000_connections_are_accepted_at_the_rate",),
    ),
    "checks of a token's signature": (
        (f"at most {MAX_TRIED} keys",),
        ("auth/test_jwt_key_set.py::test_tokens_without_a_kid", "websocket/test_tokens.py::test_bad_tokens_first"),
    ),
    "fetches of the issuer's keys": (
        (f"one in {UNKNOWN_KID_S} s",),
        (
            "auth/test_jwt_key_set.py::test_unknown_kids_do_not_make_calls_without_end",
            "auth/test_jwt_key_set.py::test_a_key_that_is_replaced_under_the_same_name",
        ),
    ),
    "pings to the daemon": (
        (f"{SOCKET.controls_per_s:g} a second", f"{SOCKET.controls_burst} at once"),
        ("test_protocol.py::test_ping_flood", "test_protocol.py::test_pings_at_the_rate", "test_protocol.py::test_unsolicited_pongs"),
    ),
    "messages to the daemon": (
        (f"{SOCKET.messages_per_s:g} a second",),
        ("websocket/test_limits.py::test_each_limit_is_counted_by_its_name",),
    ),
    "replay from history": (
        (
            "four times" if HISTORIES_AT_ONCE == 4 else "",
            f"{LIMITS.replay_bytes_per_s // MIB} MiB a second",
            f"then {LIMITS.replay_bytes_per_s * CONNECTION_SHARE / MIB:g} MiB a second",
        ),
        (
            "websocket/test_replay.py::test_one_connection_that_asks_again_and_again",
            "websocket/test_replay.py::test_one_user_that_comes_again_and_again",
        ),
    ),
    "live events to the network": (("once for each of its connections",), ("websocket/test_admission.py::test_too_many_of_a_user",)),
    "calls to the API for its credential": (
        (f"one in {TOWER.valid_s:g} s", f"{ACCESS.revalidate_s:g} s while connected"),
        ("auth/test_tower.py::test_a_good_credential_is_remembered", "websocket/test_revocation_in_time.py::test_what_that_costs"),
    ),
    "calls to the API for objects": (
        ("four at a time" if PARALLEL_CHECKS == 4 else "", f"{SOCKET.topics:,} for each connection"),
        (
            "websocket/test_revocation_in_time.py::test_a_job_among_a_thousand_on_forty_connections",
            "core/test_requests.py::test_the_number_of_topics_has_a_limit",
            "auth/test_tower_calls.py::test_one_address_does_not_delay_the_others",
        ),
    ),
    "failed sign-ins from an address": (
        (
            f"{tower_limits.ADDRESS_BURST}, then {tower_limits.ADDRESS_RATE:g} a second",
            f"passwords {tower_limits.GUESS_BURST}, then one a second" if tower_limits.GUESS_RATE == 1 else "",
        ),
        ("auth/test_tower_limits.py::test_guesses_are_bounded", "auth/test_tower_limits.py::test_many_guesses_at_once"),
    ),
    "log lines": (
        (f"in {FOLD_S:g} s", f"{REFUSALS_PER_S} a second"),
        ("websocket/test_logs.py::test_equal_refusals_are_folded", "websocket/test_logs.py::test_refusals_from_everywhere"),
    ),
}


def test_what_one_user_may_cost() -> None:
    """Each row of the table has the figures of the defaults, and tests that exist."""
    section = (ROOT / "docs" / "security.md").read_text().partition("## What one user may cost")[2].partition("\n## ")[0]
    table = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", section, re.MULTILINE))
    del table["what"], table["---"]
    assert table.keys() == ROWS.keys()
    for name, (figures, tests) in ROWS.items():
        for figure in figures:
            assert figure, name
            assert figure in table[name], (name, figure)
        for test in tests:
            file, _, function = test.partition("::")
            assert f"def {function}(" in (ROOT / "tests" / file).read_text(), test
