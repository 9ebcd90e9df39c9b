"""The settings: typed, frozen and valid. `towerws/config/load.py` makes them from flags, environment and file."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import quote


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
    consume: str = "auto"  # "auto" | "stream" | "queue"
    exchange: str = "towerws"
    control_exchange: str = ""
    stream: str = "towerws.events"
    passive: bool = False
    prefetch: int = 1000
    heartbeat_s: float = 10
    silence_s: float = 20
    attempt_s: float = 10
    backoff_min_s: float = 0.5
    backoff_max_s: float = 10
    stream_max_age_s: int = 3600
    stream_max_bytes: int = 1024**3
    stream_segment_bytes: int = 16 * 1024**2
    queue_max_bytes: int = 64 * 1024**2
    queue_ttl_s: int = 30
    tls_ca: str = ""
    refill_s: float = 120
    position_key_file: str = ""
    position_key: Secret | None = None
    """The content of that file. None: the key is derived from the credentials in `urls`."""

    @property
    def control(self) -> str:
        """The name of the control exchange."""
        return self.control_exchange or f"{self.exchange}.control"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySettings:
    """The bounds of history. The one that is reached first drops the oldest delivery."""

    max_bytes: int = 64 * 1024**2
    max_age_s: float = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketSettings:
    """The limits of one connection. All sizes are bytes, all times seconds. docs/operations.md has the sources of the numbers."""

    head_bytes: int = 16 * 1024
    head_count: int = 100
    handshake_s: float = 15
    token_s: float = 10
    resume_wait_s: float = 10
    message_bytes: int = 64 * 1024
    fragments: int = 64
    assembly_s: float = 10
    topics: int = 1000
    messages_per_s: float = 20
    messages_burst: int = 40
    controls_per_s: float = 20
    controls_burst: int = 40
    malformed: int = 10
    backlog_bytes: int = 256 * 1024
    compression: bool = False
    compression_bytes: int = 256
    ping_s: float = 20
    pong_s: float = 30
    linger_s: float = 2
    drain_s: float = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """The rules for every method of authentication (docs/security.md). All times are seconds."""

    trusted_proxies: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    check_origin: bool = True
    check_xrftoken: bool = True
    revalidate_s: float = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """The limits on connections, in all and by address and user. `connections` 0: as many as the process's descriptors allow."""

    connections: int = 0
    per_address: int = 1000
    per_user: int = 1000
    half_open: int = 1000
    accepts_per_s: float = 4000
    replay_bytes_per_s: int = 64 * 1024**2


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
    """All settings. `broker` is None for the embedded source. `tower` and `jwt` are None unless `auth` names them."""

    broker: BrokerSettings | None
    auth: tuple[str, ...]
    listen: str = "tcp:8051:interface=127.0.0.1"
    admin: str = "tcp:9051:interface=127.0.0.1"
    health: str = ""
    monitor: str = ""
    log_format: str = "auto"
    log_level: str = "info"
    insecure: bool = False
    max_payload_bytes: int = 4 * 1024**2
    access: AccessSettings = field(default_factory=AccessSettings)
    tower: TowerSettings | None = None
    jwt: JwtSettings | None = None
    limits: LimitSettings = field(default_factory=LimitSettings)
    history: HistorySettings = field(default_factory=HistorySettings)
    websocket: WebSocketSettings = field(default_factory=WebSocketSettings)
    groups: dict[str, GroupSettings] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerSettings:
    """Where the API of AWX or Tower is, how long its answers are cached, and how often it is called. All times are seconds."""

    url: str
    tls_ca: str = ""
    cookies: tuple[str, ...] = ("sessionid", "awx_sessionid", "awxsessionid")
    """The names of the session cookie: up to AWX 20.0.0, since 20.0.1, and in 19.5.0."""
    valid_s: float = 45
    invalid_s: float = 10
    allowed_s: float = 45
    denied_s: float = 5
    cache_entries: int = 20_000
    calls: int = 20
    calls_waiting: int = 200
    deadline_s: float = 2.0
    """AWX's AngularJS pages give up a handshake after 3 s. About 2.5 s of these are left for the API."""
    password_calls: int = 4
    password_deadline_s: float = 5.0
    """Django's password hash takes 0.1 to 0.5 s of a core, and several times that on a busy one. Only programs send passwords."""
    retry_s: float = 4.0
    breaker_failures: int = 5
    breaker_probe_s: float = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSettings:
    """Which tokens are accepted (`towerws.auth.jwt`). Keys come from exactly one of the two files and the URL."""

    algorithms: tuple[str, ...]
    secret_file: str = ""
    public_key_file: str = ""
    jwks_url: str = ""
    jwks_ca_file: str = ""
    jwks_max_age_s: float = 3600
    jwks_stale_s: float = 3600
    issuer: str = ""
    audience: tuple[str, ...] = ()
    cookie: str = ""
    claim: str = "groups"
    default_topics: tuple[str, ...] = ()
    url_lifetime_s: float = 300
    leeway_s: float = 10
