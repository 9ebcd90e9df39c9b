"""Topics, payloads, addresses, settings: which are accepted, and which error each invalid one gets."""

import collections
import decimal
from typing import Any, Dict, List, Optional

import pytest
from tests.kit.rows import each_row

from towerws.config.addresses import parse_broker_url
from towerws.core.topics import is_routing_key
from towerws_producer import BadPayload, BadTopic, ConfigError, PayloadTooLarge, Producer, ProducerError
from towerws_producer.address import parse_address, parse_addresses
from towerws_producer.awx import Relay, _arguments, is_ours, wrapped_name
from towerws_producer.buffer import EVENT_BYTES
from towerws_producer.folded_log import EVERY_S, FoldedLog
from towerws_producer.payload import encode
from towerws_producer.settings import Settings
from towerws_producer.topics import check_topic, topic_of_flat_name

TOPICS = [
    "job_events.42", "a.b", "a" * 64 + "." + "b" * 128, "jobs.status_changed", "a.!~", "control.limit_reached_7", "a.b-c",
    "", "a", ".", "a.", ".b", "a.b.c", "a.*", "#.b", "a.#", "a b.c", "a.b c", "a-b.c", 'a."', "a.\\", "a.é", "ä.b", "a.\n", "a.b\n",
    "a" * 65 + ".b", "a." + "b" * 129, "a.\x7f", "a.\0", "a.\ud83d",
]  # fmt: skip


@each_row("message_id", ["", "a" * 256, "\udcff"], ids=ascii)
def test_ids_that_are_refused(message_id: str) -> None:
    """An id that AMQP can't carry is an error at once. In the buffer, it would end each connection, and hold up all events behind it."""
    with pytest.raises(ConfigError, match="message_id: expected text of 1 to 255 bytes"):
        Producer("amqp://127.0.0.1:1").publish("jobs.1", {}, 0.01, message_id)


@each_row("topic", TOPICS, ids=ascii)
def test_the_daemon_and_the_producer_agree_on_topics(topic: str) -> None:
    """The producer accepts exactly the topics that the daemon accepts."""
    try:
        agreed = check_topic(topic) == topic
    except BadTopic:
        agreed = False
    assert agreed == is_routing_key(topic)


@each_row(
    ("name", "topic"),
    [
        ("job_events-42", "job_events.42"),
        ("control-limit_reached_7", "control.limit_reached_7"),
        ("a-b-c", "a.b-c"),
        ("metrics", None),
        ("a-", None),
        ("-b", None),
        ("a-b.c", None),
    ],
)
def test_flat_names_are_split_at_the_first_dash(name: str, topic: Optional[str]) -> None:
    """AWX makes its own names that way."""
    if topic is None:
        with pytest.raises(BadTopic):
            topic_of_flat_name(name)
    else:
        assert topic_of_flat_name(name) == topic


class Shouting:
    """A value whose methods raise odd errors."""

    def __iter__(self) -> Any:
        """Not called."""
        raise KeyError("no")


@each_row(
    ("payload", "body"),
    [
        ({"a": 1, "b": ["é"]}, b'{"a":1,"b":["\\u00e9"]}'),
        (collections.OrderedDict([("b", 1), ("a", 2)]), b'{"b":1,"a":2}'),
        (collections.ChainMap({"a": 1}), b'{"a":1}'),
        ('{"a": "é\\ud83d", "n": NaN}', '{"a": "é\\ud83d", "n": NaN}'.encode()),
        (b' {"a" : 1}\r\n', b' {"a" : 1}\r\n'),
        (bytearray(b"{}"), b"{}"),
    ],
)
def test_payloads_that_are_taken(payload: Any, body: bytes) -> None:
    """A mapping is encoded compactly. JSON text passes byte for byte."""
    assert encode(payload, 100) == body


LOOP: Dict[str, Any] = {}
LOOP["me"] = LOOP
DEEP: List[Any] = []
for _ in range(10_000):
    DEEP = [DEEP]


@each_row(
    "payload",
    [
        {"a": float("nan")}, {"a": float("inf")}, {"a": object()}, {"a": {1, 2}}, {"a": b"bytes"}, {("tuple",): 1},
        {"a": decimal.Decimal(1)},
        LOOP, {"a": DEEP}, "", "nonsense", "[1]", "{", "}", "{} x", b"\xff{}", b'{"a": "\xff"}', '{"a": "\ud83d"}', None, 7, [1],
        Shouting(),
    ],
    ids=lambda payload: type(payload).__name__,
)  # fmt: skip
def test_payloads_that_are_refused(payload: Any) -> None:
    """Each one raises `BadPayload`, whichever error the encoder raised."""
    with pytest.raises(BadPayload):
        encode(payload, 10_000_000)


def test_the_bound_is_on_the_encoded_bytes() -> None:
    """A payload of the exact bound is accepted, one byte more is not."""
    assert len(encode({"a": "é"}, 14)) == 14
    for payload in ({"a": "é"}, '{"a": "xxxxxx"}', b'{"a": "xxxxxx"}'):
        with pytest.raises(PayloadTooLarge):
            encode(payload, 13)


