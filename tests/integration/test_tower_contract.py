"""The whole method over real HTTP, with a fake of AWX's API: contract sections 3.1 to 3.3, promises 28, 34 and 39."""

from __future__ import annotations

import base64
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from tests.auth.tower_kit import Lines, head, logged, run
from tests.kit.fake_tower import FakeTower, User
from tests.kit.rows import each_row
from tests.test_outgoing import until
from towerws.auth import tower
from towerws.auth.base import Refused, Unavailable
from towerws.auth.tower import TowerMethod
from towerws.auth.tower_objects import AWX_OBJECTS
from towerws.core.http_head import Head
from towerws.core.identity import Identity
from towerws.core.settings import TowerSettings

reactor: Any = _reactor

HERE = "192.0.2.1"
OLD = "0123456789abcdef0123456789abcdef01234567"
ADA, BOB, ROOT, AUDITOR = User(7), User(8), User(1, is_superuser=True), User(2, is_system_auditor=True)
BASIC = base64.b64encode(b"ada:canary-pass:word").decode()


class Site:
    """The API with some users and jobs, the method that asks it, and the log."""

    def __init__(self, lines: Lines, **settings: Any) -> None:
        self.lines = lines
        self.tower = FakeTower(
            sessions={"canary-ada": ADA, "canary-bob": BOB, "canary-root": ROOT, "canary-auditor": AUDITOR},
            tokens={"canary-token": ADA},
            old_tokens={OLD: ADA},
            passwords={"ada:canary-pass:word": ADA},
            visible={path.replace("{id}", "1"): {7} for path in AWX_OBJECTS.values()},
        ).start()
        self.method = TowerMethod(TowerSettings(url=self.tower.url, **settings), reactor)

    async def enter(self, brought: Head) -> Identity:
        """Return the user of a handshake."""
        identity = await self.method.authenticate(brought, HERE)
        assert identity is not None
        return identity


@asynccontextmanager
async def site(**settings: Any) -> AsyncIterator[Site]:
    """A site. At the end no connection, timer or unhandled error is left, and no secret is in the log."""
    before = set(reactor.getDelayedCalls())
    with logged() as lines:
        made = Site(lines, **settings)
        try:
            yield made
            assert all(request.headers["x-ws-session-quiet"] == "true" for request in made.tower.seen)
            await made.method.stop()
            await until(lambda: not made.tower.connections)
        finally:
            await made.tower.stop()
        await until(lambda: not set(reactor.getDelayedCalls()) - before)
        gc.collect()
        assert [event for event in lines.events if "log_failure" in event] == []
        for secret in ("canary", OLD, BASIC):
            assert secret not in lines.everything()


def cookie(session: str) -> Head:
    """Return the head of a browser."""
    return head(cookie=f"csrftoken=canary-csrf; sessionid=canary-{session}")


@run
@each_row(
    "brought",
    [
        cookie("ada"),
        head(cookie='sessionid="canary-ada";csrftoken=canary-csrf'),
        head("session_key=canary-ada"),
        head("token=canary-token"),
        head(authorization="Bearer canary-token"),
        head(authorization=f"Basic {BASIC}"),
        head(cookie=f"token=%22{OLD}%22"),
        head(cookie=f'token="{OLD}";'),
        head(cookie="other=x; awx_sessionid=canary-other; sessionid=canary-ada"),
    ],
)
async def test_each_credential_is_known_to_the_api(brought: Head) -> None:
    """Each credential that AWX accepts admits its user (contract 3.1)."""
    async with site() as made:
        identity = await made.enter(brought)
        assert (identity.user_id, identity.method) == (7, "tower")
        assert "canary" not in repr(identity)
        assert OLD not in repr(identity)
        assert made.tower.paths() == ["/api/v2/me/"]


@run
@each_row("name", ["awx_sessionid", "awxsessionid", "sessionid"])
async def test_whatever_the_session_cookie_is_called(name: str) -> None:
    """The cookie and `session_key` work with each name that AWX has given its cookie."""
    async with site() as made:
        made.tower.session_cookie = name
        assert (await made.enter(head(cookie=f"{name}=canary-ada"))).user_id == 7
        assert (await made.enter(head("session_key=canary-bob"))).user_id == 8


@run
@each_row("brought", [cookie("gone"), head("token=canary-gone"), head(authorization="Basic Y2FuYXJ5Ong="), head(cookie="token=canary")])
async def test_what_the_api_does_not_know_is_refused(brought: Head) -> None:
    """A credential that has ended or never existed is `Refused` (403). Old pages that retry cost one question."""
    async with site() as made:
        for _ in range(5):
            with pytest.raises(Refused):
                await made.enter(brought)
        assert made.tower.paths() == ["/api/v2/me/"]


