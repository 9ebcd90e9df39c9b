"""Asks the servers that authenticate: Tower's API, and the key set of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from towerws.auth.base import Refused, Unavailable
from towerws.auth.tower_api import Answer, api_base, read_me, read_visible
from towerws.auth.tower_objects import checked_objects
from towerws.core.errors import ConfigError
from towerws.core.settings import GroupSettings, JwtSettings, TowerSettings
from towerws.core.topics import parse_routing_key
from towerws.doctor.examination import Area, Doing, Finding, Step
from towerws.doctor.network import CLOCKS_S, Fetched, Unreachable, certificate_finding, clock_finding, fetch

_ME = "/api/v2/me/"


def check_tower(settings: TowerSettings, groups: Mapping[str, GroupSettings], token: str | None, topic: str | None) -> Iterator[Step]:
    """Check the API as the daemon uses it. With `token` (a bearer token), also check its user.

    With `topic`, also ask whether that user may see the object of the topic.
    """
    area = Area("tower")
    try:
        base = api_base(settings.url)
    except ConfigError as error:
        yield area.problem("address", str(error), "correct tower.url")
        return
    yield Doing(f"asking {base}{_ME}", 3 * settings.password_deadline_s)
    try:
        anonymous = _ask(base + _ME, settings, None)
    except Unreachable as error:
        yield area.problem("connection", f"{base}: {error}", error.change)
        return
    if anonymous.days is not None:
        yield certificate_finding(area, "the certificate of tower.url", anonymous.days)
    try:
        read_me(Answer(anonymous.status, anonymous.body))
    except Refused:
        yield area.ok("connection", f"{base} is the API of AWX or Tower: it refuses a request without a credential ({anonymous.status})")
    except Unavailable as error:
        yield area.problem("connection", f"{base}: {error}", "let tower.url be the API's own address, that of nginx and not of uwsgi")
        return
    else:
        yield area.problem("identity", f"{base}{_ME} knows a user without a credential", "let tower.url be the API's own address")
        return
    yield _latency(area, settings.deadline_s, anonymous.seconds)
    if anonymous.clock_s is None:
        yield area.unknown("clock", "the API's answer has no Date header, so its clock is not known")
    else:
        yield clock_finding(area, "tower.url", anonymous.clock_s)
    if token is None:
        yield area.skipped(
            "identity", "a user and what that user may see are only checked with a token: --token @FILE, --topic job_events.42"
        )
        return
    yield from _with_token(area, base, settings, groups, token, topic)


def _with_token(
    area: Area, base: str, settings: TowerSettings, groups: Mapping[str, GroupSettings], token: str, topic: str | None
) -> Iterator[Step]:
    yield Doing("asking for the user of the token", 3 * settings.password_deadline_s)
    try:
        answer = _ask(base + _ME, settings, token)
        me = read_me(Answer(answer.status, answer.body))
    except (Unreachable, Unavailable) as error:
        yield area.problem("identity", f"{base}{_ME} with the token: {error}", "see the log of AWX")
        return
    except Refused as error:
        yield area.problem("identity", f"{error}", "check the token, whether it has expired, and that AWX made it")
        return
    yield area.ok("identity", f"the token is user {me.user_id}'s{', who may read everything' if me.reads_all else ''}")
    yield _latency(area, settings.deadline_s, answer.seconds)
    if topic is None:
        yield area.skipped("object", "whether the user may see an object is only asked with --topic job_events.42")
        return
    parsed = parse_routing_key(topic)
    path = checked_objects(groups).get(parsed.group, "")
    if not path:
        yield area.skipped("object", f"the events of {parsed.group} belong to no object of the API")
        return
    path = path.replace("{id}", parsed.event)
    yield Doing(f"asking for {path}", 3 * settings.password_deadline_s)
    try:
        answer = _ask(base + path, settings, token)
        visible = read_visible(Answer(answer.status, answer.body))
    except (Unreachable, Unavailable, Refused) as error:
        yield area.problem("object", f"{path}: {error}", "see the log of AWX")
        return
    if visible:
        yield area.ok("object", f"the user may see {path} ({answer.seconds * 1000:.0f} ms)")
    else:
        change = "give the user a role on the object in AWX, or try another --topic"
        yield area.warning("object", f"the user may not see {path}, or there is no such object ({answer.status})", change)


def check_key_set(settings: JwtSettings) -> Iterator[Step]:
    """Check that the key set of `jwt.jwks_url` can be fetched."""
    area = Area("jwt")
    yield Doing("fetching the key set", 20)
    try:
        answer = fetch(settings.jwks_url, {"Accept": "application/json"}, ca=settings.jwks_ca_file, ca_option="jwt.jwks_ca_file")
    except Unreachable as error:
        yield area.problem("key set", f"jwt.jwks_url: {error}", error.change)
        return
    if answer.days is not None:
        yield certificate_finding(area, "the certificate of jwt.jwks_url", answer.days)
    try:
        keys = json.loads(answer.body)["keys"]
        count = len(keys) if answer.status == 200 and isinstance(keys, list) else 0
    except (ValueError, LookupError, TypeError, RecursionError):
        count = 0
    if count:
        yield area.ok("key set", f"jwt.jwks_url has {count} keys")
    else:
        yield area.problem(
            "key set", f"jwt.jwks_url answers {answer.status}, without keys", "correct jwt.jwks_url: the issuer names it as jwks_uri"
        )
    if answer.clock_s is None:
        yield area.unknown("clock", "the issuer's answer has no Date header, so its clock is not known")
    else:
        yield clock_finding(area, "the issuer", answer.clock_s, max(CLOCKS_S, settings.leeway_s))


def _ask(url: str, settings: TowerSettings, token: str | None) -> Fetched:
    headers = {"Accept": "application/json", **({} if token is None else {"Authorization": f"Bearer {token}"})}
    return fetch(url, headers, ca=settings.tls_ca, ca_option="tower.tls_ca", timeout_s=settings.password_deadline_s)


def _latency(area: Area, allowed_s: float, seconds: float) -> Finding:
    text = f"the API answers within {seconds * 1000:.0f} ms"
    change = "find out why it is slow, or raise tower.deadline_s"
    if seconds > allowed_s:
        return area.problem("latency", f"{text}, and tower.deadline_s = {allowed_s:g}: handshakes get a 503", change)
    if seconds > allowed_s / 2:
        return area.warning("latency", f"{text}, more than half of tower.deadline_s = {allowed_s:g}", change)
    return area.ok("latency", text)
