"""Parses Twisted's endpoint strings (`tcp:8051:interface=127.0.0.1`) without Twisted, so that rules can be checked on them.

It knows the endpoint types that make sense for a daemon. The prefix `haproxy:` means that clients use the PROXY protocol.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from towerws.core.addresses import is_loopback

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
        """Whether only this machine can reach it. False for a socket of systemd's, whose interface is unknown."""
        if self.kind == "unix" or self.systemd_domain == "UNIX":
            return True
        return self.interface.lower() == "localhost" or is_loopback(self.interface)

    def clashes(self, other: Address) -> bool:
        """Whether a process can't listen on both."""
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
    if kind == "haproxy":
        kind, words = (words[0] if words else ""), words[1:]
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
    """Return the file (`ssl:`) or the folder (`tls:`) that holds an endpoint's certificates. Empty: it has none."""
    kind, words, keywords = _split(text)
    if kind == "haproxy":
        kind, words = (words[0] if words else ""), words[1:]
    if kind == "ssl":
        return keywords.get("certKey") or keywords.get("privateKey", "server.pem")
    return (words[0] if words else keywords.get("path", "")) if kind == "tls" else ""


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
    r"""Split by Twisted's grammar: `:` separates parts, `=` separates name and value, `\` escapes the next character."""
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
    return words[0] if words else "", words[1:], {part[0]: part[1] for part in parts if len(part) == 2}


def _unknown_kind(kind: str) -> str:
    near = difflib.get_close_matches(kind, _POSITIONAL, n=1)
    hint = f"did you mean {near[0]}:?" if near else "for example tcp:8051:interface=127.0.0.1"
    return f"must be an endpoint that begins with {', '.join(f'{known}:' for known in _POSITIONAL)} or haproxy: before one of them; {hint}"
