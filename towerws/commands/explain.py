"""`towerws explain`: asks a daemon's admin port why a user does not get the events of a topic."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import urlencode

import click

from towerws.commands.publisher import admin_connection
from towerws.core.errors import printable

FAILED, NOT_DELIVERED = 1, 3
"""Exit codes, as the command's help explains them."""

TIMEOUT_S = 120.0
"""The daemon may ask AWX about ten connections, each for at most 10 s."""

_MARKS = {True: "yes", False: "NO", None: "?"}


@click.command("explain", short_help="Say why a user does not get the events of a topic.")
@click.argument("topic")
@click.argument("user", default="")
@click.option(
    "--admin", metavar="URL", default="http://127.0.0.1:9051", show_default=True, help="The daemon's admin port: http://127.0.0.1:9051."
)
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's answer as it is.")
def explain_command(topic: str, user: str, admin: str, as_json: bool) -> NoReturn:
    """Follow the daemon's rules for USER's connections and TOPIC, and name the one that decides.

    USER is the user's id. Without it, anonymous clients are meant (auth open). Each daemon knows only its own connections.

    \b
    Examples:
      towerws explain job_events.42 7
      towerws explain orders.1042 alice --admin http://127.0.0.1:9051

    \b
    Exit codes:
      0  the client gets the events
      1  the daemon can't be asked
      2  the command line is wrong, the topic included
      3  the client does not get the events, or that can't be known
    """  # noqa: D301 - \b is click's mark for lines that it must not join
    try:
        connection = admin_connection(admin)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--admin") from None
    connection.timeout = TIMEOUT_S
    status, answer = _ask(connection, admin, "/console/explain?" + urlencode({"user": user, "topic": topic}))
    if status == 400:
        raise click.BadParameter(str(answer.get("error")), param_hint="TOPIC")
    if status != 200:
        _fail(f"{admin} answers {status}: {answer.get('error', 'is that the admin port of a daemon with /console/explain?')}")
    if as_json:
        click.echo(json.dumps(answer))
    else:
        for line in explanation(answer):
            click.echo(line)
    sys.exit(0 if answer["verdict"]["passes"] else NOT_DELIVERED)


def explanation(answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines for a person: the rule that decides, then all rules."""
    verdict = answer["verdict"]
    yield f"{_MARKS[verdict['passes']]}: {verdict['rule']}{_of(verdict)}"
    yield f"     {verdict['text']}"
    yield ""
    yield from _steps(answer["steps"])
    for connection in answer["connections"]:
        yield f"connection {connection['connection']}"
        yield from _steps(connection["steps"])
    if answer["more_connections"]:
        yield f"and {answer['more_connections']} more connections, which were not looked at"


def _steps(steps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for step in steps:
        yield f"  {_MARKS[step['passes']]:<4} {step['rule']}: {step['text']}"


def _of(verdict: Mapping[str, Any]) -> str:
    return f" (connection {verdict['connection']})" if "connection" in verdict else ""


def _ask(connection: http.client.HTTPConnection, admin: str, path: str) -> tuple[int, dict[str, Any]]:
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        answer = json.loads(response.read())
    except (OSError, http.client.HTTPException) as error:
        _fail(
            f"{admin}: {getattr(error, 'strerror', None) or str(error) or repr(error)}; is the daemon running, and is that its admin port?"
        )
    except ValueError:
        _fail(f"{admin} answers without JSON: is that the admin port of a daemon?")
    finally:
        connection.close()
    if not isinstance(answer, dict):
        _fail(f"{admin} answers without an object: is that the admin port of a daemon?")
    return response.status, answer


def _fail(text: str) -> NoReturn:
    click.echo(f"towerws: {printable(text) if not text.isprintable() else text}", err=True)
    sys.exit(FAILED)
