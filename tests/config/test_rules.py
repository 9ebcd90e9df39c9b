from __future__ import annotations

from dataclasses import replace

import pytest

from tests.kit.rows import each_row
from towerws.config.addresses import parse_broker_url
from towerws.config.options import OPTIONS
from towerws.config.rules import advice, broken_rules, describes_a_service, read_group, suggestion
from towerws.core.settings import (
    AccessSettings,
    BrokerSettings,
    GroupSettings,
    HistorySettings,
    JwtSettings,
    Settings,
    TowerSettings,
    WebSocketSettings,
)

BROKER = BrokerSettings(urls=(parse_broker_url("amqp://h"),))
GOOD = Settings(broker=BROKER, auth=("open",))


def test_the_defaults_keep_every_rule() -> None:
    """The defaults break no rule, with a broker or without, and cause no advice."""
    for settings in (GOOD, replace(GOOD, broker=None)):
        assert list(broken_rules(settings)) == []
        assert list(advice(settings)) == []


@each_row(
    ("settings", "key", "rule"),
    [
        (replace(GOOD, auth=("opne",)), "auth", "unknown method 'opne'; there is tower, jwt, open; did you mean open"),
        (replace(GOOD, auth=("tower",), tower=TowerSettings(url="")), "tower.url", "needs the address"),
        (replace(GOOD, auth=("tower",), tower=TowerSettings(url="https://h", cookies=())), "tower.cookies", "needs the name"),
        (replace(GOOD, auth=("jwt",), jwt=JwtSettings(algorithms=(), secret_file="/x")), "jwt.algorithms", "needs the algorithms"),
        (replace(GOOD, auth=("jwt",), jwt=JwtSettings(algorithms=("HS256",))), "jwt.jwks_url", "needs a key"),
        (replace(GOOD, listen="tcp:8051"), "listen", "with auth open everybody who reaches 0.0.0.0:8051"),
        (replace(GOOD, listen=r"tcp6:8051:interface=\:\:"), "listen", "[::]:8051"),
        (replace(GOOD, listen="systemd:domain=INET:index=0"), "listen", "with auth open"),
        (replace(GOOD, listen="8051"), "listen", "must be an endpoint"),
        (replace(GOOD, admin="tcp:9051:interface=10.0.0.1"), "admin", "10.0.0.1:9051 can be reached from other machines"),
        (replace(GOOD, admin="tcp:8051:interface=127.0.0.1"), "admin", "must not be the same"),
        (replace(GOOD, insecure=True, admin="tcp:8051"), "admin", "must not be the same"),
        (replace(GOOD, workers=2, listen="unix:/run/x"), "workers", "can't share a unix: address"),
        (replace(GOOD, workers="auto", broker=None), "workers", "several workers need a broker"),
        (replace(GOOD, workers=2, listen="tcp:0:interface=127.0.0.1"), "workers", "their common port"),
        (replace(GOOD, access=AccessSettings(trusted_proxies=("10.0.0.1/8",))), "trusted_proxies", "10.0.0.1/8 has host bits set"),
        (replace(GOOD, access=AccessSettings(trusted_proxies=("proxy",))), "trusted_proxies", "an address, a network (10.0.0.0/8) or unix"),
        (replace(GOOD, access=AccessSettings(origins=("portal",))), "origins", "'portal' is not an origin"),
        (replace(GOOD, broker=replace(BROKER, exchange="")), "exchange", "1 to 255 bytes"),
        (replace(GOOD, broker=replace(BROKER, stream="é" * 128)), "stream", "1 to 255 bytes"),
        (replace(GOOD, broker=replace(BROKER, exchange="x" * 250)), "control_exchange", "1 to 255 bytes"),
        (replace(GOOD, broker=replace(BROKER, control_exchange="towerws")), "control_exchange", "must be different"),
        (replace(GOOD, broker=replace(BROKER, silence_s=19.9)), "silence_s", "at least twice heartbeat_s"),
        (replace(GOOD, broker=replace(BROKER, backoff_max_s=0.4)), "backoff_max_s", "at least backoff_min_s"),
        (replace(GOOD, broker=replace(BROKER, stream_max_bytes=1024)), "stream_max_bytes", "at least stream_segment_bytes"),
        (replace(GOOD, broker=replace(BROKER, stream_max_age_s=119)), "stream_max_age_s", "at least history.max_age_s"),
        (replace(GOOD, broker=replace(BROKER, queue_max_bytes=1024)), "queue_max_bytes", "at least max_payload_bytes"),
        (replace(GOOD, history=HistorySettings(max_bytes=4 * 1024**2 - 1)), "history.max_bytes", "at least max_payload_bytes"),
        (
            replace(GOOD, websocket=WebSocketSettings(backlog_bytes=128 * 1024**2)),
            "websocket.backlog_bytes",
            "at most history.max_bytes",
        ),
    ],
)
def test_broken(settings: Settings, key: str, rule: str) -> None:
    """Each broken rule is found, alone, and names the setting that causes it."""
    (broken,) = broken_rules(settings)
    assert broken.keys[0] == key
    assert rule in broken.rule


