"""`amqp://user:password@host:port/vhost`, parsed from the right by the daemon's rules (docs/configuration.md).

The last `@` ends the credentials, so a password may contain `#`, `@`, `:` or `/` unescaped. All parts may be percent-encoded.
The virtual host is `/` for `amqp://host` and for `amqp://host/`. No error text and no `repr` holds a password.
"""

import re
from typing import List, Optional, Sequence, Union
from urllib.parse import unquote

from towerws_producer.errors import ConfigError

PORTS = {"amqp": 5672, "amqps": 5671}
DEFAULT_CREDENTIAL = "guest"  # user and password of a URL without credentials (RabbitMQ URI specification)
MAX_NAME_BYTES = 127

_split_scheme = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,15})://(.*)", re.DOTALL).fullmatch
_split_host = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9_.-]{1,253}))(?::(.*))?", re.DOTALL).fullmatch
_is_port = re.compile(r"[0-9]{1,5}", re.ASCII).fullmatch
_between_urls = re.compile(r"\s*,\s*(?=amqps?://)", re.IGNORECASE)


class Address:
    """The address of a broker, and our credentials for it. `str` and `repr` have no password."""

    __slots__ = ("host", "password", "port", "tls", "username", "vhost")

    def __init__(self, host: str, port: int, username: str, password: str, vhost: str, tls: bool) -> None:
        self.host = host
        self.port = port
        self.username = username
        self.password = password
        self.vhost = vhost
        self.tls = tls

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return "{}://{}:{}".format("amqps" if self.tls else "amqp", host, self.port)

    def __repr__(self) -> str:
        return f"<Address {self}>"


def parse_addresses(broker: Union[str, Sequence[str]]) -> List[Address]:
    """Return the addresses of one URL, of several with commas between them, or of a list. Raises `ConfigError` with the broken rule."""
    texts = _between_urls.split(broker.strip()) if isinstance(broker, str) else list(broker)
    if not texts or texts == [""]:
        raise ConfigError("no broker is configured: set TOWERWS_BROKER, or pass broker=amqp://user:password@host:port/vhost")
    return [parse_address(text) for text in texts]


def without_kombus_slashes(text: str) -> str:
    """Return broker URLs that were written for kombu in the form that `parse_addresses` reads: a slash in the virtual host becomes `%2F`.

    AWX's former layer used kombu. AWX's default is `amqp://guest:guest@localhost:5672//`, with the virtual host `/`.
    """
    return ",".join(_without_slashes(url) for url in _between_urls.split(text.strip()))


def _without_slashes(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    authority, slash, vhost = place.partition("/")
    return "".join((scheme, separator, credentials, at, authority, slash, vhost.replace("/", "%2F")))


def parse_address(text: str) -> Address:
    """Return the address of one URL. Raises `ConfigError` with the broken rule. The text repeats no part of the URL."""
    match = _split_scheme(str(text))
    if match is None or match.group(1).lower() not in PORTS:
        raise ConfigError("broker: expected amqp://user:password@host:port/vhost or amqps://…")
    scheme = match.group(1).lower()
    credentials, at, rest = match.group(2).rpartition("@")
    if "?" in rest:
        raise ConfigError("broker: a query string isn't read: use the producer's own arguments instead (tls_ca, attempt_s)")
    if "#" in rest:
        raise ConfigError("broker: the URL has no fragment: after the host and the virtual host, write # as %23")
    authority, _, vhost = rest.partition("/")
    if "/" in vhost:
        raise ConfigError("broker: write a slash in the virtual host as %2F")
    host_match = _split_host(authority)
    if host_match is None:
        raise ConfigError("broker: needs a host after the last @: a name, an IPv4 address or an IPv6 address in [ ]")
    user, colon, password = credentials.partition(":")
    username = _decoded("user name", user) if at else DEFAULT_CREDENTIAL
    if not username:
        raise ConfigError("broker: needs a user name before the @")
    return Address(
        host=host_match.group(1) or host_match.group(2),
        port=_port(host_match.group(3), scheme),
        username=username,
        password=_unquoted("password", password) if colon else "" if at else DEFAULT_CREDENTIAL,
        vhost=_decoded("virtual host", vhost) or "/",
        tls=scheme == "amqps",
    )


def _port(text: Optional[str], scheme: str) -> int:
    if not text:
        return PORTS[scheme]
    if not _is_port(text) or not 1 <= int(text) <= 65535:
        raise ConfigError("broker: the port must be a number from 1 to 65535")
    return int(text)


def _decoded(what: str, text: str) -> str:
    name = _unquoted(what, text)
    if len(name.encode("utf-8")) > MAX_NAME_BYTES or not name.isprintable():
        raise ConfigError(f"broker: the {what} must be printable and at most {MAX_NAME_BYTES} bytes")
    return name


def _unquoted(what: str, text: str) -> str:
    try:
        decoded = unquote(text, errors="strict")
        decoded.encode("utf-8")
    except UnicodeError:
        raise ConfigError(f"broker: the {what} isn't UTF-8 once decoded: write % as %25") from None
    return decoded
