"""Addresses in options: endpoint strings for listening, and URLs of brokers.

Twisted's endpoint strings (`tcp:8051:interface=127.0.0.1`) are parsed without Twisted, so that rules can be checked on them. The parser
knows the endpoint types that make sense for a daemon. The prefix `haproxy:` means that clients use the PROXY protocol.

A broker's URL (`amqp://user:password@host:port/vhost`) is split from the right. The last `@` ends the credentials, so a password may
contain `#`, `@`, `:`, `/` or `?` unescaped. AWX and asgi_amqp failed on such passwords repeatedly, and once showed part of one in an error
(CVE-2019-19342). All parts may be percent-encoded. A literal `%` must be (`%25`) if two hexadecimal digits follow it.

The virtual host is `/` for `amqp://host` and for `amqp://host/`. RabbitMQ's URI specification and pika read the latter as a virtual
host with an empty name. No operator means an empty name, so this parser doesn't follow the rule.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from urllib.parse import unquote

from towerws.core.client_address import is_loopback
from towerws.core.host_names import check_host
from towerws.core.settings import BrokerUrl, Secret

_POSITIONAL = {
    "tcp": ("port",),
    "tcp6": ("port",),
    "ssl": ("port",),
    "tls": ("path", "port"),
    "unix": ("path",),
    "systemd": (),
}
_KEYWORDS = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "interface", "backlog"),
    "ssl": ("port", "interface", "backlog", "privateKey", "certKey", "sslmethod", "extraCertChain", "dhParameters"),
    "tls": ("path", "port", "interface", "backlog"),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "systemd": ("domain", "index", "name"),
}
_ANY_INTERFACE = {"tcp": "0.0.0.0", "ssl": "0.0.0.0", "tcp6": "::", "tls": "::"}  # noqa: S104  Twisted's defaults
EMBEDDED = "embedded:"
PORTS = {"amqp": 5672, "amqps": 5671}
MASK = "***"
DEFAULT_CREDENTIAL = "guest"  # user and password of a URL without credentials (RabbitMQ URI specification)
MAX_SHORT_BYTES = 127  # RabbitMQ's own limit for names; AMQP's short string allows 255


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed endpoint string. `unix:` and `systemd:` have no `interface` and no `port`."""

    kind: str
    text: str
    interface: str = ""
    port: int = 0
    path: str = ""
    systemd_domain: str = ""

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the address. False for a TCP socket of systemd's, whose interface is unknown."""
        if self.kind == "unix" or self.systemd_domain == "UNIX":
            return True
        return self.interface.lower() == "localhost" or is_loopback(self.interface)

    def clashes(self, other: Address) -> bool:
        """Whether a process can't listen on both addresses."""
        if self.kind in ("unix", "systemd"):
            return self.kind == other.kind and (self.path or self.text) == (other.path or other.text)
        if not self.port or self.port != other.port:
            return False
        everywhere = {"0.0.0.0", "::"}  # noqa: S104
        return self.interface == other.interface or bool(everywhere & {self.interface, other.interface})

    def __str__(self) -> str:
        if self.kind == "unix":
            return self.path
        if self.kind == "systemd":
            return self.text
        return f"[{self.interface}]:{self.port}" if ":" in self.interface else f"{self.interface}:{self.port}"


def parse_address(text: str) -> Address:
    """Parse an endpoint string. Raises `ValueError` with the broken rule."""
    kind, words, keywords = _split(text)
    if kind not in _POSITIONAL:
        raise ValueError(_unknown_kind(kind))
    if len(words) > len(_POSITIONAL[kind]):
        raise ValueError(f"has more parts than a {kind}: endpoint takes; write the colons of an IPv6 address or a path as \\:")
    arguments = dict(zip(_POSITIONAL[kind], words, strict=False))
    for name, value in keywords.items():
        if name not in _KEYWORDS[kind]:
            raise ValueError(f"a {kind}: endpoint takes only {', '.join(_KEYWORDS[kind])}")
        arguments[name] = value
    if not arguments.get("backlog", "1").isdecimal():
        raise ValueError("backlog must be a whole number")
    if kind == "unix":
        return _unix(text, arguments)
    if kind == "systemd":
        return _systemd(text, arguments)
    if kind == "tls" and not arguments.get("path"):
        raise ValueError("a tls: endpoint needs the folder of its certificates: tls:/etc/towerws/certs:8043")
    port = arguments.get("port", "443" if kind == "tls" else "")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError("the port must be a number from 0 (any free one) to 65535")
    interface = arguments.get("interface") or _ANY_INTERFACE[kind]
    if kind in ("tcp6", "tls") and ":" not in interface:
        raise ValueError(f"the interface of a {kind}: endpoint is an IPv6 address, with its colons written as \\: (interface=\\:\\:1)")
    return Address(kind, text, interface=interface, port=int(port))


