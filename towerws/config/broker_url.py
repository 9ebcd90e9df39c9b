"""Parses `amqp://user:password@host:port/vhost`, and shows it without its password.

The URL is split from the right. The last `@` ends the credentials, so a password may contain `#`, `@`, `:`, `/` or `?` unescaped. AWX
and asgi_amqp failed on such passwords repeatedly, and once showed part of one in an error (CVE-2019-19342). All parts may be
percent-encoded. A literal `%` must be (`%25`) if two hexadecimal digits follow it.

The virtual host is `/` for `amqp://host` and for `amqp://host/`. RabbitMQ's URI specification and pika read the latter as a virtual
host with an empty name. No operator means that, so this parser doesn't follow the rule.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from towerws.core.settings import BrokerUrl, Secret

EMBEDDED = "embedded:"
PORTS = {"amqp": 5672, "amqps": 5671}
MASK = "***"
DEFAULT_CREDENTIAL = "guest"  # user and password of a URL without credentials (RabbitMQ URI specification)

MAX_SHORT_BYTES = 127  # RabbitMQ's own limit for names; AMQP's short string allows 255

_split_scheme = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,15})://(.*)", re.DOTALL).fullmatch
_split_host = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9_.-]{1,253}))(?::(.*))?", re.DOTALL).fullmatch
_is_port = re.compile(r"[0-9]{1,5}", re.ASCII).fullmatch
_begins_with_host = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(?=[:/?#]|$)").match
_is_harmless = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(?::[0-9]{1,5})?(?:/[A-Za-z0-9_.%-]*)?", re.ASCII).fullmatch
_between_urls = re.compile(r"\s*,\s*(?=amqps?://|embedded:)", re.IGNORECASE)

_QUERY_NAMES = (
    "auth_mechanism",
    "backpressure_detection",
    "blocked_connection_timeout",
    "cacertfile",
    "certfile",
    "channel_max",
    "client_properties",
    "connection_attempts",
    "connection_timeout",
    "frame_max",
    "heartbeat",
    "keyfile",
    "locale",
    "password",
    "retry_delay",
    "server_name_indication",
    "socket_timeout",
    "ssl_options",
    "stack_timeout",
    "tcp_options",
    "verify",
)
"""Parameters of pika and of RabbitMQ's clients. An error repeats only these: other text might be part of a password."""


def split_urls(text: str) -> list[str]:
    """Split a comma-separated list of URLs. A comma ends a URL only where another URL begins: passwords may contain commas."""
    return _between_urls.split(text.strip())


def parse_broker_url(text: str, password: Secret | None = None) -> BrokerUrl:
    """Parse one URL. `password` is used if the URL has none.

    Raises `ValueError` with the broken rule, and never with a part of the URL that could be a password.
    """
    match = _split_scheme(text)
    if match is None or (scheme := match[1].lower()) not in PORTS:
        raise ValueError("a broker is amqp://user:password@host:port/vhost, amqps://… or embedded:")
    credentials, at, rest = match[2].rpartition("@")
    rest, question, query = rest.partition("?")
    if question:
        raise ValueError(_query_rule(query))
    if "#" in rest:
        raise ValueError("a broker URL has no fragment: after the host and the virtual host, write # as %23")
    authority, _, vhost = rest.partition("/")
    if "/" in vhost:
        raise ValueError("write a slash in the virtual host as %2F")
    host, port = _host_and_port(authority, scheme)
    username, own_password = _credentials(credentials) if at else (DEFAULT_CREDENTIAL, None)
    if own_password is not None and password is not None:
        raise ValueError("has a password, and broker_password_file is set as well: use one of them")
    if own_password is None:
        own_password = password or Secret("" if at else DEFAULT_CREDENTIAL)
    return BrokerUrl(
        host=host,
        port=port,
        username=username,
        password=own_password,
        vhost=_decoded("virtual host", vhost) or "/",
        tls=scheme == "amqps",
    )


def mask_url(text: str) -> str:
    """Return the text of a good or bad URL without anything that could be a password."""
    match = _split_scheme(text)
    if match is None:
        return "'…'"
    scheme = match[1].lower() if match[1].lower() in PORTS else "…"
    _, at, rest = match[2].rpartition("@")
    if not at:
        return f"{scheme}://{rest}" if _is_harmless(rest) else f"{scheme}://…"
    host = _begins_with_host(rest)
    return f"{scheme}://{MASK}@{rest if _is_harmless(rest) else f'{host[0]}…' if host else '…'}"


def url_for_file(url: BrokerUrl, *, password_elsewhere: bool = False) -> str:
    """Return the URL for a configuration file, with its password masked. Without a password if it is the default or in a file."""
    shown = str(url)
    if url.username == DEFAULT_CREDENTIAL and url.password == Secret(DEFAULT_CREDENTIAL) and not password_elsewhere:
        return shown.replace(f"{DEFAULT_CREDENTIAL}:{MASK}@", "", 1)
    if password_elsewhere or not url.password.reveal():
        return shown.replace(f":{MASK}@", "@", 1)
    return shown


def _query_rule(query: str) -> str:
    given = {part.partition("=")[0] for part in query.split("&")}
    names = [name for name in _QUERY_NAMES if name in given]
    listed = f" ({', '.join(names)})" if names else ""
    return f"a query string{listed} isn't read: heartbeat_s, attempt_s and tls_ca are settings of their own"


def _host_and_port(authority: str, scheme: str) -> tuple[str, int]:
    match = _split_host(authority)
    if match is None:
        raise ValueError("needs a host after the last @: a name, an IPv4 address or an IPv6 address in [ ]")
    text: str | None = match[3]
    if not text:
        return match[1] or match[2], PORTS[scheme]
    if not _is_port(text) or not 1 <= int(text) <= 65535:
        raise ValueError("the port must be a number from 1 to 65535")
    return match[1] or match[2], int(text)


def _credentials(text: str) -> tuple[str, Secret | None]:
    user, colon, password = text.partition(":")
    username = _decoded("user name", user)
    if not username:
        raise ValueError("needs a user name before the @")
    if password == MASK:
        raise ValueError("its password is the mask *** that `towerws config` prints: put the real one there, or use broker_password_file")
    return username, Secret(_unquoted("password", password)) if colon else None


def _decoded(what: str, text: str) -> str:
    name = _unquoted(what, text)
    if len(name.encode()) > MAX_SHORT_BYTES or not name.isprintable():
        raise ValueError(f"the {what} must be printable and at most {MAX_SHORT_BYTES} bytes")
    return name


def _unquoted(what: str, text: str) -> str:
    # A lone % stays, because passwords get pasted unescaped. Broken UTF-8 is an error.
    try:
        decoded = unquote(text, errors="strict")
        decoded.encode()
    except UnicodeError:
        raise ValueError(f"the {what} isn't UTF-8 once decoded: write % as %25") from None
    return decoded
