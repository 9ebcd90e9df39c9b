"""The settings: typed, frozen and valid. `towerws/config/load.py` makes them from flags, environment and file.

One field made by `option` is all that an option needs. `towerws/config/options.py` makes the key, the flag, the environment variable and
their documentation from it. The values of the other fields follow from other settings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
DAY_S = 86400

Default = TypeVar("Default")


def option(
    default: Default,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    common: bool = False,
    reload: bool | None = None,
) -> Default:
    """Return a dataclass field that is an option with this default.

    `text` is the help: it gives the meaning of an empty value or 0. `low` and `high` are bounds, both included. `common` options
    come first in the help. Type and unit follow from the annotation and from the end of the name.

    `reload` says whether SIGHUP puts a new value in force, or only a restart does. None: as the option's section says (`Settings`).
    """
    metadata = {"help": text, "low": low, "high": high, "choices": choices, "common": common, "reload": reload}
    return field(default=default, metadata=metadata)


class Secret:
    """A password or token. `str`, `repr` and tracebacks never show it. Call `.reveal()` only where it is used."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """The parts of one `amqp://user:password@host:port/vhost`. `str()` masks the password."""

    host: str
    port: int
    username: str
    password: Secret
    vhost: str
    tls: bool

    def __str__(self) -> str:
        scheme = "amqps" if self.tls else "amqp"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{quote(self.username, safe='')}:***@{host}:{self.port}/{quote(self.vhost, safe='')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """How to reach RabbitMQ, and what to consume there. All sizes are bytes, all times seconds."""

    urls: tuple[BrokerUrl, ...]
    """From the option `broker`, and the password of `broker_password_file`."""
    consume: str = option(
        "auto",
        "stream: a shared log with positions (RabbitMQ 3.9 or later). queue: a private queue, any RabbitMQ. auto: stream if the "
        "broker has streams, else queue.",
        choices=("auto", "stream", "queue"),
        common=True,
    )
    broker_password_file: str = option(
        "",
        "File that holds the broker's password, for URLs without one. Unlike a password in --broker, it isn't visible in ps.",
        common=True,
    )
    exchange: str = option(
        "towerws", "Topic exchange that producers publish to. It is durable. The daemon declares it unless passive is set."
    )
    control_exchange: str = option(
        "",
        "Fanout exchange that carries revocations between daemons. It is durable. The daemon declares it unless passive is set. "
        "Empty: the name of exchange plus .control, that is towerws.control.",
    )
    stream: str = option("towerws.events", "Stream that is bound to the exchange and that all daemons read (consume = stream).")
    passive: bool = option(
        False,
        "Don't declare or bind the exchanges and the stream. They must exist, and the stream must be bound to exchange with #. Private "
        "queues are still declared and bound.",
    )
    prefetch: int = option(1000, "Messages that the broker may send before towerws acknowledges them.", low=1, high=65535)
    heartbeat_s: int = option(10, "AMQP heartbeat interval. RabbitMQ recommends 5 to 20.", low=1, high=600)
    silence_s: float = option(
        20, "Close a broker connection that receives nothing for this long. At least twice heartbeat_s.", low=1, high=1200
    )
    attempt_s: float = option(10, "Deadline of each step of connecting: connect, handshake, declare.", low=0.1, high=300)
    backoff_min_s: float = option(0.5, "First delay between attempts to connect. It doubles, with jitter.", low=0.01, high=300)
    backoff_max_s: float = option(10, "Longest delay between attempts to connect.", low=0.01, high=3600)
    stream_max_age_s: int = option(
        3600, "How long the broker keeps messages in the stream. At least history.max_age_s.", low=1, high=366 * DAY_S
    )
    stream_max_bytes: int = option(
        GIB, "Largest size of the stream on the broker. At least stream_segment_bytes.", low=KIB, high=1024 * GIB
    )
    stream_segment_bytes: int = option(
        16 * MIB,
        "Size of the stream's segment files. The broker deletes messages by whole segments.",
        low=KIB,
        high=3 * 10**9,  # RabbitMQ refuses larger ones (osiris, x-stream-max-segment-size-bytes)
    )
    queue_max_bytes: int = option(
        64 * MIB, "consume = queue: largest size of the queue. Beyond it the broker drops the oldest messages.", low=KIB, high=1024 * GIB
    )
    queue_ttl_s: int = option(30, "consume = queue: how long a message may stay in the queue.", low=1, high=DAY_S)
    position_key_file: str = option(
        "",
        "File that holds the key for clients' positions. All daemons of a broker need the same key. Empty: derived from the "
        "broker credentials.",
    )
    tls_ca: str = option("", "PEM file with the certificate authorities to trust for amqps://. Empty: the system's.")
    refill_s: float = 120
    """How far back a refill reads the stream: the value of `history.max_age_s`."""
    position_key: Secret | None = None
    """The content of `position_key_file`. None: the key is derived from the credentials in `urls`."""

    @property
    def control(self) -> str:
        """The name of the control exchange."""
        return self.control_exchange or f"{self.exchange}.control"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySettings:
    """The bounds of history. Beyond either of them, history drops its oldest deliveries."""

    max_bytes: int = option(64 * MIB, "Memory for recent events, from which clients resume and catch up.", low=KIB, high=64 * GIB)
    max_age_s: float = option(
        120, "How long events stay in history. After a restart, history is refilled from the stream for the same span.", low=1, high=DAY_S
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketSettings:
    """The limits of one connection. All sizes are bytes, all times seconds. docs/operations.md has the sources of the numbers."""

    head_bytes: int = option(16 * KIB, "Largest request line plus headers of a handshake.", low=KIB, high=MIB)
    head_count: int = option(100, "Largest number of headers in a handshake.", low=10, high=1000)
    handshake_s: float = option(15, "Timeout of a handshake, authentication included.", low=0.1, high=300)
    token_s: float = option(
        10, "How long a client without a credential may take to send a valid token (auth jwt; auth tower in towerws.v1).", low=0.1, high=300
    )
    resume_wait_s: float = option(
        10,
        "How long a client waits for the daemon to judge its position. After that it is closed with 1013 and told to reconnect with the "
        "same position.",
        low=0.1,
        high=300,
    )
    message_bytes: int = option(64 * KIB, "Largest message from a client.", low=KIB, high=16 * MIB)
    fragments: int = option(
        64,
        "Largest number of fragments in a message. A client's fragments after the first one of a message are also bounded to this number "
        "per second, and to twice as many at once.",
        low=1,
        high=10_000,
    )
    assembly_s: float = option(10, "How long a message may take from its first byte to its last.", low=0.1, high=300)
    topics: int = option(1000, "Topics that one connection may subscribe to.", low=1, high=1_000_000)
    messages_per_s: float = option(20, "Messages per second that a client may send, on average.", low=0.1, high=100_000)
    messages_burst: int = option(40, "Messages that a client may send at once.", low=1, high=100_000)
    controls_per_s: float = option(20, "Pings and pongs per second that a client may send, on average.", low=0.1, high=100_000)
    controls_burst: int = option(40, "Pings and pongs that a client may send at once.", low=1, high=100_000)
    malformed: int = option(10, "Consecutive malformed messages after which a client is closed with 1008.", low=1, high=100_000)
    backlog_bytes: int = option(
        256 * KIB,
        "Send buffer of one client. Beyond it the client falls behind and is fed from history. At most history.max_bytes.",
        low=4 * KIB,
        high=GIB,
    )
    compression: bool = option(
        False,
        "Compress events (permessage-deflate) for clients that support it. Each event is compressed once for all of them. Useful "
        "where the network is the bottleneck.",
    )
    compression_bytes: int = option(256, "Events smaller than this are sent uncompressed.", low=64, high=MIB)
    ping_s: float = option(20, "Interval between pings. Must be below the idle timeout of every proxy (nginx: 60).", low=0.1, high=3600)
    pong_s: float = option(30, "Timeout of the answer to a ping.", low=0.1, high=3600)
    linger_s: float = option(2, "How long a client may take to answer a close before the connection is aborted.", low=0.1, high=60)
    drain_s: float = option(5, "When the daemon stops, it spreads the closing of its connections over this time.", low=0, high=300)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """The rules for every method of authentication (docs/security.md). All times are seconds."""

    trusted_proxies: tuple[str, ...] = option(
        (),
        "Addresses and networks (10.0.0.0/8) of proxies whose X-Forwarded-For and X-Forwarded-Host headers are trusted. unix: "
        "every client of a UNIX socket.",
    )
    origins: tuple[str, ...] = option(
        (), "Other origins whose pages may connect (https://portal.example.com). A page may always connect to its own host."
    )
    check_origin: bool = option(
        True,
        "Refuse pages of origins other than the host's own, the admin port's and those in origins. Without this check, any page "
        "that a user opens can listen in the user's name.",
    )
    check_xrftoken: bool = option(
        True, "Require AWX's xrftoken in each request of a client that authenticates by cookie. AWX before 1.0.7 has none."
    )
    revalidate_s: float = option(
        50,
        "Interval between two checks of the credential of an open connection. 0: no regular checks (for AWX 1.0.5 to 2.1.2, where each "
        "check extends the session).",
        low=0,
        high=DAY_S,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """The limits on connections, in all and by address and user. `connections` 0: as many as the process's descriptors allow."""

    connections: int = option(
        0,
        "Connections of the daemon. At most, and with 0, as many as the process may open files, minus 64. A client beyond this limit, "
        "limits.per_address, limits.per_user or limits.half_open gets a 503.",
        low=0,
        high=10_000_000,
    )
    per_address: int = option(1000, "Connections from one address. An IPv6 /64 counts as one address.", low=1, high=10_000_000)
    per_user: int = option(1000, "Connections of one user.", low=1, high=10_000_000)
    half_open: int = option(1000, "Connections from one address that aren't authenticated yet.", low=1, high=10_000_000)
    accepts_per_s: float = option(
        4000,
        "Connections accepted per second. The others wait and aren't refused, so that a storm of new clients doesn't delay connected ones.",
        low=1,
        high=1_000_000,
    )
    replay_bytes_per_s: int = option(
        64 * MIB,
        "Bytes of history that one user may have replayed per second, on average. Beyond it a replay gets slower.",
        low=64 * KIB,
        high=16 * GIB,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSettings:
    """The events of a group, and the users who may subscribe to them.

    `events` is `"id"` (a number), `"any"` (any word), or a list of words. `policy` is one of:
    - `"authenticated"`: every authenticated user,
    - `"own"`: the user whose id the event is,
    - `"object"`: the users to whom Tower shows the object at `object_url`, with `{id}` for the event,
    - `"never"`: no client.
    """

    events: str | tuple[str, ...] = "any"
    policy: str = "authenticated"
    object_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings. `broker` is None for the embedded source. `tower` and `jwt` are None unless `auth` names them.

    Each option of this class has its own value of `reload`. A section has one for all of its options.
    """

    auth: tuple[str, ...] = field(
        metadata={
            "help": "Methods that decide which clients may connect, tried in order. tower: users of AWX or Tower. jwt: clients with a "
            "signed token. open: everybody may connect, and gets every event. There is no default.",
            "common": True,
            "reload": False,
        }
    )
    listen: str = option(
        "tcp:8051:interface=127.0.0.1",
        "Address for websocket clients, as a Twisted endpoint. tcp:8051 means every IPv4 address.",
        common=True,
        reload=False,
    )
    admin: str = option(
        "tcp:9051:interface=127.0.0.1",
        "Address of the admin port (/healthz, /readyz, /status, /metrics, /publish), as a Twisted endpoint. Never make it public.",
        common=True,
        reload=False,
    )
    admin_details: bool = option(
        True,
        "Show events, topics and connected users to everyone who can connect to the admin port. It shows them only on loopback or a UNIX "
        "socket.",
        reload=False,
    )
    monitor: str = option(
        "",
        "Address for probes, load balancers and Prometheus, as a Twisted endpoint. Serves only /healthz, /readyz and /metrics, "
        "without reasons, so it may be public. Empty: only the admin port serves them.",
        common=True,
        reload=False,
    )
    log_format: str = option(
        "auto",
        "Form of log lines. text: time, logger and level. json: one object per line. auto: text, or lines with priorities if "
        "standard output is systemd's journal.",
        choices=("auto", "text", "json"),
        common=True,
        reload=False,
    )
    log_level: str = option(
        "info", "Lowest level that is logged.", choices=("debug", "info", "warn", "error", "critical"), common=True, reload=True
    )
    workers: int | str = option(
        1,
        "Processes that share the port of listen, below a parent that restarts them. auto: one for each CPU. Each worker gets its share of "
        "the limits, rounded up. More than 1 needs a broker, and a TCP port in listen.",
        low=1,
        high=256,
        common=True,
        reload=False,
    )
    restart_s: float = option(
        60,
        "How long the new process of `towerws restart` may take until it is ready. After that time the old process goes on.",
        low=0.5,
        high=3600,
        reload=False,
    )
    broker: BrokerSettings | None = field(metadata={"reload": False})
    insecure: bool = option(
        False,
        "Allow auth open, and the admin port, on addresses that other machines can reach. For test networks only.",
        common=True,
        reload=False,
    )
    max_payload_bytes: int = option(
        4 * MIB, "Largest payload of an event. A larger message is counted and skipped.", low=KIB, high=512 * MIB, reload=False
    )
    access: AccessSettings = field(default_factory=AccessSettings, metadata={"reload": True})
    tower: TowerSettings | None = field(default=None, metadata={"reload": True})
    jwt: JwtSettings | None = field(default=None, metadata={"reload": True})
    limits: LimitSettings = field(default_factory=LimitSettings, metadata={"reload": True})
    history: HistorySettings = field(default_factory=HistorySettings, metadata={"reload": False})
    websocket: WebSocketSettings = field(default_factory=WebSocketSettings, metadata={"reload": True})
    groups: dict[str, GroupSettings] = field(default_factory=dict, metadata={"reload": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerSettings:
    """Where the API of AWX or Tower is, how long its answers are cached, and how often it is called. All times are seconds."""

    url: str = option("", "auth tower: address of AWX or Tower, https://tower.example.com, without /api/. Use nginx's port, not uwsgi's.")
    tls_ca: str = option("", "PEM file with the certificate authorities to trust for the API. Empty: the system's.")
    cookies: tuple[str, ...] = option(("sessionid", "awx_sessionid", "awxsessionid"), "Names of the session cookie.")
    """The names of the session cookie: up to AWX 20.0.0, since 20.0.1, and in 19.5.0."""
    valid_s: float = option(45, "How long a handshake may rely on a cached answer that a credential is valid.", low=0, high=3600)
    invalid_s: float = option(10, "How long the answer that a credential is invalid is cached.", low=0, high=3600)
    allowed_s: float = option(45, "How long the answer that a user may see an object is cached.", low=0, high=3600)
    denied_s: float = option(5, "How long the answer that a user may not see an object is cached.", low=0, high=3600)
    cache_entries: int = option(
        20_000, "Largest number of cached answers of each kind: valid, invalid, allowed, denied.", low=1, high=10_000_000
    )
    calls: int = option(20, "Concurrent calls to the API. A quarter of them is for handshakes only.", low=1, high=1000)
    calls_waiting: int = option(
        200,
        "Calls that may wait while all of tower.calls are in use, counted separately for handshakes and for the rest. Beyond it a "
        "handshake gets a 503, and a topic is unavailable.",
        low=0,
        high=100_000,
    )
    deadline_s: float = option(
        2.0, "Timeout of a call to the API, from when it is sent. AWX's AngularJS pages give up a handshake after 3 s.", low=0.1, high=60
    )
    """AWX's AngularJS pages give up a handshake after 3 s. About 2.5 s of these are left for the API."""
    password_calls: int = option(
        4, "Concurrent calls with a password (Authorization: Basic), in addition to tower.calls.", low=1, high=1000
    )
    password_deadline_s: float = option(5.0, "Timeout of a call with a password. The API hashes the password first.", low=0.1, high=60)
    """Django's password hash takes 0.1 to 0.5 s of a core, and several times that on a busy one. Only programs send passwords."""
    retry_s: float = option(4.0, "How long a question about an object is retried if the API can't answer.", low=0, high=60)
    breaker_failures: int = option(5, "Consecutive failures after which calls to the API pause.", low=1, high=1000)
    breaker_probe_s: float = option(
        5, "Length of the pause after tower.breaker_failures failures. Then one call probes the API.", low=0.1, high=3600
    )
    sharers: int = 1
    """How many processes share the bounds on guessed passwords. No option: a worker sets it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSettings:
    """Which tokens are accepted (`towerws.auth.jwt`). Keys come from exactly one of the two files and the URL."""

    algorithms: tuple[str, ...] = option(
        (), "auth jwt: accepted algorithms, all of one kind: HS256 (shared secret), or RS256, ES256, EdDSA (key)."
    )
    secret_file: str = option("", "File that holds the shared secret.")
    public_key_file: str = option("", "PEM file with the issuer's public key.")
    jwks_url: str = option("", "URL of the issuer's key set, instead of a file.")
    jwks_ca_file: str = option("", "PEM file with the certificate authorities to trust for jwt.jwks_url. Empty: the system's.")
    jwks_max_age_s: float = option(3600, "How long a fetched key set is used before it is fetched again.", low=0, high=30 * DAY_S)
    jwks_stale_s: float = option(3600, "How much longer an old key set is used while it can't be fetched.", low=0, high=30 * DAY_S)
    issuer: str = option("", "Required value of the claim iss. Empty: any value.")
    audience: tuple[str, ...] = option(
        (), "Accepted values of the claim aud: a token must name one of them. Empty: only tokens without aud."
    )
    cookie: str = option("", "Name of the cookie that may hold the token. Empty: none.")
    claim: str = option("groups", "Claim that lists the allowed topics: job_events.42, or job_events.* for a whole group.")
    default_topics: tuple[str, ...] = option((), "Topics that a token without the claim of jwt.claim allows.")
    url_lifetime_s: float = option(
        300, "Longest total lifetime of a token in the URL. Proxies write URLs to their logs.", low=0, high=DAY_S
    )
    leeway_s: float = option(10, "Tolerated difference to the issuer's clock.", low=0, high=300)