@run
async def test_a_user_may_subscribe_to_objects_that_the_api_shows() -> None:
    """A user may subscribe to an object's events if it sees the object. Superusers and auditors need no question (contract 3.3)."""
    async with site() as made:
        ada, bob, root, auditor = [await made.enter(cookie(name)) for name in ("ada", "bob", "root", "auditor")]
        made.tower.paths()
        topics = [f"{group}.{number}" for group in AWX_OBJECTS for number in (1, 2)] + ["jobs.summary"]
        assert sorted(await made.method.refusals(ada, topics)) == sorted(topic for topic in topics if topic.endswith(".2"))
        assert sorted(await made.method.refusals(bob, topics)) == sorted(topics[:-1])
        assert len(made.tower.paths()) == 24
        assert await made.method.refusals(root, topics) == await made.method.refusals(auditor, topics) == {}
        assert made.tower.paths() == []


@run
@each_row(
    "fault",
    ["slow", "hang", "stall", "302", "301", "500", "502", "503", "404", "429", "malformed", "garbage", "huge", "cut", "close", "refuse"],
)
async def test_every_fault_is_unavailable_and_passes(fault: str) -> None:
    """With any fault of the API a handshake is `Unavailable` within the deadline. It succeeds when the API works again (promise 28)."""
    async with site(deadline_s=0.3) as made:
        made.tower.delay_s = 5
        port = int(made.tower.url.rpartition(":")[2])
        if fault == "refuse":
            await made.tower.stop()
        made.tower.fault = fault
        with pytest.raises(Unavailable):
            await made.enter(cookie("ada"))
        made.tower.fault = ""
        if fault == "refuse":
            made.tower.start(port=port)
        assert (await made.enter(cookie("ada"))).user_id == 7
        assert any("can't be asked" in line or "404" in line for line in made.lines.texts) or fault in {"404", "429"}


@run
async def test_a_storm_of_clients_is_a_bounded_number_of_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 clients with different credentials all get an answer, and the API never has more than twenty calls."""
    # A busy machine takes longer for 200 calls than a browser waits. test_tower_calls.py tests that wait, without a real clock.
    monkeypatch.setattr(tower, "handshake_wait_s", lambda credential: 60.0)
    async with site() as made:
        made.tower.fault, made.tower.delay_s = "slow", 0.02
        made.tower.sessions |= {f"canary-{number}": User(number + 100) for number in range(200)}
        entering: list[Deferred[Any]] = [made.method.authenticate(cookie(str(number)), HERE) for number in range(200)]
        outcomes = [result for _, result in await DeferredList(entering, consumeErrors=True)]
        assert [identity.user_id for identity in outcomes] == [number + 100 for number in range(200)]
        assert 2 < made.tower.most_at_once <= 20


@run
async def test_a_hanging_api_opens_the_breaker() -> None:
    """With an API that hangs, hundreds of clients are `Unavailable` within the deadline. Later ones fail at once, except for a probe."""
    async with site(deadline_s=0.3, breaker_probe_s=0.5) as made:
        made.tower.fault = "hang"
        entering: list[Deferred[Any]] = [made.method.authenticate(cookie(str(number)), f"192.0.2.{number % 9}") for number in range(300)]
        outcomes = [result for _, result in await DeferredList(entering, consumeErrors=True)]
        assert all(isinstance(result, Failure) and result.check(Unavailable) for result in outcomes)
        assert made.tower.most_at_once <= 40  # the aborted ones are over before the API has noticed
        made.tower.paths()
        made.tower.fault = ""
        with pytest.raises(Unavailable):
            await made.enter(cookie("ada"))
        assert made.tower.paths() == []
        await made.method._calls.pause(0.6)
        assert (await made.enter(cookie("ada"))).user_id == 7
        assert sum("times in a row" in line for line in made.lines.texts) == 1
        assert "the Tower API answers again" in made.lines.texts
        assert len([line for line in made.lines.texts if "starting on" not in line]) <= 6, made.lines.texts


@run
async def test_revocation() -> None:
    """After a deleted session, a revoked token or a lost role, the next revalidation fails (promise 34)."""
    async with site() as made:
        ada, token = await made.enter(cookie("ada")), await made.enter(head("token=canary-token"))
        assert await made.method.refusals(ada, ["job_events.1"]) == {}
        made.tower.visible["/api/v2/jobs/1/"].clear()
        ada = await made.method.revalidate(ada)
        assert list(await made.method.refusals(ada, ["job_events.1"])) == ["job_events.1"]
        made.tower.fault = "503"
        with pytest.raises(Unavailable):
            await made.method.revalidate(ada)
        made.tower.fault = ""
        del made.tower.sessions["canary-ada"], made.tower.tokens["canary-token"]
        for identity in (ada, token):
            with pytest.raises(Refused):
                await made.method.revalidate(identity)
        with pytest.raises(Refused):
            await made.enter(cookie("ada"))


@run
async def test_stop_in_the_middle() -> None:
    """Stopping while the API hangs ends all calls at once."""
    async with site() as made:
        made.tower.fault = "hang"
        asked = made.method.authenticate(cookie("ada"), HERE)
        await until(lambda: made.tower.at_once == 1)
        await made.method.stop()
        with pytest.raises(Unavailable):
            await asked
        await until(lambda: made.tower.at_once == 0)
