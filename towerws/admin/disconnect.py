"""`POST /disconnect`: close the connections of a user or a credential, on this daemon and on the others of the broker.

The body is `{"user": 7}` or `{"session": "<hash>"}`.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred

from towerws.admin.endpoint import Answer, HttpError, json_answer
from towerws.core.revocation import Disconnection, Revocation, parse_revocation


def disconnect_clients(body: bytes, disconnect: Callable[[Revocation], Deferred[Disconnection]]) -> Deferred[Answer]:
    """Close the connections that the body names. `disconnect` closes them and tells the other daemons."""
    try:
        revocation = parse_revocation(body)
    except ValueError as error:
        raise HttpError(400, str(error)) from None
    return disconnect(revocation).addCallback(_report)


def _report(done: Disconnection) -> Answer:
    """Answer 202 with the number closed here. 503 if other daemons may still have such connections."""
    answer: dict[str, object] = {"disconnected": done.closed}
    if done.told is not None:
        answer["others_told"] = done.told
    if done.told is not False:
        return json_answer(202, answer)
    if done.no_answer:
        answer["no_answer"] = [{"id": daemon, "name": name} for daemon, name in done.no_answer]
        error = f"not every daemon has said that it ended the connections: {done.reason}"
    else:
        error = f"connections were ended on this daemon only; the others could not be told: {done.reason}"
    return json_answer(503, {**answer, "error": error})
