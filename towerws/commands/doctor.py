"""`towerws doctor`: checks the broker, the API, the daemon, this machine and the public URL, and says what to change."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

import click

from towerws.commands.config import config_options, load_or_exit
from towerws.commands.tail import read_token
from towerws.commands.terminal import Command, StatusLine, bad_parameter, print_out
from towerws.config.load import Loaded
from towerws.core.topics import parse_routing_key
from towerws.doctor.api import check_key_set, check_tower
from towerws.doctor.broker import check_broker
from towerws.doctor.daemon import AdminPort, check_configuration, check_daemon
from towerws.doctor.examination import Check, Finding, Level, examine, exit_code
from towerws.doctor.public import PublicUrl, check_public
from towerws.doctor.websocket import read_url
from towerws.outgoing import read_bounded, trust_root

IDLE_S = 70.0
"""How long a silent connection is held. nginx and many other proxies close one after 60 s."""

_COLOURS = {Level.OK: "32", Level.WARNING: "33", Level.PROBLEM: "31;1", Level.UNKNOWN: "35", Level.SKIPPED: "2"}


@click.command("doctor", cls=Command, short_help="Say what is wrong, and what to change.")
@click.option("--url", metavar="URL", help="The address that browsers use, https://tower.example.com/websocket/, through all proxies.")
@click.option("--url-ca", metavar="FILE", default="", help="PEM file with the authorities to trust for --url.  [default: the system's]")
@click.option(
    "--token", metavar="TOKEN", help="A bearer token for Tower's API and for --url. @FILE reads it from a file, which hides it from `ps`."
)
@click.option("--topic", metavar="TOPIC", help="With --token: ask Tower whether its user may see this object (job_events.42).")
@click.option(
    "--idle",
    metavar="SECONDS",
    type=click.FloatRange(min=0, max=3600),
    default=IDLE_S,
    show_default=True,
    help="With --url: how long to hold a silent connection open. 0: skip this check.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object with all findings, for programs.")
@config_options
def doctor_command(
    *,
    url: str | None,
    url_ca: str,
    token: str | None,
    topic: str | None,
    idle: float,
    as_json: bool,
    **values: object,
) -> NoReturn:
    """Check what the daemon depends on, and say what to change: one line for each finding.

    Run it on the daemon's machine, as the daemon's user, with the daemon's flags or file. It checks the broker (TLS, version, permissions,
    exchanges, stream, a marker's time, clocks), Tower's API, the running daemon, and this machine (certificates, descriptors,
    memory). With --url it checks the way through all proxies (TLS, Upgrade, path, Origin, X-Forwarded-For, delays, silent connections).

    It changes nothing. It publishes three or four markers on the broker, as daemons do. No client gets them.

    \b
    Each line: LEVEL  AREA CHECK: what was found -> what to change
      ok       it was checked and is in order
      warning  it works now, but may fail later
      problem  something doesn't work
      unknown  the check could not be made; the line says why
      skipped  the check was not asked for, or does not apply

    \b
    Examples:
      towerws doctor --config /etc/towerws/towerws.toml
      towerws doctor --config … --url https://tower.example.com/websocket/
      towerws doctor --config … --token @token.txt --topic job_events.42
      towerws doctor --config … --json | jq -r '.findings[].change'

    \b
    Exit codes:
      0  everything that was checked is in order
      1  there is a problem, or standard output can't be written
      2  the command line or the configuration can't be used
      3  no problem, but a warning, or a check that could not be made
    """  # noqa: D301 - \b is click's mark for lines that it must not join
    public = None
    credential = read_token(token)
    if url is not None:
        with bad_parameter("--url"):
            public = PublicUrl(read_url(url), url_ca, credential, idle)
    if url_ca:
        with bad_parameter("--url-ca"):
            trust_root(read_bounded(url_ca))
    if topic is not None:
        with bad_parameter("--topic"):
            parse_routing_key(topic)
    loaded = load_or_exit(values)
    if topic is not None and (credential is None or loaded.settings.tower is None):
        raise click.BadParameter("needs --token, and auth = tower", param_hint="--topic")
    if credential is not None and loaded.settings.tower is None and public is None:
        raise click.BadParameter("neither auth = tower nor --url needs a token", param_hint="--token")
    status = StatusLine(sys.stderr)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def tell(finding: Finding) -> None:
        status.clear()
        if not as_json:
            print_out(line(finding, colour=colour), colour=colour)

    findings = examine(list(checks(loaded, public, credential, topic)), tell, status.show)
    status.clear()
    code = exit_code(findings)
    if as_json:
        print_out(json.dumps({"exit": code, "findings": [as_object(finding) for finding in findings]}, indent=2))
    else:
        print_out(summary(findings))
    sys.exit(code)


def checks(loaded: Loaded, public: PublicUrl | None, token: str | None, topic: str | None) -> Iterator[Check]:
    """Yield the checks of a configuration, from the files to the public URL. An earlier problem may explain a later one."""
    settings = loaded.settings
    admin = AdminPort(settings.admin)
    yield Check("configuration", lambda: check_configuration(loaded))
    broker = settings.broker
    if broker is not None:
        for url in broker.urls:
            yield Check("broker", lambda url=url: check_broker(url, broker, only=len(broker.urls) == 1))  # type: ignore[misc]
    tower = settings.tower
    if tower is not None:
        yield Check("tower", lambda: check_tower(tower, settings.groups, token, topic))
    jwt = settings.jwt
    if jwt is not None and jwt.jwks_url:
        yield Check("jwt", lambda: check_key_set(jwt))
    yield Check("daemon", lambda: check_daemon(loaded, admin))
    if public is not None:
        yield Check("public", lambda: check_public(public, settings, admin))
    else:
        skipped = Finding(Level.SKIPPED, "public", "url", "the way through proxies is only checked with --url https://…/websocket/")
        yield Check("public", lambda: iter([skipped]))


def line(finding: Finding, *, colour: bool) -> str:
    """Return a finding as one line."""
    level = f"{finding.level.value:8}"
    if colour:
        level = f"\x1b[{_COLOURS[finding.level]}m{level}\x1b[0m"
    change = f" -> {finding.change}" if finding.change else ""
    return f"{level} {finding.area} {finding.check}: {finding.text}{change}"


def as_object(finding: Finding) -> dict[str, str]:
    """Return a finding for `--json`."""
    return {**dataclasses.asdict(finding), "level": finding.level.value}


def summary(findings: list[Finding]) -> str:
    """Return the last line: how many findings there are of each level."""
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    return ", ".join(f"{count} {level.value}" for level, count in counts.items() if count)
