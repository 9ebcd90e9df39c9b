"""Rules between settings, advice about them, and the groups of the file. The table of options has the range of each single setting."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import NamedTuple

from towerws.config.addresses import Address, parse_address
from towerws.core.client_address import Proxies
from towerws.core.origins import Origins
from towerws.core.settings import GroupSettings, Settings
from towerws.core.topics import MAX_EVENT_BYTES, MAX_GROUP_BYTES, is_event, is_group

AUTH_METHODS = ("tower", "jwt", "open")
"""The values of `auth`."""

POLICIES = ("authenticated", "own", "object", "never")
"""The values of `policy` for a configured group."""

_GROUP_KEYS = ("events", "policy", "object_url")
_WORD_ENDS = re.compile(r"[._-]")
NEAR = 0.66
"""Smallest similarity of a suggested name (difflib's ratio). Below it, suggestions are rarely right."""

_is_service = re.compile(
    r"TOWERWS_(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:ADDR|PORT|PROTO))?|ENV_.+)",
    re.ASCII,
).fullmatch
_is_port = re.compile(r"TOWERWS_(?:[A-Z0-9_]+_)?PORT", re.ASCII).fullmatch
_is_port_value = re.compile(r"(?:tcp|udp|sctp)://.+").fullmatch
_is_link = re.compile(r"TOWERWS_(?:[A-Z0-9_]+_)?NAME", re.ASCII).fullmatch
_is_object_url = re.compile(r"/[!-z~]*\{id\}[!-z~]*", re.ASCII).fullmatch

MAX_NAME_BYTES = 255  # AMQP 0-9-1 section 4.2.5.3, short string

PROXY_IDLE_S = 60  # nginx's default proxy_read_timeout, the shortest idle timeout of the common proxies


class Broken(NamedTuple):
    """A broken rule. `keys` are the settings that it concerns; the first is the one to change."""

    keys: tuple[str, ...]
    rule: str


def broken_rules(settings: Settings) -> Iterator[Broken]:
    """Yield every rule that the settings break, the most serious first."""
    yield from _methods(settings)
    yield from _access(settings)
    yield from _workers(settings)
    yield from _proxies(settings)
    yield from _broker(settings)
    if settings.history.max_bytes < settings.max_payload_bytes:
        yield Broken(("history.max_bytes", "max_payload_bytes"), "history.max_bytes must be at least max_payload_bytes")
    if settings.history.max_bytes < settings.websocket.backlog_bytes:
        yield Broken(("websocket.backlog_bytes", "history.max_bytes"), "websocket.backlog_bytes must be at most history.max_bytes")


def advice(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each combination that is allowed but rarely intended."""
    if settings.websocket.ping_s >= PROXY_IDLE_S:
        yield f"websocket.ping_s = {settings.websocket.ping_s}: nginx closes a websocket that is idle for {PROXY_IDLE_S} s"
    if settings.insecure:
        yield "insecure is set: everybody who reaches the ports may hear everything, and publish"
    if "open" not in settings.auth and not settings.access.trusted_proxies:
        yield (
            "trusted_proxies is empty: behind a proxy all clients have its address, and share the "
            f"limits.per_address = {settings.limits.per_address} connections of one"
        )
    if {"tower", "jwt"} <= set(settings.auth) and settings.auth.index("tower") < settings.auth.index("jwt"):
        yield 'auth has tower before jwt: Tower gets every token first, and refuses JSON Web Tokens; write ["jwt", "tower"]'
    if not settings.access.check_origin:
        yield "check_origin is off: any page that a user opens can listen in the user's name"
    if settings.broker is not None:
        tls = [url.tls for url in settings.broker.urls]
        if settings.broker.tls_ca and not any(tls):
            yield "tls_ca is set but no broker URL begins with amqps://"
        if any(tls) and not all(tls):
            yield "some broker URLs are amqps:// and some are not: the password may travel unencrypted"


_RENAMED = {"health": "monitor"}
"""The former names of options that are not similar to their new ones."""


def suggestion(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return `; did you mean …?` for an unknown name, or an empty text if no known name is similar.

    `prefix` is common to all names, so it is left out of the comparison. A former name suggests the new one. A word that is similar to the
    name of a section suggests the first three names of that section.
    """
    names = [name.removeprefix(prefix) for name in known]
    word = word.removeprefix(prefix)
    tail = f".{_WORD_ENDS.sub('.', word)}"
    near = [name for name in names if name.lower() == _RENAMED.get(word.lower())]
    near = near or [name for name in names if name.endswith(f".{word}")]
    near = near or [name for name in names if _WORD_ENDS.sub(".", name).endswith(tail)][:3]
    near = near or difflib.get_close_matches(word, names, n=1, cutoff=NEAR)
    if not near:
        sections = difflib.get_close_matches(word, {_WORD_ENDS.split(name)[0] for name in names}, n=1, cutoff=NEAR)
        near = [name for name in names if sections and _WORD_ENDS.split(name)[0] == sections[0]][:3]
    return f"; did you mean {' or '.join(prefix + name for name in near)}?" if near else ""


def describes_a_service(name: str, value: str) -> bool:
    """Whether Kubernetes or Docker set this environment variable to describe a service named towerws.

    Kubernetes sets `{SVCNAME}_SERVICE_HOST` and more for each Service of the namespace. Docker sets similar ones for `--link`. An operator
    could set `TOWERWS_PORT=9000` and mean an option. So such a name is theirs only if its value has the form that they use.
    """
    if _is_service(name):
        return True
    return bool((_is_port(name) and _is_port_value(value)) or (_is_link(name) and value.startswith("/")))


def read_group(name: str, table: object) -> GroupSettings:
    """Read a table `[groups.NAME]` of the file. Raises `ValueError` with the broken rule."""
    if not is_group(name):
        raise ValueError(f"a group's name is 1 to {MAX_GROUP_BYTES} letters, digits and _")
    if not isinstance(table, Mapping):
        raise ValueError('must be a table with the key events: events = "any"')
    for key in table:
        if key not in _GROUP_KEYS:
            raise ValueError(f"unknown key {key!r:.60}; a group has {', '.join(_GROUP_KEYS)}{suggestion(str(key), _GROUP_KEYS)}")
    events = _read_events(table.get("events", "any"))
    object_url = table.get("object_url", "")
    policy = table.get("policy", "object" if object_url else "authenticated")
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}")
    if (policy == "object") != bool(object_url):
        raise ValueError('policy = "object" and object_url go together')
    if object_url and (events != "id" or not isinstance(object_url, str) or not _is_object_url(object_url)):
        raise ValueError('object_url is a path of the API with {id} in it, once ("/api/v2/jobs/{id}/"), and needs events = "id"')
    return GroupSettings(events=events, policy=policy, object_url=object_url)


def _read_events(events: object) -> str | tuple[str, ...]:
    match events:
        case "any" | "id":
            return str(events)
        case [_, *_] as words if all(isinstance(word, str) and is_event(word) for word in words):
            return tuple(map(str, words))
    raise ValueError(
        f'events must be "any", "id" or a list of words of 1 to {MAX_EVENT_BYTES} printable ASCII characters without space . * # " \\'
    )


def _methods(settings: Settings) -> Iterator[Broken]:
    for method in settings.auth:
        if method not in AUTH_METHODS:
            yield Broken(("auth",), f"unknown method {method!r:.60}; there is {', '.join(AUTH_METHODS)}{suggestion(method, AUTH_METHODS)}")
    if settings.tower is not None and not settings.tower.url:
        yield Broken(("tower.url", "auth"), "auth tower needs the address of AWX or Tower: https://tower.example.com")
    if settings.tower is not None and not settings.tower.cookies:
        yield Broken(("tower.cookies", "auth"), "auth tower needs the name of the session cookie")
    if settings.jwt is not None and not settings.jwt.algorithms:
        yield Broken(("jwt.algorithms", "auth"), "auth jwt needs the algorithms that it accepts: HS256, RS256, ES256, EdDSA …")
    if settings.jwt is not None and not (settings.jwt.secret_file or settings.jwt.public_key_file or settings.jwt.jwks_url):
        yield Broken(("jwt.jwks_url", "auth"), "auth jwt needs a key: one of jwt.secret_file, jwt.public_key_file and jwt.jwks_url")


def _access(settings: Settings) -> Iterator[Broken]:
    texts = {"listen": settings.listen, "admin": settings.admin, "monitor": settings.monitor}
    addresses: dict[str, Address] = {}
    for key, text in texts.items():
        try:
            if text or key != "monitor":
                addresses[key] = parse_address(text)
        except ValueError as error:
            yield Broken((key,), str(error))
    for one, other in combinations(texts, 2):
        if one in addresses and other in addresses and addresses[one].clashes(addresses[other]):
            yield Broken((other, one), f"{one} and {other} must not be the same address and port")
    if "listen" not in addresses or "admin" not in addresses:
        return
    if settings.insecure:
        return
    if not addresses["admin"].local:
        yield Broken(("admin",), f"{addresses['admin']} can be reached from other machines: use interface=127.0.0.1, or say insecure")
    if "open" in settings.auth and not addresses["listen"].local:
        yield Broken(
            ("listen", "auth"),
            f"with auth open everybody who reaches {addresses['listen']} hears everything: use interface=127.0.0.1, or say insecure",
        )


def _workers(settings: Settings) -> Iterator[Broken]:
    """Yield the rules that several workers break. `auto` counts as several, also on a machine with one CPU."""
    if settings.workers == 1:
        return
    if settings.broker is None:
        yield Broken(("workers", "broker"), "several workers need a broker, which each of them reads; embedded: is one process")
    try:
        address = parse_address(settings.listen)
    except ValueError:
        return
    if address.kind in ("unix", "systemd"):
        yield Broken(("workers", "listen"), f"several workers can't share a {address.kind}: address; let listen be a TCP port (tcp:8051)")
    elif not address.port:
        yield Broken(("workers", "listen"), "several workers need to know their common port: 0 means any free one")


def _proxies(settings: Settings) -> Iterator[Broken]:
    try:
        Proxies(settings.access.trusted_proxies)
    except ValueError as error:
        yield Broken(("trusted_proxies",), f"{error}: an address, a network (10.0.0.0/8) or unix")
    try:
        Origins(settings.access.origins)
    except ValueError as error:
        yield Broken(("origins",), str(error))


def _broker(settings: Settings) -> Iterator[Broken]:
    if (broker := settings.broker) is None:
        return
    for key, name in (("exchange", broker.exchange), ("stream", broker.stream), ("control_exchange", broker.control)):
        if not 1 <= len(name.encode(errors="replace")) <= MAX_NAME_BYTES:
            yield Broken((key,), f"must be 1 to {MAX_NAME_BYTES} bytes")
    if broker.control == broker.exchange:
        yield Broken(
            ("control_exchange", "exchange"),
            "control_exchange and exchange must be different: otherwise every program that may publish events could end connections",
        )
    if broker.silence_s < 2 * broker.heartbeat_s:
        yield Broken(("silence_s", "heartbeat_s"), "silence_s must be at least twice heartbeat_s")
    if broker.backoff_max_s < broker.backoff_min_s:
        yield Broken(("backoff_max_s", "backoff_min_s"), "backoff_max_s must be at least backoff_min_s")
    if broker.stream_max_bytes < broker.stream_segment_bytes:
        yield Broken(("stream_max_bytes", "stream_segment_bytes"), "stream_max_bytes must be at least stream_segment_bytes")
    if broker.stream_max_age_s < settings.history.max_age_s:
        yield Broken(("stream_max_age_s", "history.max_age_s"), "stream_max_age_s must be at least history.max_age_s")
    if broker.queue_max_bytes < settings.max_payload_bytes:
        yield Broken(("queue_max_bytes", "max_payload_bytes"), "queue_max_bytes must be at least max_payload_bytes")
