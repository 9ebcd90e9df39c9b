"""The table of options: the one place from which flags, environment variables, the file's keys, their help and the docs come.

A key `history.max_bytes` is `max_bytes` in the file's table `[history]`, the flag `--history-max-bytes` and the environment
variable `TOWERWS_HISTORY_MAX_BYTES`. Defaults are those of the settings' own classes.
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
CONFIG_HELP = "The TOML file to read. Flags and TOWERWS_* variables win over it; none is read unless named here or by TOWERWS_CONFIG."


class Kind(enum.Enum):
    """The kinds of value: how each is read, and what the docs call it."""

    SIZE = ("size", "bytes", read_size)
    DURATION = ("duration", "seconds", read_duration)
    WHOLE_SECONDS = ("duration", "whole seconds", read_whole_seconds)
    COUNT = ("integer", "", read_count)
    RATE = ("number", "per second", read_rate)
    BOOL = ("boolean", "", read_bool)
    TEXT = ("text", "", read_text)
    WORDS = ("list", "words", read_words)
    LIST = ("list", "may be empty", read_list)
    URLS = ("list", "URLs", read_text)  # in fact split and parsed by load.py, which alone knows the password file

    def __init__(self, noun: str, unit: str, read: Callable[[object], Value]) -> None:
        self.noun = noun
        self.unit = unit
        self.read = read


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting. `low` and `high` bound it, both included; `default` None: it must be given."""

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
        """Whether the flag stands alone, without a value; what is on by default is switched off with `false` behind its flag."""
        return self.kind is Kind.BOOL and self.default is False

    def read(self, value: object) -> Value:
        """The typed value; `ValueError` states the rule that `value` breaks."""
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
        """A value as a person would write it."""
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
        "Where events come from: one or more amqp://user:password@host:port/vhost or amqps://… of one cluster, tried in turn, or "
        "embedded: for no broker at all (events then come from POST /publish on the admin port).",
        common=True,
    ),
    _option(
        "auth",
        Kind.WORDS,
        "Who may listen: methods tried in order. tower: whoever AWX or Tower knows. jwt: whoever brings a signed token. open: everybody "
        "who can connect hears everything. There is no default.",
        common=True,
    ),
    _option("listen", _T, "Where browsers connect, as a Twisted endpoint: tcp:8051 is every IPv4 address.", common=True),
    _option(
        "admin", _T, "Where /healthz, /readyz, /status and /publish are served, as a Twisted endpoint. Never make it public.", common=True
    ),
    _option(
        "health",
        _T,
        "Where only /healthz and /readyz are served, as a Twisted endpoint, for probes and load balancers on other machines. Tells no "
        "more than whether it is ready; may be public. Empty: nowhere but on the admin port.",
        common=True,
    ),
    _option(
        "log_format",
        _T,
        "How log lines look. text: time, logger and level. json: one object a line. auto: text, or lines with priorities where standard "
        "output is systemd's journal.",
        choices=FORMATS,
        common=True,
    ),
    _option("log_level", _T, "The least level that is logged.", choices=LEVELS, common=True),
    _option(
        "consume",
        _T,
        "stream: a shared log with positions (RabbitMQ 3.9 or later). queue: a private queue, any RabbitMQ. auto: by the broker's version.",
        choices=("auto", "stream", "queue"),
        common=True,
    ),
    _option(
        "broker_password_file",
        _T,
        "A file that holds the broker's password, for URLs without one; unlike a flag it is not shown by ps.",
        common=True,
    ),
    _option(
        "insecure",
        _B,
        "Allow auth open, and the admin port, on addresses that other machines can reach. For test networks only.",
        common=True,
    ),
    _option("exchange", _T, "The topic exchange that producers publish to. Durable; declared unless passive is set."),
    _option(
        "control_exchange",
        _T,
        "The fanout exchange over which daemons tell each other whose connections to end. Durable; declared unless passive is set. "
        "Empty: the name of exchange with .control behind it, towerws.control.",
    ),
    _option("stream", _T, "The stream bound to the exchange, from which every process reads (consume = stream)."),
    _option("passive", _B, "Declare nothing: exchange and stream must exist. For users without the configure permission."),
    _option("prefetch", _C, "Messages the broker may send ahead of our acknowledgements.", low=1, high=65535),
    _option("heartbeat_s", _WS, "The AMQP heartbeat. RabbitMQ advises 5 to 20.", low=1, high=600),
    _option("silence_s", _D, "A broker that sends nothing for this long is given up: at least twice heartbeat_s.", low=1, high=1200),
    _option("attempt_s", _D, "The deadline of each step of connecting: connect, handshake, declare.", low=0.1, high=300),
    _option("backoff_min_s", _D, "The first pause between attempts to connect; it doubles, with jitter.", low=0.01, high=300),
    _option("backoff_max_s", _D, "The longest pause between attempts to connect.", low=0.01, high=3600),
    _option(
        "stream_max_age_s", _WS, "How long the broker keeps the stream's messages. At least history.max_age_s.", low=1, high=366 * DAY_S
    ),
    _option("stream_max_bytes", _S, "How large the broker lets the stream grow. At least one segment.", low=KIB, high=1024 * GIB),
    _option(
        "stream_segment_bytes",
        _S,
        "The size of the stream's segment files; the broker drops messages by whole segments.",
        low=KIB,
        high=3 * 10**9,  # RabbitMQ refuses larger ones (osiris, x-stream-max-segment-size-bytes)
    ),
    _option(
        "queue_max_bytes", _S, "consume = queue: what may wait in the queue; beyond it the oldest is dropped.", low=KIB, high=1024 * GIB
    ),
    _option("queue_ttl_s", _WS, "consume = queue: how long a message may wait in the queue.", low=1, high=DAY_S),
    _option(
        "position_key_file",
        _T,
        "A file that holds the key of clients' positions, the same for all daemons of a broker. Empty: made from the credentials.",
    ),
    _option("tls_ca", _T, "A PEM file of the authorities trusted for amqps://; empty: the system's."),
    _option("max_payload_bytes", _S, "A larger message is counted and skipped.", low=KIB, high=512 * MIB),
    _option(
        "trusted_proxies",
        _L,
        "Addresses and networks (10.0.0.0/8) of the proxies whose X-Forwarded-For and X-Forwarded-Host are believed; unix: whoever "
        "connects to a UNIX socket.",
    ),
    _option(
        "origins",
        _L,
        "Origins (https://portal.example.com) whose pages may connect with a cookie or password, beside those of the host they connect to.",
    ),
    _option(
        "check_origin",
        _B,
        "Refuse pages of other origins than the host's own, the admin port's and those listed. Without it any page that a user opens "
        "can listen in the user's name, and on the user's machine.",
    ),
    _option(
        "check_xrftoken",
        _B,
        "Ask clients that come with a cookie for AWX's xrftoken in each request. AWX before 1.0.7 has none.",
    ),
    _option(
        "revalidate_s",
        _D,
        "How often the credentials of open connections are checked anew; 0: never (AWX 1.0.5 to 2.1.2, whose sessions each check extends).",
        low=0,
        high=DAY_S,
    ),
    _option(
        "tower.url", _T, "auth tower: where the API is, https://tower.example.com, without /api/. Asked through nginx, not at uwsgi's port."
    ),
    _option("tower.tls_ca", _T, "A PEM file of the authorities trusted for the API; empty: the system's."),
    _option("tower.cookies", _L, "What the session cookie may be called."),
    _option("tower.valid_s", _D, "How long the API's word that a credential is good counts for handshakes.", low=0, high=3600),
    _option("tower.invalid_s", _D, "How long its word that one is bad counts.", low=0, high=3600),
    _option("tower.allowed_s", _D, "How long its word that a user sees an object counts.", low=0, high=3600),
    _option("tower.denied_s", _D, "How long its word that a user does not see one counts.", low=0, high=3600),
    _option("tower.cache_entries", _C, "How many answers are kept, of each of these four kinds.", low=1, high=10_000_000),
    _option("tower.calls", _C, "Calls to the API at the same time.", low=1, high=1000),
    _option(
        "tower.calls_waiting",
        _C,
        "Calls that may wait for that, handshakes and others apart; beyond it the answer is unavailable (503).",
        low=0,
        high=100_000,
    ),
    _option(
        "tower.deadline_s",
        _D,
        "How long a call may take once it is sent. AWX's AngularJS pages give up a handshake after 3 s.",
        low=0.1,
        high=60,
    ),
    _option(
        "tower.password_calls", _C, "Calls with a password (Authorization: Basic) at the same time, beside the others.", low=1, high=1000
    ),
    _option("tower.password_deadline_s", _D, "How long such a call may take: the API hashes the password first.", low=0.1, high=60),
    _option("tower.retry_s", _D, "For how long the question about an object is put again when it can't be answered.", low=0, high=60),
    _option("tower.breaker_failures", _C, "Failures in a row after which the API is left alone for a while.", low=1, high=1000),
    _option("tower.breaker_probe_s", _D, "How long until it is tried again.", low=0.1, high=3600),
    _option(
        "jwt.algorithms", _L, "auth jwt: the algorithms that count, of one kind: HS256 (a shared secret) or RS256, ES256, EdDSA (a key)."
    ),
    _option("jwt.secret_file", _T, "A file with the shared secret."),
    _option("jwt.public_key_file", _T, "A PEM file with the issuer's public key."),
    _option("jwt.jwks_url", _T, "Where the issuer publishes its keys, in place of a file."),
    _option("jwt.jwks_ca_file", _T, "A PEM file of the authorities trusted for that; empty: the system's."),
    _option("jwt.jwks_max_age_s", _D, "How long those keys count before they are fetched anew.", low=0, high=30 * DAY_S),
    _option("jwt.jwks_stale_s", _D, "How long they count after that while they can't be fetched.", low=0, high=30 * DAY_S),
    _option("jwt.issuer", _T, "What iss must be; empty: anything."),
    _option("jwt.audience", _L, "Of what aud must name one; empty: tokens without aud only."),
    _option("jwt.cookie", _T, "The cookie that may bring the token; empty: none."),
    _option("jwt.claim", _T, "The claim that lists what may be subscribed to: job_events.42, or job_events.* for all of a group."),
    _option("jwt.default_topics", _L, "What a token without that claim grants."),
    _option(
        "jwt.url_lifetime_s", _D, "How long a token in the URL may be valid in all: it is written to logs on its way.", low=0, high=DAY_S
    ),
    _option("jwt.leeway_s", _D, "By how much the issuer's clock may differ.", low=0, high=300),
    _option(
        "limits.connections",
        _C,
        "Connections in all; 0: as many as the process may open files, less 64. Beyond each of these limits the answer is 503.",
        low=0,
        high=10_000_000,
    ),
    _option("limits.per_address", _C, "Connections from one address (an IPv6 /64 counts as one).", low=1, high=10_000_000),
    _option("limits.per_user", _C, "Connections of one user.", low=1, high=10_000_000),
    _option("limits.half_open", _C, "Connections from one address that are not authenticated yet.", low=1, high=10_000_000),
    _option(
        "limits.accepts_per_s",
        _R,
        "Connections accepted a second; more of them wait, and are not refused. Keeps a storm of clients from holding up the others.",
        low=1,
        high=1_000_000,
    ),
    _option(
        "limits.replay_bytes_per_s",
        _S,
        "What one user may have replayed from history, each second in the long run; beyond it a replay goes on more slowly.",
        low=64 * KIB,
        high=16 * GIB,
    ),
    _option("history.max_bytes", _S, "Memory for recent messages, from which clients resume and catch up.", low=KIB, high=64 * GIB),
    _option("history.max_age_s", _D, "How long messages are kept for that; a restart refills as much from the stream.", low=1, high=DAY_S),
    _option("websocket.head_bytes", _S, "The opening handshake's request line and headers.", low=KIB, high=MIB),
    _option("websocket.head_count", _C, "Its number of headers.", low=10, high=1000),
    _option("websocket.handshake_s", _D, "How long the opening handshake may take, authentication included.", low=0.1, high=300),
    _option(
        "websocket.token_s",
        _D,
        "How long a client that came without a credential has for sending a good token (auth jwt).",
        low=0.1,
        high=300,
    ),
    _option(
        "websocket.resume_wait_s",
        _D,
        "How long a client may wait until its position can be judged. Then it is told to come back, and the position stays good.",
        low=0.1,
        high=300,
    ),
    _option("websocket.message_bytes", _S, "A client's message.", low=KIB, high=16 * MIB),
    _option(
        "websocket.fragments",
        _C,
        "Frames that one client message may come in. Frames behind a message's first: so many a second, twice that at once.",
        low=1,
        high=10_000,
    ),
    _option("websocket.assembly_s", _D, "How long a message may take from its first byte to its last.", low=0.1, high=300),
    _option("websocket.topics", _C, "Topics that one connection may hold.", low=1, high=1_000_000),
    _option("websocket.messages_per_s", _R, "Messages a client may send, on average.", low=0.1, high=100_000),
    _option("websocket.messages_burst", _C, "Messages a client may send at once.", low=1, high=100_000),
    _option("websocket.controls_per_s", _R, "Pings and pongs a client may send, on average.", low=0.1, high=100_000),
    _option("websocket.controls_burst", _C, "Pings and pongs a client may send at once.", low=1, high=100_000),
    _option("websocket.malformed", _C, "Messages that can't be understood before the client is closed with 1008.", low=1, high=100_000),
    _option(
        "websocket.backlog_bytes",
        _S,
        "What may wait for a slow client; beyond it the client is fed from history. At most history.max_bytes.",
        low=4 * KIB,
        high=GIB,
    ),
    _option(
        "websocket.compression",
        _B,
        "Compress events for clients that ask for it (permessage-deflate): once for all of them. Pays where the network is what is short.",
    ),
    _option("websocket.compression_bytes", _S, "Events shorter than this are sent as they are.", low=64, high=MIB),
    _option("websocket.ping_s", _D, "The time between pings. Less than the idle timeout of every proxy (nginx: 60).", low=0.1, high=3600),
    _option("websocket.pong_s", _D, "How long the answer to a ping may take.", low=0.1, high=3600),
    _option("websocket.linger_s", _D, "How long a client has to answer a close before it is cut off.", low=0.1, high=60),
    _option("websocket.drain_s", _D, "Over how long the clients are closed when the daemon stops.", low=0, high=300),
)

BY_KEY: Mapping[str, Option] = {option.key: option for option in OPTIONS}
BY_VARIABLE: Mapping[str, Option] = {option.variable: option for option in OPTIONS}
BY_FLAG: Mapping[str, Option] = {option.flag: option for option in OPTIONS}
