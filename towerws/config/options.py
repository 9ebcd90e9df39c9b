"""The table of options. Flags, environment variables, the file's keys, their help and docs/configuration.md all come from it.

A key `history.max_bytes` is `max_bytes` in the file's table `[history]`, the flag `--history-max-bytes` and the environment
variable `TOWERWS_HISTORY_MAX_BYTES`. The defaults come from the settings' classes.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any

from towerws.config.units import (
    GIB,
    KIB,
    MIB,
    Value,
    format_number,
    format_size,
    read_bool,
    read_count,
    read_duration,
    read_list,
    read_rate,
    read_size,
    read_text,
    read_whole_seconds,
    read_words,
)
from towerws.core.settings import (
    AccessSettings,
    BrokerSettings,
    HistorySettings,
    JwtSettings,
    LimitSettings,
    Settings,
    TowerSettings,
    WebSocketSettings,
)

ENVIRONMENT_PREFIX = "TOWERWS_"
FORMATS = ("auto", "text", "json")
LEVELS = ("debug", "info", "warn", "error", "critical")
CONFIG_FLAG = "config"
CONFIG_VARIABLE = "TOWERWS_CONFIG"
CONFIG_HELP = "TOML file to read. Flags and TOWERWS_* variables override it. Without this flag or TOWERWS_CONFIG no file is read."


class Kind(enum.Enum):
    """The kinds of value: the noun and unit in the documentation, and the function that reads one."""

    SIZE = ("size", "bytes", read_size)
    DURATION = ("duration", "seconds", read_duration)
    WHOLE_SECONDS = ("duration", "whole seconds", read_whole_seconds)
    COUNT = ("integer", "", read_count)
    RATE = ("number", "per second", read_rate)
    BOOL = ("boolean", "", read_bool)
    TEXT = ("text", "", read_text)
    WORDS = ("list", "words", read_words)
    LIST = ("list", "may be empty", read_list)
    URLS = ("list", "URLs", read_text)  # load.py splits and parses them: only it knows the password file

    def __init__(self, noun: str, unit: str, read: Callable[[object], Value]) -> None:
        self.noun = noun
        self.unit = unit
        self.read = read


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting. Its value is between `low` and `high`, both included. `default` None: the setting is required."""

    key: str
    kind: Kind
    default: Value | None
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    common: bool = False

    @property
    def flag(self) -> str:
        """The flag's name without its dashes."""
        return self.key.replace(".", "-").replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return ENVIRONMENT_PREFIX + self.key.upper().replace(".", "_")

    @property
    def secret(self) -> bool:
        """Whether a value may hold a password."""
        return self.kind is Kind.URLS

    @property
    def switch(self) -> bool:
        """Whether the flag takes no value. An option that is on by default takes one, to switch it off: `--check-origin false`."""
        return self.kind is Kind.BOOL and self.default is False

    def read(self, value: object) -> Value:
        """Return the typed value. Raises `ValueError` with the broken rule."""
        typed = self.kind.read(value)
        if self.choices and typed not in self.choices:
            raise ValueError(f"must be one of {', '.join(self.choices)}")
        if isinstance(typed, (int, float)) and self.kind is not Kind.BOOL:
            if self.low is not None and typed < self.low:
                raise ValueError(f"must be at least {self.format(self.low)}")
            if self.high is not None and typed > self.high:
                raise ValueError(f"must be at most {self.format(self.high)}")
        return typed

    def format(self, value: Value) -> str:
        """Return the text that `read` reads as this value."""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, (int, float)):
            return format_size(int(value)) if self.kind is Kind.SIZE else format_number(value)
        return value if isinstance(value, str) else ",".join(value)


def _defaults(settings: type) -> dict[str, Any]:
    return {each.name: each.default for each in dataclasses.fields(settings) if each.default is not dataclasses.MISSING}


_DEFAULTS: dict[str, Any] = {
    **_defaults(BrokerSettings),
    **_defaults(Settings),
    **_defaults(AccessSettings),
    **{f"limits.{name}": value for name, value in _defaults(LimitSettings).items()},
    **{f"history.{name}": value for name, value in _defaults(HistorySettings).items()},
    **{f"websocket.{name}": value for name, value in _defaults(WebSocketSettings).items()},
    **{f"tower.{name}": value for name, value in _defaults(TowerSettings).items()},
    **{f"jwt.{name}": value for name, value in _defaults(JwtSettings).items()},
    "tower.url": "",
    "jwt.algorithms": (),
    "broker": "embedded:",
    "broker_password_file": "",
    "auth": None,
}


def _option(key: str, kind: Kind, text: str, **more: Any) -> Option:
    return Option(key=key, kind=kind, default=_DEFAULTS[key], help=text, **more)


