from __future__ import annotations

import pytest

from tests.kit.rows import each_row
from towerws.core.handshake_probes import MAX_PROBES, MAX_VALUE_CHARACTERS, PROBE_HEADER, HandshakeProbes, parse_probe

NAME = "0123456789abcdef" * 2


def test_only_names_that_were_asked_for_are_remembered() -> None:
    """A client can't make the daemon remember anything. A probe shows addresses and forwarded headers, and no credential."""
    probes = HandshakeProbes()
    headers = {PROBE_HEADER: NAME, "host": "h", "x-forwarded-for": "x" * 1000, "cookie": "canary", "authorization": "canary"}
    probes.note(headers, "127.0.0.1", 5000, "203.0.113.7", trusted=True)
    assert probes.ask(NAME) is None
    probes.note(headers, "127.0.0.1", 5000, "203.0.113.7", trusted=True)
    assert probes.ask(NAME) == {
        "peer": "127.0.0.1",
        "peer_port": 5000,
        "trusted": True,
        "address": "203.0.113.7",
        "headers": {"host": "h", "x-forwarded-for": "x" * MAX_VALUE_CHARACTERS},
    }


def test_the_number_of_probes_is_bounded() -> None:
    """The oldest is forgotten."""
    probes = HandshakeProbes()
    names = [f"{number:032x}" for number in range(MAX_PROBES + 1)]
    for name in names:
        probes.ask(name)
    for name in names[:2]:
        probes.note({PROBE_HEADER: name}, "p", 1, "a", trusted=False)
    assert probes.ask(names[1]) is not None
    assert probes.ask(names[0]) is None


@each_row("body", [b"", b"[]", b"{}", b'{"probe": 1}', b'{"probe": "0"}', b'{"probe": "' + b"A" * 32 + b'"}', b"[" * 100_000])
def test_a_name_is_32_hexadecimal_digits(body: bytes) -> None:
    """Anything else is refused with the rule."""
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        parse_probe(body)
    assert parse_probe(f'{{"probe": "{NAME}"}}'.encode()) == NAME