@each_row(
    "settings",
    [
        replace(GOOD, listen="tcp:8051", admin="tcp:9051", insecure=True),
        replace(GOOD, listen=r"tcp6:8051:interface=\:\:1", admin="unix:/run/admin.sock"),
        replace(GOOD, listen="tcp:0:interface=127.0.0.1", admin="tcp:0:interface=127.0.0.1"),
        replace(GOOD, broker=replace(BROKER, silence_s=20, heartbeat_s=10)),
        replace(GOOD, history=HistorySettings(max_bytes=4 * 1024**2)),
    ],
)
def test_kept(settings: Settings) -> None:
    """Values at the limit of a rule are allowed."""
    assert list(broken_rules(settings)) == []


def test_advice() -> None:
    """Unusual values are reported, and stay allowed."""
    mixed = replace(BROKER, urls=(parse_broker_url("amqp://h"), parse_broker_url("amqps://h")))
    settings = replace(GOOD, broker=mixed, insecure=True, websocket=WebSocketSettings(ping_s=60))
    said = " ".join(advice(settings))
    assert all(word in said for word in ("nginx", "insecure", "unencrypted"))
    tower = replace(GOOD, auth=("tower",), tower=TowerSettings(url="https://h"))
    assert ["trusted_proxies is empty" in each for each in advice(tower)] == [True]
    behind = replace(tower, access=AccessSettings(trusted_proxies=("127.0.0.1",)))
    assert list(advice(behind)) == []
    both = replace(behind, auth=("tower", "jwt"), jwt=JwtSettings(algorithms=("HS256",), secret_file="secret"))
    assert ["tower before jwt" in each for each in advice(both)] == [True]
    assert list(advice(replace(both, auth=("jwt", "tower")))) == []
    careless = replace(behind, access=replace(behind.access, check_origin=False))
    assert ["check_origin is off" in each for each in advice(careless)] == [True]
    assert ["tls_ca is set" in each for each in advice(replace(GOOD, broker=replace(BROKER, tls_ca="ca.pem")))] == [True]
    assert list(broken_rules(settings)) == []


@each_row(
    ("word", "said"),
    [
        ("max_payload_byte", "; did you mean max_payload_bytes?"),
        ("max_bytes", "; did you mean history.max_bytes?"),
        ("zzz", ""),
    ],
)
def test_suggestion(word: str, said: str) -> None:
    """A name that is nearly right, or lacks its table, gets the right one as a suggestion."""
    assert suggestion(word, ["listen", "history.max_bytes", "max_payload_bytes"]) == said


@each_row("key", [option.key for option in OPTIONS if "bytes" in option.key])
def test_the_former_name_of_an_option_brings_up_the_new_one(key: str) -> None:
    """Sizes were named `…_octets` until 0.2."""
    assert suggestion(key.replace("bytes", "octets"), [option.key for option in OPTIONS]) == f"; did you mean {key}?"


@each_row(
    ("word", "prefix", "said"),
    [
        ("health", "", "monitor"),
        ("--health", "--", "--monitor"),
        ("TOWERWS_HEALTH", "TOWERWS_", "TOWERWS_MONITOR"),
        ("access.health", "", ""),
        ("healt", "", ""),
    ],
)
def test_an_option_that_was_renamed_to_another_word(word: str, prefix: str, said: str) -> None:
    """`health` was the port for probes until 0.2. It is `monitor` now."""
    known = [prefix + (key.upper() if prefix == "TOWERWS_" else key) for key in ("listen", "admin", "monitor")]
    assert suggestion(word, known, prefix) == (f"; did you mean {said}?" if said else "")


@each_row(
    ("word", "said"),
    [
        ("TOWERWS_HISTROY", "TOWERWS_HISTORY_MAX_BYTES or TOWERWS_HISTORY_MAX_AGE_S"),
        ("TOWERWS_HISTORY", "TOWERWS_HISTORY_MAX_BYTES or TOWERWS_HISTORY_MAX_AGE_S"),
        ("TOWERWS_HISTORY_MAX_BYTE", "TOWERWS_HISTORY_MAX_BYTES"),
        ("TOWERWS_HISTROY_MAX_BYTES", "TOWERWS_HISTORY_MAX_BYTES"),
        ("TOWERWS_LITSEN", "TOWERWS_LISTEN"),
        ("TOWERWS_LISTENS", "TOWERWS_LISTEN"),
        ("TOWERWS_BROKR", "TOWERWS_BROKER"),
        ("TOWERWS_MAX_AGE_S", "TOWERWS_HISTORY_MAX_AGE_S"),
        ("TOWERWS_REDIS", ""),
        ("TOWERWS_DEBUG", ""),
        ("TOWERWS_X", ""),
    ],
)
def test_suggestion_behind_a_prefix(word: str, said: str) -> None:
    """A common prefix makes no name similar: `TOWERWS_HISTROY` is not nearly `TOWERWS_STREAM`."""
    known = [f"TOWERWS_{name}" for name in ("BROKER", "LISTEN", "STREAM", "HISTORY_MAX_BYTES", "HISTORY_MAX_AGE_S")]
    assert suggestion(word, known, "TOWERWS_") == (f"; did you mean {said}?" if said else "")