DAY_S = 86400
_S, _D, _WS, _C, _R, _B, _T, _L = Kind.SIZE, Kind.DURATION, Kind.WHOLE_SECONDS, Kind.COUNT, Kind.RATE, Kind.BOOL, Kind.TEXT, Kind.LIST

OPTIONS: tuple[Option, ...] = (
    _option(
        "broker",
        Kind.URLS,
        "Where events come from: amqp://user:password@host:port/vhost or amqps://…, several of one cluster separated by commas. "
        "embedded: means no broker: events come from POST /publish on the admin port.",
        common=True,
    ),
    _option(
        "auth",
        Kind.WORDS,
        "Methods that decide which clients may connect, tried in order. tower: users of AWX or Tower. jwt: clients with a signed token. "
        "open: everybody, and everybody hears everything. There is no default.",
        common=True,
    ),
    _option("listen", _T, "Address for websocket clients, as a Twisted endpoint. tcp:8051 means every IPv4 address.", common=True),
    _option(
        "admin",
        _T,
        "Address of the admin port (/healthz, /readyz, /status, /metrics, /publish), as a Twisted endpoint. Never make it public.",
        common=True,
    ),
    _option(
        "health",
        _T,
        "Address for probes and load balancers on other machines, as a Twisted endpoint. Serves only /healthz and /readyz, "
        "without reasons, so it may be public. Empty: only the admin port serves them.",
        common=True,
    ),
    _option(
        "monitor",
        _T,
        "Address for Prometheus and probes, as a Twisted endpoint. Serves only /metrics, /healthz and /readyz, so it may be public. "
        "Empty: only the admin port serves them.",
        common=True,
    ),
    _option(
        "log_format",
        _T,
        "Form of log lines. text: time, logger and level. json: one object per line. auto: text, or lines with priorities if "
        "standard output is systemd's journal.",
        choices=FORMATS,
        common=True,
    ),
    _option("log_level", _T, "Lowest level that is logged.", choices=LEVELS, common=True),
    _option(
        "consume",
        _T,
        "stream: a shared log with positions (RabbitMQ 3.9 or later). queue: a private queue, any RabbitMQ. auto: depends on the "
        "broker's version.",
        choices=("auto", "stream", "queue"),
        common=True,
    ),
    _option(
        "broker_password_file",
        _T,
        "File that holds the broker's password, for URLs without one. Unlike a flag, it isn't visible in ps.",
        common=True,
    ),
    _option(
        "insecure",
        _B,
        "Allow auth open, and the admin port, on addresses that other machines can reach. For test networks only.",
        common=True,
    ),
    _option("exchange", _T, "Topic exchange that producers publish to. It is durable. The daemon declares it unless passive is set."),
    _option(
        "control_exchange",
        _T,
        "Fanout exchange that carries revocations between daemons. It is durable. The daemon declares it unless passive is set. "
        "Empty: the name of exchange plus .control, that is towerws.control.",
    ),
    _option("stream", _T, "Stream that is bound to the exchange and that all daemons read (consume = stream)."),
    _option("passive", _B, "Declare nothing: exchange and stream must exist. For broker users without the configure permission."),
    _option("prefetch", _C, "Messages that the broker may send before towerws acknowledges them.", low=1, high=65535),
    _option("heartbeat_s", _WS, "AMQP heartbeat interval. RabbitMQ recommends 5 to 20.", low=1, high=600),
    _option(
        "silence_s", _D, "Close a broker connection that receives nothing for this long. At least twice heartbeat_s.", low=1, high=1200
    ),
    _option("attempt_s", _D, "Deadline of each step of connecting: connect, handshake, declare.", low=0.1, high=300),
    _option("backoff_min_s", _D, "First delay between attempts to connect. It doubles, with jitter.", low=0.01, high=300),
    _option("backoff_max_s", _D, "Longest delay between attempts to connect.", low=0.01, high=3600),
    _option(
        "stream_max_age_s", _WS, "How long the broker keeps messages in the stream. At least history.max_age_s.", low=1, high=366 * DAY_S
    ),
    _option("stream_max_bytes", _S, "Largest size of the stream on the broker. At least one segment.", low=KIB, high=1024 * GIB),
    _option(
        "stream_segment_bytes",
        _S,
        "Size of the stream's segment files. The broker deletes messages by whole segments.",
        low=KIB,
        high=3 * 10**9,  # RabbitMQ refuses larger ones (osiris, x-stream-max-segment-size-bytes)
    ),
    _option(
        "queue_max_bytes",
        _S,
        "consume = queue: largest size of the queue. Beyond it the broker drops the oldest messages.",
        low=KIB,
        high=1024 * GIB,
    ),
    _option("queue_ttl_s", _WS, "consume = queue: how long a message may stay in the queue.", low=1, high=DAY_S),
    _option(
        "position_key_file",
        _T,
        "File that holds the key for clients' positions. All daemons of a broker need the same key. Empty: derived from the "
        "broker credentials.",
    ),
    _option("tls_ca", _T, "PEM file with the certificate authorities to trust for amqps://. Empty: the system's."),
    _option("max_payload_bytes", _S, "Largest payload of an event. A larger message is counted and skipped.", low=KIB, high=512 * MIB),
    _option(
        "trusted_proxies",
        _L,
        "Addresses and networks (10.0.0.0/8) of proxies whose X-Forwarded-For and X-Forwarded-Host headers are trusted. unix: "
        "every client of a UNIX socket.",
    ),
    _option(
        "origins",
        _L,
        "Origins (https://portal.example.com) whose pages may connect. Pages of the host that they connect to always may.",
    ),
    _option(
        "check_origin",
        _B,
        "Refuse pages of origins other than the host's own, the admin port's and those in origins. Without this check, any page "
        "that a user opens can listen in the user's name.",
    ),
    _option(
        "check_xrftoken",
        _B,
        "Require AWX's xrftoken in each request of a client that authenticates by cookie. AWX before 1.0.7 has none.",
    ),
    _option(
        "revalidate_s",
        _D,
        "Interval between two checks of a connected credential. 0: never (AWX 1.0.5 to 2.1.2, where each check extends the session).",
        low=0,
        high=DAY_S,
    ),
    _option(
        "tower.url", _T, "auth tower: address of AWX or Tower, https://tower.example.com, without /api/. Use nginx's port, not uwsgi's."
    ),
    _option("tower.tls_ca", _T, "PEM file with the certificate authorities to trust for the API. Empty: the system's."),
    _option("tower.cookies", _L, "Names of the session cookie."),
    _option("tower.valid_s", _D, "How long a handshake may rely on a cached answer that a credential is valid.", low=0, high=3600),
    _option("tower.invalid_s", _D, "How long the answer that a credential is invalid is cached.", low=0, high=3600),
    _option("tower.allowed_s", _D, "How long the answer that a user may see an object is cached.", low=0, high=3600),
    _option("tower.denied_s", _D, "How long the answer that a user may not see an object is cached.", low=0, high=3600),
    _option("tower.cache_entries", _C, "Number of cached answers, for each of these four kinds.", low=1, high=10_000_000),
    _option("tower.calls", _C, "Concurrent calls to the API.", low=1, high=1000),
    _option(
        "tower.calls_waiting",
        _C,
        "Calls that may wait for one of these, counted separately for handshakes and for the rest. Beyond it a client is answered "
        "with 503.",
        low=0,
        high=100_000,
    ),
    _option(
        "tower.deadline_s",
        _D,
        "Timeout of a call to the API, from when it is sent. AWX's AngularJS pages give up a handshake after 3 s.",
        low=0.1,
        high=60,
    ),
    _option(
        "tower.password_calls", _C, "Concurrent calls with a password (Authorization: Basic), in addition to tower.calls.", low=1, high=1000
    ),
    _option("tower.password_deadline_s", _D, "Timeout of a call with a password. The API hashes the password first.", low=0.1, high=60),
    _option("tower.retry_s", _D, "How long a question about an object is retried if the API can't answer.", low=0, high=60),
    _option("tower.breaker_failures", _C, "Consecutive failures after which calls to the API pause.", low=1, high=1000),
    _option("tower.breaker_probe_s", _D, "Length of this pause, until one call probes the API.", low=0.1, high=3600),
    _option("jwt.algorithms", _L, "auth jwt: accepted algorithms, all of one kind: HS256 (shared secret), or RS256, ES256, EdDSA (key)."),
    _option("jwt.secret_file", _T, "File that holds the shared secret."),
    _option("jwt.public_key_file", _T, "PEM file with the issuer's public key."),
    _option("jwt.jwks_url", _T, "URL of the issuer's key set, instead of a file."),
    _option("jwt.jwks_ca_file", _T, "PEM file with the certificate authorities to trust for jwt.jwks_url. Empty: the system's."),
    _option("jwt.jwks_max_age_s", _D, "How long a fetched key set is used before it is fetched again.", low=0, high=30 * DAY_S),
    _option("jwt.jwks_stale_s", _D, "How much longer an old key set is used while it can't be fetched.", low=0, high=30 * DAY_S),
    _option("jwt.issuer", _T, "Required value of the claim iss. Empty: any value."),
    _option("jwt.audience", _L, "Accepted values of the claim aud: a token must name one of them. Empty: only tokens without aud."),
    _option("jwt.cookie", _T, "Name of the cookie that may hold the token. Empty: none."),
    _option("jwt.claim", _T, "Claim that lists the allowed topics: job_events.42, or job_events.* for a whole group."),
    _option("jwt.default_topics", _L, "Topics that a token without this claim allows."),
    _option("jwt.url_lifetime_s", _D, "Longest total lifetime of a token in the URL. Proxies write URLs to their logs.", low=0, high=DAY_S),
    _option("jwt.leeway_s", _D, "Tolerated difference to the issuer's clock.", low=0, high=300),
    _option(
        "limits.connections",
        _C,
        "Connections of the daemon. 0: as many as the process may open files, minus 64. Over any of these limits a client gets a 503.",
        low=0,
        high=10_000_000,
    ),
    _option("limits.per_address", _C, "Connections from one address. An IPv6 /64 counts as one address.", low=1, high=10_000_000),
    _option("limits.per_user", _C, "Connections of one user.", low=1, high=10_000_000),
    _option("limits.half_open", _C, "Connections from one address that aren't authenticated yet.", low=1, high=10_000_000),
    _option(
        "limits.accepts_per_s",
        _R,
        "Connections accepted per second. The others wait and aren't refused, so that a storm of new clients doesn't delay connected ones.",
        low=1,
        high=1_000_000,
    ),
    _option(
        "limits.replay_bytes_per_s",
        _S,
        "Bytes of history that one user may have replayed per second, on average. Beyond it a replay gets slower.",
        low=64 * KIB,
        high=16 * GIB,
    ),
    _option("history.max_bytes", _S, "Memory for recent events, from which clients resume and catch up.", low=KIB, high=64 * GIB),
    _option(
        "history.max_age_s",
        _D,
        "How long events stay in history. After a restart, history is refilled from the stream for the same span.",
        low=1,
        high=DAY_S,
    ),
    _option("websocket.head_bytes", _S, "Largest request line plus headers of a handshake.", low=KIB, high=MIB),
    _option("websocket.head_count", _C, "Headers in a handshake.", low=10, high=1000),
    _option("websocket.handshake_s", _D, "Timeout of a handshake, authentication included.", low=0.1, high=300),
    _option(
        "websocket.token_s",
        _D,
        "How long a client without a credential may take to send a valid token (auth jwt; auth tower in towerws.v1).",
        low=0.1,
        high=300,
    ),
    _option(
        "websocket.resume_wait_s",
        _D,
        "How long a client may wait until its position can be judged. Then it is closed with 1013 and told to reconnect with the "
        "same position.",
        low=0.1,
        high=300,
    ),
    _option("websocket.message_bytes", _S, "Largest message from a client.", low=KIB, high=16 * MIB),
    _option(
        "websocket.fragments",
        _C,
        "Fragments per message, and further fragments per second. A burst of twice as many is allowed.",
        low=1,
        high=10_000,
    ),
    _option("websocket.assembly_s", _D, "How long a message may take from its first byte to its last.", low=0.1, high=300),
    _option("websocket.topics", _C, "Topics that one connection may subscribe to.", low=1, high=1_000_000),
    _option("websocket.messages_per_s", _R, "Messages per second that a client may send, on average.", low=0.1, high=100_000),
    _option("websocket.messages_burst", _C, "Messages that a client may send at once.", low=1, high=100_000),
    _option("websocket.controls_per_s", _R, "Pings and pongs per second that a client may send, on average.", low=0.1, high=100_000),
    _option("websocket.controls_burst", _C, "Pings and pongs that a client may send at once.", low=1, high=100_000),
    _option("websocket.malformed", _C, "Consecutive malformed messages after which a client is closed with 1008.", low=1, high=100_000),
    _option(
        "websocket.backlog_bytes",
        _S,
        "Send buffer of one client. Beyond it the client falls behind and is fed from history. At most history.max_bytes.",
        low=4 * KIB,
        high=GIB,
    ),
    _option(
        "websocket.compression",
        _B,
        "Compress events (permessage-deflate) for clients that support it. Each event is compressed once for all of them. Useful "
        "where the network is the bottleneck.",
    ),
    _option("websocket.compression_bytes", _S, "Events smaller than this are sent uncompressed.", low=64, high=MIB),
    _option(
        "websocket.ping_s", _D, "Interval between pings. Must be below the idle timeout of every proxy (nginx: 60).", low=0.1, high=3600
    ),
    _option("websocket.pong_s", _D, "Timeout of the answer to a ping.", low=0.1, high=3600),
    _option("websocket.linger_s", _D, "How long a client may take to answer a close before the connection is aborted.", low=0.1, high=60),
    _option("websocket.drain_s", _D, "When the daemon stops, it spreads the closing of its connections over this time.", low=0, high=300),
)

BY_KEY: Mapping[str, Option] = {option.key: option for option in OPTIONS}
BY_VARIABLE: Mapping[str, Option] = {option.variable: option for option in OPTIONS}
BY_FLAG: Mapping[str, Option] = {option.flag: option for option in OPTIONS}