def certificate_path(text: str) -> str:
    """Return the file (`ssl:`) or the folder (`tls:`) that holds an endpoint's certificates. Empty for other endpoints."""
    kind, words, keywords = _split(text)
    if kind == "ssl":
        return keywords.get("certKey") or keywords.get("privateKey", "server.pem")
    return (words[0] if words else keywords.get("path", "")) if kind == "tls" else ""


def private_key_path(text: str) -> str:
    """Return the file (`ssl:`) or the folder (`tls:`) that holds an endpoint's private keys. Empty for other endpoints."""
    kind, _, keywords = _split(text)
    return keywords.get("privateKey", "server.pem") if kind == "ssl" else certificate_path(text)


def _unix(text: str, arguments: dict[str, str]) -> Address:
    path = arguments.get("path") or arguments.get("address", "")
    if not path:
        raise ValueError("a unix: endpoint needs a path: unix:/run/towerws/web.sock")
    mode = arguments.get("mode", "666")
    if not mode or len(mode) > 4 or set(mode) - set("01234567"):
        raise ValueError("the mode of a unix: endpoint is octal (660)")
    if arguments.get("lockfile", "1") not in ("0", "1"):
        raise ValueError("the lockfile of a unix: endpoint is 0 or 1")
    return Address("unix", text, path=path)


def _systemd(text: str, arguments: dict[str, str]) -> Address:
    domain = arguments.get("domain", "")
    if domain not in ("INET", "INET6", "UNIX"):
        raise ValueError("a systemd: endpoint needs domain=INET, INET6 or UNIX")
    if ("index" in arguments) == ("name" in arguments):
        raise ValueError("a systemd: endpoint needs either index or name")
    if not arguments.get("index", "0").isdecimal():
        raise ValueError("the index of a systemd: endpoint is a number from 0")
    return Address("systemd", text, systemd_domain=domain)


def _split(text: str) -> tuple[str, list[str], dict[str, str]]:
    r"""Split by Twisted's grammar: `:` separates parts, `=` separates name and value, `\` escapes the next character.

    Returns the kind of the endpoint without `haproxy:` before it, its other words, and its names with their values.
    """
    parts: list[list[str]] = [[""]]
    characters = iter(text)
    for character in characters:
        if character == ":":
            parts.append([""])
        elif character == "=" and len(parts[-1]) == 1:
            parts[-1].append("")
        elif character == "\\":
            if (escaped := next(characters, None)) is None:
                raise ValueError("ends in the middle of an escape (\\)")
            parts[-1][-1] += escaped
        else:
            parts[-1][-1] += character
    words = [part[0] for part in parts if len(part) == 1]
    if words[:1] == ["haproxy"]:
        del words[0]
    return words[0] if words else "", words[1:], {part[0]: part[1] for part in parts if len(part) == 2}


def _unknown_kind(kind: str) -> str:
    near = difflib.get_close_matches(kind, _POSITIONAL, n=1)
    hint = f"did you mean {near[0]}:?" if near else "for example tcp:8051:interface=127.0.0.1"
    return f"must be an endpoint that begins with {', '.join(f'{known}:' for known in _POSITIONAL)} or haproxy: before one of them; {hint}"


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
    """Split a comma-separated list of URLs. A comma ends a URL only if another URL follows, because passwords may contain commas."""
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
    check_host(host, tls=scheme == "amqps")
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
    """Return the URL for a configuration file, with its password masked. Leave out a default password, and one that is in a file."""
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
    # A % without two hexadecimal digits stays, because passwords get pasted unescaped. Broken UTF-8 is an error.
    try:
        decoded = unquote(text, errors="strict")
        decoded.encode()
    except UnicodeError:
        raise ValueError(f"the {what} isn't UTF-8 once decoded: write % as %25") from None
    return decoded