@each_row(
    ("name", "value", "theirs"),
    [
        ("TOWERWS_SERVICE_HOST", "10.96.0.11", True),
        ("TOWERWS_SERVICE_PORT", "8051", True),
        ("TOWERWS_SERVICE_PORT_WEBSOCKET", "8051", True),
        ("TOWERWS_PORT", "tcp://10.96.0.11:8051", True),
        ("TOWERWS_PORT", "udp://10.96.0.11:8051", True),
        ("TOWERWS_PORT", "tcp://[fd00::11]:8051", True),
        ("TOWERWS_PORT_8051_TCP", "tcp://10.96.0.11:8051", True),
        ("TOWERWS_PORT_8051_TCP_ADDR", "10.96.0.11", True),
        ("TOWERWS_PORT_8051_TCP_PORT", "8051", True),
        ("TOWERWS_PORT_8051_TCP_PROTO", "tcp", True),
        ("TOWERWS_PORT_9_SCTP_PROTO", "sctp", True),
        ("TOWERWS_ADMIN_SERVICE_HOST", "10.96.0.12", True),
        ("TOWERWS_ADMIN_PORT", "tcp://10.96.0.12:9051", True),
        ("TOWERWS_ADMIN_PORT_9051_TCP_ADDR", "10.96.0.12", True),
        ("TOWERWS_NAME", "/web/towerws", True),
        ("TOWERWS_ENV_PATH", "/usr/bin", True),
        ("TOWERWS_PORT", "9000", False),
        ("TOWERWS_PORT", "tcp:9000", False),
        ("TOWERWS_NAME", "events", False),
        ("TOWERWS_SERVICE", "x", False),
        ("TOWERWS_HOST", "10.96.0.11", False),
        ("TOWERWS_LISTNE", "tcp:8051", False),
        ("TOWERWS_SERVICE_HOST\n", "x", False),
    ],
)
def test_variables_of_others(name: str, value: str, theirs: bool) -> None:
    """Variables of Kubernetes and Docker for a service of our name are ignored. A user's mistyped variable is not."""
    assert describes_a_service(name, value) is theirs


@each_row(
    ("table", "group"),
    [
        ({}, GroupSettings()),
        ({"events": "any"}, GroupSettings(events="any")),
        ({"events": "id"}, GroupSettings(events="id")),
        ({"events": ["created", "paid"]}, GroupSettings(events=("created", "paid"))),
        ({"policy": "own"}, GroupSettings(policy="own")),
        ({"policy": "never"}, GroupSettings(policy="never")),
        (
            {"events": "id", "object_url": "/api/v2/jobs/{id}/"},
            GroupSettings(events="id", policy="object", object_url="/api/v2/jobs/{id}/"),
        ),
    ],
)
def test_groups(table: dict[str, object], group: GroupSettings) -> None:
    """A group has any event, numbers, or some words."""
    assert read_group("orders_2", table) == group


@each_row(
    ("name", "table", "rule"),
    [
        ("a-b", {}, "1 to 64 letters"),
        ("", {}, "1 to 64 letters"),
        ("g" * 65, {}, "1 to 64 letters"),
        ("orders", "any", "must be a table"),
        ("orders", {"event": "any"}, "unknown key 'event'"),
        ("orders", {"events": "ids"}, "events must be"),
        ("orders", {"events": []}, "events must be"),
        ("orders", {"events": ["*"]}, "events must be"),
        ("orders", {"events": [1]}, "events must be"),
        ("orders", {"events": 5}, "events must be"),
        ("orders", {"policy": "everybody"}, "policy must be one of authenticated, own, object, never"),
        ("orders", {"policy": []}, "policy must be one of"),
        ("orders", {"policy": "object", "events": "id"}, "go together"),
        ("orders", {"policy": "own", "events": "id", "object_url": "/{id}/"}, "go together"),
        ("orders", {"object_url": "/api/v2/jobs/{id}/"}, 'needs events = "id"'),
        ("orders", {"events": "id", "object_url": "/api/v2/jobs/"}, "with {id} in it"),
        ("orders", {"events": "id", "object_url": "/{id}/{id}/"}, "once"),
        ("orders", {"events": "id", "object_url": "http://evil.example/{id}/"}, "a path of the API"),
        ("orders", {"events": "id", "object_url": 5}, "a path of the API"),
    ],
)
def test_bad_groups(name: str, table: object, rule: str) -> None:
    """Any other form is refused with the rule."""
    with pytest.raises(ValueError, match=rule):
        read_group(name, table)