def test_an_event_that_is_larger_than_the_buffer() -> None:
    """It is refused, and costs no other event. The text names the setting and the largest payload, which is accepted."""
    producer = Producer("amqp://127.0.0.1:1", buffer_bytes=100_000)
    for _ in range(50):
        producer.emit("jobs.1", {})
    largest = 100_000 - EVENT_BYTES
    too_large = '{"a": "%s"}' % ("x" * (largest - 8))
    assert not producer.emit("jobs.1", too_large)
    with pytest.raises(PayloadTooLarge, match=f"buffer_bytes = 100000 has room for {largest}"):
        producer.publish("jobs.1", too_large)
    stats = producer.stats()
    assert (stats["emitted"], stats["buffered"], stats["dropped"]) == (50, 50, {"too_large": 1})
    assert producer.emit("jobs.1", too_large.replace("x", "", 1))
    assert (producer.stats()["buffered"], producer.stats()["buffered_bytes"]) == (1, 100_000)
    producer.close(timeout=0)


URLS = [
    "amqp://host", "amqp://host/", "amqp://host/%2F", "amqp://host/v", "AMQPS://u:p@host", "amqp://u@host", "amqp://u:@host", "amqp://u:p@[::1]:7/v",
    "amqp://u:p@ss:w/or#d@host:1/v", "amqp://u:%40%2F@host", "amqp://u:100%@host", "amqp://%75:p@h",
    "", "amqp:", "http://host", "amqp://", "amqp://u:p@", "amqp://:p@host", "amqp://host:0", "amqp://host:x", "amqp://host:65536", "amqp://host/a/b",
    "amqp://host?heartbeat=1", "amqp://host#x", "amqp://u:%ff@host", "amqp://a b", "amqp://u:s3cret@ho st",
]  # fmt: skip


@each_row("url", URLS)
def test_the_daemon_and_the_producer_agree_on_urls(url: str) -> None:
    """A URL means the same broker for both, and both refuse the same URLs. No text and no repr has the password."""
    try:
        theirs = parse_broker_url(url)
    except ValueError:
        with pytest.raises(ConfigError) as raised:
            parse_address(url)
        assert "s3cret" not in str(raised.value)
        return
    ours = parse_address(url)
    assert (ours.host, ours.port, ours.username, ours.password, ours.vhost, ours.tls) == (
        theirs.host, theirs.port, theirs.username, theirs.password.reveal(), theirs.vhost, theirs.tls,
    )  # fmt: skip
    if len(ours.password) > 5:  # "p" is in every URL
        assert ours.password not in f"{ours} {ours!r}"


def test_several_addresses() -> None:
    """Several addresses may be given with commas, as a list, or as one URL after the other."""
    assert [address.host for address in parse_addresses("amqp://u:p,w@a , amqps://b")] == ["a", "b"]
    assert [address.host for address in parse_addresses(["amqp://a", "amqp://b"])] == ["a", "b"]
    nothings: List[Any] = ["", " ", []]
    for nothing in nothings:
        with pytest.raises(ConfigError, match="TOWERWS_BROKER"):
            parse_addresses(nothing)


def test_settings_come_from_arguments_or_the_environment() -> None:
    """An argument wins. An empty variable counts as unset."""
    environ = {"TOWERWS_BROKER": "amqp://there", "TOWERWS_EXCHANGE": "", "TOWERWS_TLS_CA": "/ca.pem"}
    settings = Settings(environ=environ)
    assert (settings.addresses[0].host, settings.exchange, settings.tls_ca) == ("there", "towerws", "/ca.pem")
    assert Settings("amqp://here", exchange="mine", environ=environ).addresses[0].host == "here"


@each_row(
    ("settings", "text"),
    [
        ({"buffer_bytes": 10}, "buffer_bytes"),
        ({"confirm_s": 0}, "confirm_s"),
        ({"confirm_s": "soon"}, "confirm_s"),
        ({"heartbeat_s": True}, "heartbeat_s"),
        ({"exit_s": float("inf")}, "exit_s"),
        ({"exchange": ""}, "exchange"),
        ({"exchange": "x" * 128}, "exchange"),
        ({"exchange": "\udcff"}, "exchange"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_settings_that_are_refused(settings: Dict[str, Any], text: str) -> None:
    """The error names each one."""
    with pytest.raises(ConfigError, match=text):
        Producer("amqp://h", **settings)


class Clock:
    """A clock that the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        """The clock's time."""
        return self.now


def test_a_burst_of_log_lines_is_folded(caplog: pytest.LogCaptureFixture) -> None:
    """One line for each kind and minute. The next one has the number of those left out."""
    clock = Clock()
    log = FoldedLog(clock)
    for _ in range(100):
        log.fold("a", "first kind")
    log.fold("b", "second kind")
    clock.now += EVERY_S
    log.fold("a", "first kind")
    assert caplog.messages == ["first kind", "second kind", "first kind (99 more of this kind since the last such line)"]


@pytest.mark.parametrize(
    ("config", "kept"),
    [({}, False), ({"url": "nonsense://u:s3cret@h"}, False), ({"broker": "amqp://h", "exit_s": -1}, False), ({"url": "amqp://h"}, True)],
)
def test_a_layer_with_wrong_settings_costs_awx_nothing(
    config: Dict[str, Any], kept: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It logs that once, without the password, and counts each dropped event."""
    monkeypatch.delenv("TOWERWS_BROKER", raising=False)
    relay = Relay({**config, "model": "awx.main.models.channels.ChannelGroup"})
    assert (relay.producer is not None) == kept
    if not kept:
        relay.send("jobs-summary", {"text": "{}"})
        assert relay.refused == {"config": 1}
        assert len(caplog.messages) == 1
        assert "s3cret" not in caplog.text


@each_row(
    ("name", "message", "reason"),
    [
        ("control-limit_reached", {"text": "{}"}, "withheld"),
        ("metrics", {"text": "{}"}, "topic"),
        (b"jobs-summary", {"text": "{}"}, "topic"),
        (None, {"text": "{}"}, "topic"),
        ("jobs-summary", {"bytes": b"{}"}, "payload"),
        ("jobs-summary", None, "payload"),
        ("jobs-summary", {"text": 7}, "payload"),
    ],
)
def test_what_a_layer_refuses(name: Any, message: Any, reason: str) -> None:
    """Each has its reason, and nothing raises."""
    relay = Relay({"broker": "amqp://127.0.0.1:1"})
    relay.send(name, message)
    assert relay.refused == {reason: 1}


@each_row(
    ("text", "name"),
    [
        ('{"group": "jobs-summary", "message": "{}"}', "jobs-summary"),
        ('{"message": "{}", "group": "metrics"}', "metrics"),
        ('{"group": 7}', ""),
        ("[1]", ""),
        ("nonsense", ""),
        (None, ""),
        ("", ""),
    ],
)
def test_the_name_in_a_broadcast_copy(text: Any, name: str) -> None:
    """The usual form is found without decoding the whole text. Any other text raises nothing."""
    assert wrapped_name(text) == name


def test_the_ten_groups() -> None:
    """Exactly the groups that browsers subscribe to, without those of AWX's nodes."""
    assert is_ours("job_events-42")
    assert is_ours("control-limit_reached_7")
    for name in ("metrics", "broadcast-group_send", "specific.abc!def", "jobs_of_mine-1", ""):
        assert not is_ours(name)


def test_emit_never_raises(caplog: pytest.LogCaptureFixture) -> None:
    """Bad topics and payloads of every kind, and a producer without a broker."""
    producer = Producer("amqp://127.0.0.1:1")
    topics: List[Any] = ["a", None, 7, b"a.b", "a.b"]
    for topic in topics:
        assert not producer.emit(topic, Shouting())  # type: ignore[arg-type]
    assert producer.stats()["dropped"] == {"topic": 4, "payload": 1}
    producer.close(timeout=0)
    assert all("Shouting" not in message or "payload" in message for message in caplog.messages)


def test_the_root_of_all_errors() -> None:
    """One `except` catches all of them, and each has its own word."""
    import towerws_producer  # noqa: PLC0415

    errors = [item for item in vars(towerws_producer).values() if isinstance(item, type) and issubclass(item, ProducerError)]
    assert len(errors) == 15
    assert len({error.reason for error in errors}) == len(errors)


@each_row(
    ("url", "vhosts"),
    [
        ("amqp://guest:guest@localhost:5672//", ["/"]),
        ("amqp://localhost//", ["/"]),
        ("amqp://guest:guest@localhost:5672/", ["/"]),
        ("amqp://guest:guest@localhost:5672/%2F", ["/"]),
        ("amqp://tower:p%2F@h/tower", ["tower"]),
        ("amqp://u:p/w@h//a/b", ["/a/b"]),
        ("amqp://u:p@a//,amqps://u:p@b/v", ["/", "v"]),
    ],
)
def test_the_url_of_awxs_own_settings(monkeypatch: pytest.MonkeyPatch, url: str, vhosts: List[str]) -> None:
    """`url` means what it meant to kombu, which the former layer used: a slash needs no %2F. AWX's default ends with two."""
    monkeypatch.delenv("TOWERWS_BROKER", raising=False)
    arguments = _arguments({"url": url, "model": "awx.main.models.channels.ChannelGroup", "prefix": "x"})
    settings = Settings(environ={}, **arguments)
    assert [address.vhost for address in settings.addresses] == vhosts
    assert settings.addresses[0].password in ("guest", "p/", "p/w", "p")


@each_row("url", [None, "", "redis://h//", "nonsense", "amqp://u:s3cret@h//?x=1"])
def test_a_url_that_is_none(monkeypatch: pytest.MonkeyPatch, url: Any) -> None:
    """It is refused as before, without its password."""
    monkeypatch.delenv("TOWERWS_BROKER", raising=False)
    with pytest.raises(ConfigError) as raised:
        Settings(environ={}, **_arguments({"url": url}))
    assert "s3cret" not in str(raised.value)
