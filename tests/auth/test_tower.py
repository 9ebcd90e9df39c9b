from __future__ import annotations

import hashlib
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from tests.auth.tower_kit import URL, Bench, cookie, head, logged, me, now
from tests.kit.rows import each_row
from towerws.auth.base import Refused, Unavailable
from towerws.auth.tower import TowerMethod
from towerws.auth.tower_api import Answer
from towerws.auth.tower_objects import AWX_OBJECTS
from towerws.core.errors import ConfigError
from towerws.core.identity import Identity, Revocation
from towerws.core.settings import Secret, TowerSettings
from towerws.core.topics import AWX_GROUPS

HERE = "192.0.2.1"
ME = "/api/v2/me/"
NO, UNKNOWN, ENDED, BROKEN = (Answer(status, b"") for status in (403, 404, 401, 503))
YES = Answer(200, b"{}")


def enter(bench: Bench, session: str = "k", answer: Answer | None = None) -> Identity:
    """Return a user who signed in with a session cookie."""
    bench.fetcher.answers = {ME: answer or me()}
    identity = now(bench.method.authenticate(cookie(session), HERE))
    assert identity is not None
    bench.fetcher.answers = {}
    bench.fetcher.paths()
    return identity


def refused(answer: Deferred[dict[str, str]]) -> dict[str, str]:
    """Return the refused topics with their reasons."""
    return now(answer)


def test_who_it_is_and_what_follows_from_the_credential() -> None:
    """The identity has the API's user id, a name for the credential and the handshake's csrftoken. A cookie needs an `xrftoken`."""
    bench = Bench()
    bench.fetcher.answers = {ME: me(42)}
    identity = now(bench.method.authenticate(cookie("k"), HERE))
    assert identity is not None
    assert (identity.user_id, identity.method, identity.cookie) == (42, "tower", True)
    assert identity.csrftoken == Secret("csrf")
    assert identity.session == hashlib.sha256(b"k").hexdigest()[:32]
    assert identity.expires_at is None
    outright = now(bench.method.authenticate(head(authorization="Bearer t"), HERE))
    assert outright is not None
    assert (outright.user_id, outright.cookie, outright.csrftoken) == (42, False, None)


def test_a_token_in_a_message() -> None:
    """A token in a message is checked, refused and throttled like one in the handshake. It needs no `xrftoken`."""
    bench = Bench()
    bench.fetcher.answers = {ME: me(42)}
    identity = now(bench.method.identify("t", HERE))
    assert (identity.user_id, identity.cookie, identity.session) == (42, False, hashlib.sha256(b"t").hexdigest()[:32])
    (_, headers, _) = bench.fetcher.asked[0]
    assert ("Authorization", "Bearer t") in headers
    assert ("X-Forwarded-For", HERE) in headers
    now(bench.method.authenticate(head(authorization="Bearer t"), HERE))
    assert len(bench.fetcher.asked) == 1, "the same credential, whichever way it came"
    bench.fetcher.answers = {ME: NO}
    with pytest.raises(Refused) as refused:
        now(bench.method.identify("bad", HERE))
    assert refused.value.credential == "token in a message"
    for text in ("", "two words", "t\r\nCookie: a=b", "gr\u00fcn", "t" * 5000):
        with pytest.raises(Refused):
            now(bench.method.identify(text, HERE))
    assert len(bench.fetcher.asked) == 2
    failures: list[Failure] = []
    for number in range(200):
        bench.method.identify(f"guess{number}", HERE).addErrback(failures.append)
    assert len(failures) == 99, "guessing is slowed down: a hundred of one address may fail at once"


def test_what_is_asked() -> None:
    """The question is `GET …/api/v2/me/` with the credential, the quiet header, the client's program and address, and no more."""
    bench = Bench()
    bench.method.authenticate(
        head(cookie="sessionid=k; csrftoken=c; other=o", user_agent="ua", origin="http://o", x_forwarded_for="::1"), HERE
    )
    (path, headers, _) = bench.fetcher.asked[0]
    assert path == ME
    assert sorted(headers) == [
        ("Accept", "application/json"),
        ("Cookie", "sessionid=k"),
        ("User-Agent", "ua"),
        ("X-Forwarded-For", HERE),
        ("X-WS-Session-Quiet", "true"),
    ]


def test_no_credential_returns_none() -> None:
    """Without a credential of its kinds the method returns None and asks nothing. The handshake logs the refusal."""
    bench = Bench()
    with logged() as lines:
        assert now(bench.method.authenticate(head(cookie="csrftoken=c"), HERE)) is None
    assert lines.texts == []
    assert bench.fetcher.asked == []


@each_row("answer", [ENDED, NO, Answer(200, b'{"count": 0, "results": []}')])
def test_a_bad_credential_is_refused_and_remembered(answer: Answer) -> None:
    """A credential that the API rejects is refused for ten seconds without another question, since old pages retry every second."""
    bench = Bench()
    bench.fetcher.answers = {ME: answer}
    session = hashlib.sha256(b"k").hexdigest()[:32]
    for _ in range(10):
        with pytest.raises(Refused) as refused:
            now(bench.method.authenticate(cookie("k"), HERE))
        assert (refused.value.credential, refused.value.session) == ("session cookie", session)
        bench.clock.advance(0.999)
    assert bench.fetcher.paths() == [ME]
    bench.clock.advance(0.01)
    assert enter(bench).user_id == 7


def test_a_good_credential_is_remembered() -> None:
    """The API is not asked about a valid credential for 45 seconds, from any address. The identity has the time of the answer."""
    bench = Bench()
    enter(bench)
    bench.clock.advance(44.9)
    identity = now(bench.method.authenticate(cookie("k"), "192.0.2.2"))
    assert identity is not None
    assert identity.checked_at == 1000
    assert bench.fetcher.paths() == []
    bench.clock.advance(0.1)
    bench.method.authenticate(cookie("k"), HERE)
    assert bench.fetcher.paths() == [ME]


@each_row("answer", [BROKEN, Answer(302, b""), Answer(200, b"<html>"), Answer(404, b"")])
def test_an_api_that_does_not_know_is_unavailable(answer: Answer) -> None:
    """An answer that says neither yes nor no is `Unavailable`, never `Refused`, and is not cached."""
    bench = Bench()
    bench.fetcher.answers = {ME: answer}
    with pytest.raises(Unavailable):
        now(bench.method.authenticate(cookie("k"), HERE))
    assert enter(bench).user_id == 7


def test_an_api_that_says_nothing() -> None:
    """A handshake is `Unavailable` after two seconds. A later answer of the API makes no credential valid (pitfall F3)."""
    bench = Bench()
    asked = bench.method.authenticate(cookie("k"), HERE)
    bench.clock.advance(2)
    with pytest.raises(Unavailable):
        now(asked)
    bench.fetcher.asked[0][2].callback(me())
    bench.method.authenticate(cookie("k"), HERE)
    assert bench.fetcher.paths() == [ME, ME]


def test_one_question_for_a_storm_of_equal_handshakes() -> None:
    """A hundred handshakes with one credential share one question. Each has its own csrftoken, and one may leave."""
    bench = Bench()
    asked = [bench.method.authenticate(head(cookie=f"sessionid=k; csrftoken=c{number}"), HERE) for number in range(100)]
    asked[0].cancel()
    with pytest.raises(CancelledError):
        now(asked[0])
    assert len(bench.fetcher.asked) == 1
    bench.fetcher.asked[0][2].callback(me())
    for number in range(1, 100):
        identity = now(asked[number])
        assert identity is not None
        assert identity.csrftoken == Secret(f"c{number}")
    assert bench.clock.getDelayedCalls() == []


def test_bad_credentials_push_out_no_good_ones() -> None:
    """With many bad credentials the cache stays bounded, and the good ones stay in it."""
    bench = Bench(cache_entries=10)
    enter(bench)
    bench.fetcher.answers = {ME: ENDED}
    for number in range(50):
        with pytest.raises(Refused):
            now(bench.method.authenticate(cookie(f"bad{number}"), HERE))
    bench.fetcher.paths()
    assert now(bench.method.authenticate(cookie("k"), HERE)) is not None
    assert bench.fetcher.paths() == []


def test_the_table_of_objects_is_awxs() -> None:
    """Each AWX group of an object's events has a path, also the three groups that AWX does not check."""
    assert sorted(AWX_OBJECTS) == sorted(name for name, group in AWX_GROUPS.items() if group.ids)


@each_row(("group", "path"), AWX_OBJECTS.items())
@each_row(("answer", "reason"), [(YES, None), (NO, "not visible to this user"), (UNKNOWN, "not visible to this user")])
def test_an_object_is_asked_for(group: str, path: str, answer: Answer, reason: str | None) -> None:
    """Each object group has its REST call, with the user's credential. Unknown and not visible objects are refused alike."""
    bench = Bench()
    identity = enter(bench)
    asked = bench.method.refusals(identity, [f"{group}.42"])
    (asked_path, headers, fire) = bench.fetcher.asked[0]
    assert asked_path == path.replace("{id}", "42")
    assert {("Cookie", "sessionid=k"), ("X-WS-Session-Quiet", "true"), ("X-Forwarded-For", HERE)} <= set(headers)
    fire.callback(answer)
    assert refused(asked) == ({f"{group}.42": reason} if reason else {})


@each_row("flag", ["is_superuser", "is_system_auditor"])
def test_superusers_and_auditors_need_no_question(flag: str) -> None:
    """Superusers and auditors see every object without a question, but not another user's control group."""
    bench = Bench()
    identity = enter(bench, answer=me(7, **{flag: True}))
    topics = [*(f"{group}.42" for group in AWX_OBJECTS), "control.limit_reached_8", "job_events.*"]
    assert sorted(refused(bench.method.refusals(identity, topics))) == ["control.limit_reached_8", "job_events.*"]
    assert bench.fetcher.asked == []


def test_groups_without_objects() -> None:
    """Every user may subscribe to the states of all objects, but only to its own control group."""
    bench = Bench()
    identity = enter(bench)
    topics = ["jobs.status_changed", "schedules.changed", "inventories.status_changed", "control.limit_reached_7"]
    assert refused(bench.method.refusals(identity, topics)) == {}
    others = ["control.limit_reached_1", "control.limit_reached_77", "control.limit_reached", "control.limit_reached_07", "control.*"]
    assert refused(bench.method.refusals(identity, others)) == dict.fromkeys(others, "another user's")
    assert bench.fetcher.asked == []


@each_row("event", ["*", "", "a", "-1", "4.2", "42/../1", "42?x", "1" * 19, "\u0664", "42\n", "{id}"])
def test_only_numbers_go_into_an_address(event: str) -> None:
    """An event that is no number of 1 to 18 digits is never asked about."""
    bench = Bench()
    topic = f"job_events.{event}"
    assert refused(bench.method.refusals(enter(bench), [topic])) == {topic: "not an object's number"}
    assert bench.fetcher.asked == []


def test_objects_of_ones_own() -> None:
    """The caller gives the groups that are checked per object, and their paths."""
    bench = Bench()
    settings = TowerSettings(url=f"{URL}/awx/")
    bench.method = TowerMethod(settings, bench.clock, {"hosts": "/api/v2/hosts/{id}/"}, fetcher=bench.fetcher)
    identity = enter(bench)
    bench.fetcher.answers = {"/5/": YES}
    assert refused(bench.method.refusals(identity, ["hosts.5", "job_events.1"])) == {}
    assert bench.fetcher.paths() == ["/awx/api/v2/hosts/5/"]


def test_answers_about_objects_are_kept() -> None:
    """Allowed is cached for 45 seconds, denied for five, since a job may become visible right after its launch. Each is per credential."""
    bench = Bench()
    identity, other = enter(bench), enter(bench, "other")
    bench.fetcher.answers = {"jobs/1/": YES, "jobs/2/": UNKNOWN}
    topics = ["job_events.1", "job_events.2"]
    expected = {"job_events.2": "not visible to this user"}
    for _ in range(3):
        assert refused(bench.method.refusals(identity, topics)) == expected
    assert bench.fetcher.paths() == ["/api/v2/jobs/1/", "/api/v2/jobs/2/"]
    assert refused(bench.method.refusals(other, topics)) == expected
    assert len(bench.fetcher.paths()) == 2
    bench.clock.advance(5)
    bench.fetcher.answers["jobs/2/"] = YES
    assert refused(bench.method.refusals(identity, topics)) == {}
    assert bench.fetcher.paths() == ["/api/v2/jobs/2/"]
    bench.clock.advance(39.9)
    assert refused(bench.method.refusals(identity, topics)) == {}
    assert bench.fetcher.paths() == []
    bench.clock.advance(0.1)
    bench.fetcher.answers["jobs/1/"] = NO
    assert refused(bench.method.refusals(identity, topics)) == {"job_events.1": "not visible to this user"}


def test_figures() -> None:
    """The cache hits are counted by kind. A superuser, who needs no question, is no hit."""
    bench = Bench()
    identity = enter(bench)
    bench.fetcher.answers = {"jobs/1/": YES, "jobs/2/": UNKNOWN}
    for _ in range(3):
        refused(bench.method.refusals(identity, ["job_events.1", "job_events.2"]))
    refused(bench.method.refusals(enter(bench, "root", me(1, is_superuser=True)), ["job_events.1"]))
    enter(bench)
    for _ in range(2):
        with pytest.raises(Refused):
            enter(bench, "bad", Answer(401, b""))
    figures = bench.method.figures()
    assert figures["cache_hits"] == {"valid": 1, "invalid": 1, "allowed": 2, "denied": 2}
    calls: Any = figures["calls"]
    assert (calls.pop("seconds")["buckets"]["+Inf"], calls["passwords"].pop("seconds")["buckets"]["+Inf"]) == (5, 0)
    none = {"made": 0, "failed": 0, "turned_away": 0, "in_flight": 0, "waiting": 0, "breaker": "closed"}
    assert calls == {**none, "made": 5, "object_breaker": "closed", "passwords": none}
    assert figures["throttled"] == {"delayed": 0, "refused": 0}


def test_what_was_allowed_is_no_older_than_the_credential() -> None:
    """A client that reconnects uses the answers since the last check of its credential, so that one round renews them all."""
    bench = Bench()

    def ask() -> list[str]:
        identity = enter(bench)
        bench.fetcher.answers = {"jobs/1/": YES}
        assert refused(bench.method.refusals(identity, ["job_events.1"])) == {}
        return bench.fetcher.paths()

    assert ask() == ["/api/v2/jobs/1/"]
    bench.clock.advance(30)
    assert ask() == []
    bench.clock.advance(14)
    identity = enter(bench)
    bench.fetcher.answers = {ME: me()}
    assert now(bench.method.revalidate(identity)).checked_at == 1044
    assert ask() == ["/api/v2/jobs/1/"]


@each_row("count", [1, 3, 4, 5, 50, 1000])
def test_four_objects_at_a_time(count: int) -> None:
    """Four objects of one client are asked about at a time. Equal questions of several connections are one call."""
    bench = Bench()
    identity = enter(bench)
    topics = [f"job_events.{number}" for number in range(count)]
    first, second = bench.method.refusals(identity, topics), bench.method.refusals(identity, topics)
    for number in range(count):
        assert len(bench.fetcher.asked) == min(count, number + 4)
        bench.fetcher.asked[number][2].callback(NO if number % 2 else YES)
    assert refused(first) == refused(second) == dict.fromkeys(topics[1::2], "not visible to this user")
    assert list(refused(bench.method.refusals(identity, topics))) == topics[1::2], "in the order in which they were asked for"
    assert bench.clock.getDelayedCalls() == []


def test_a_check_that_fails_for_a_moment() -> None:
    """A failed check is retried, and the result of the retry counts."""
    bench = Bench()
    asked = bench.method.refusals(enter(bench), ["job_events.1", "jobs.summary"])
    bench.fetcher.asked[0][2].callback(BROKEN)
    bench.clock.advance(0.4)
    assert len(bench.fetcher.asked) == 1
    bench.clock.advance(0.1)
    bench.fetcher.asked[1][2].callback(YES)
    assert refused(asked) == {}


def test_a_check_that_cannot_be_made() -> None:
    """After some seconds of retries the topic is refused as unavailable. It is never allowed, and has its own reason."""
    bench = Bench()
    identity = enter(bench)
    bench.fetcher.answers = {f"jobs/{number}/": BROKEN for number in range(2, 100)} | {"jobs/1/": YES}
    topics = [f"job_events.{number}" for number in range(1, 100)] + ["control.limit_reached_1", "jobs.summary"]
    asked = bench.method.refusals(identity, topics)
    for _ in range(8):
        assert not asked.called
        bench.clock.advance(0.5)
    answer = refused(asked)
    assert answer.pop("control.limit_reached_1") == "another user's"
    assert answer == dict.fromkeys(topics[1:99], "unavailable")
    assert len(bench.fetcher.paths()) == 1 + 4 * 9 + 19, "an answer, nine tries for each of four topics, and one for 19 more"
    bench.clock.advance(3)
    bench.fetcher.answers = {f"jobs/{number}/": YES for number in range(1, 100)}
    assert refused(bench.method.refusals(identity, topics[:99])) == {}, "it was not remembered"
    assert bench.clock.getDelayedCalls() == []


def test_refusals_as_they_come() -> None:
    """A refusal is told a second after its answer at the latest, together with others, and only once. The rest is told at the end."""
    bench = Bench()
    identity = enter(bench)
    topics = ["control.limit_reached_8", "jobs.summary", *(f"job_events.{number}" for number in range(1, 9))]
    told: list[dict[str, str]] = []
    checked = bench.method.tell_refusals(identity, topics, told.append)
    asked = bench.fetcher.asked
    asked[0][2].callback(NO)
    asked[1][2].callback(YES)
    asked[2][2].callback(NO)
    assert told == []
    bench.clock.advance(1)
    hidden = "not visible to this user"
    assert told == [{"control.limit_reached_8": "another user's", "job_events.1": hidden, "job_events.3": hidden}]
    asked[3][2].callback(NO)
    for _, _, question in asked[4:7]:
        question.callback(YES)
    bench.clock.advance(1)
    assert told[1:] == [{"job_events.4": hidden}]
    asked[7][2].callback(NO)
    assert now(checked) is None
    assert told[2:] == [{"job_events.8": hidden}]
    assert bench.clock.getDelayedCalls() == []
    bench.clock.advance(1)
    assert now(bench.method.tell_refusals(identity, topics[:3], told.append)) is None
    assert told[3:] == [{"control.limit_reached_8": "another user's", "job_events.1": hidden}], "from the cache"


def test_refusals_that_are_no_longer_wanted() -> None:
    """A check that is cancelled tells no more."""
    bench = Bench()
    told: list[dict[str, str]] = []
    checked = bench.method.tell_refusals(enter(bench), ["job_events.1", "job_events.2"], told.append)
    bench.fetcher.asked[0][2].callback(NO)
    checked.cancel()
    with pytest.raises(CancelledError):
        now(checked)
    bench.fetcher.asked[1][2].callback(NO)
    bench.clock.advance(4)
    assert told == []
    assert bench.clock.getDelayedCalls() == []


@each_row("broken", [1, 4, 19])
def test_objects_without_an_answer_do_not_stop_the_others(broken: int) -> None:
    """AWX answers 500 for an object that it can't show. The others are asked about once these are given up, and first the next time."""
    bench = Bench()
    identity = enter(bench)
    bench.fetcher.answers = {f"jobs/{number}/": BROKEN for number in range(1, broken + 1)} | {"jobs/98/": YES, "jobs/99/": NO}
    topics = [*(f"job_events.{number}" for number in range(1, broken + 1)), "job_events.98", "job_events.99"]

    def ask() -> list[str]:
        asked = bench.method.refusals(identity, topics)
        for _ in range(8):
            bench.clock.advance(0.5)
        assert refused(asked) == dict.fromkeys(topics[:broken], "unavailable") | {"job_events.99": "not visible to this user"}
        return bench.fetcher.paths()

    others = ["/api/v2/jobs/98/", "/api/v2/jobs/99/"]
    assert ask()[0] == "/api/v2/jobs/1/"
    bench.clock.advance(50)
    assert ask()[:2] == others
    bench.clock.advance(250)
    assert ask()[:2] == others, "each check remembers what failed"
    bench.clock.advance(50)
    bench.fetcher.answers = {f"jobs/{number}/": YES for number in range(100)}
    assert refused(bench.method.refusals(identity, topics)) == {}
    bench.clock.advance(50)
    bench.fetcher.paths()
    assert refused(bench.method.refusals(identity, topics)) == {}
    assert bench.fetcher.paths()[0] == "/api/v2/jobs/1/", "what has an answer again is as the others"
    assert bench.clock.getDelayedCalls() == []


def test_a_credential_that_ends_during_the_check() -> None:
    """401 for an object refuses it and the rest, and the next handshake asks the API again."""
    bench = Bench()
    identity = enter(bench)
    bench.fetcher.answers = {"jobs/1/": YES, "jobs/2/": ENDED}
    topics = [f"job_events.{number}" for number in range(1, 5)]
    assert refused(bench.method.refusals(identity, topics)) == dict.fromkeys(topics[1:], "the credential has ended")
    assert len(bench.fetcher.paths()) == 2
    bench.method.authenticate(cookie("k"), HERE)
    assert bench.fetcher.paths() == [ME]


def test_a_check_that_is_cancelled() -> None:
    """A client that leaves during a question or a pause leaves no timer. Another client with the same question gets the answer."""
    bench = Bench()
    identity = enter(bench)
    gone, stays = (bench.method.refusals(identity, ["job_events.1"]) for _ in range(2))
    gone.cancel()
    with pytest.raises(CancelledError):
        now(gone)
    bench.fetcher.asked[0][2].callback(BROKEN)
    stays.cancel()
    with pytest.raises(CancelledError):
        now(stays)
    assert bench.clock.getDelayedCalls() == []


def test_revalidation_bypasses_the_cache() -> None:
    """Revalidation asks the API without the cache and with the quiet header. It returns the present identity."""
    bench = Bench()
    identity = enter(bench)
    bench.fetcher.answers = {ME: me(7, is_superuser=True)}
    renewed = now(bench.method.revalidate(identity))
    assert [path for path, _, _ in bench.fetcher.asked] == [ME]
    assert ("X-WS-Session-Quiet", "true") in bench.fetcher.asked[0][1]
    assert renewed == Identity(
        7, "tower", identity.session, cookie=True, csrftoken=Secret("csrf"), checked_at=1000, private=renewed.private
    )
    assert refused(bench.method.refusals(renewed, ["job_events.1"])) == {}
    bench.fetcher.answers = {ME: me(), "jobs/1/": NO}
    demoted = now(bench.method.revalidate(renewed))
    assert refused(bench.method.refusals(demoted, ["job_events.1"])) == {"job_events.1": "not visible to this user"}


def test_revalidation_takes_no_older_permission() -> None:
    """After a revalidation earlier answers don't count for that connection, so a changed role takes effect at once (promise 34)."""
    bench = Bench()
    identity = enter(bench)
    bench.fetcher.answers = {"jobs/1/": YES, "jobs/2/": NO}
    topics = ["job_events.1", "job_events.2"]
    refused(bench.method.refusals(identity, topics))
    earlier = bench.method.refusals(identity, ["job_events.3"])
    bench.clock.advance(1)
    bench.fetcher.answers = {ME: me(), "jobs/1/": NO, "jobs/2/": YES}
    renewed = now(bench.method.revalidate(identity))
    bench.fetcher.paths()
    assert refused(bench.method.refusals(renewed, topics)) == {"job_events.1": "not visible to this user"}
    assert len(bench.fetcher.paths()) == 2
    assert not earlier.called
    later = bench.method.refusals(renewed, ["job_events.3"])
    assert bench.fetcher.paths() == ["/api/v2/jobs/3/"], "a question put before the revalidation was waited for"
    for waiting in (earlier, later):
        waiting.addErrback(lambda _: None).cancel()


def test_an_answer_that_is_older_than_a_refusal() -> None:
    """A slow answer to an earlier question does not bring back a session that has ended since, neither at once nor from the cache."""
    bench = Bench()
    identity = enter(bench)
    bench.clock.advance(50)
    slow = bench.method.authenticate(cookie("k"), HERE)
    bench.clock.advance(1)
    checked = bench.method.revalidate(identity)
    before, after = (question for _, _, question in bench.fetcher.asked)
    after.callback(ENDED)
    with pytest.raises(Refused):
        now(checked)
    before.callback(me())
    for late in (slow, bench.method.authenticate(cookie("k"), HERE)):
        with pytest.raises(Refused):
            now(late)
    bench.clock.advance(10)
    bench.fetcher.answers = {ME: me()}
    assert now(bench.method.authenticate(cookie("k"), HERE)) is not None, "a newer answer counts"


def test_a_permission_that_is_older_than_a_denial() -> None:
    """Neither a slow answer nor one in the cache brings back an object that is hidden since."""
    bench = Bench()
    identity = enter(bench)
    bench.fetcher.answers = {"jobs/1/": YES}
    assert refused(bench.method.refusals(identity, ["job_events.1"])) == {}
    bench.fetcher.answers = {}
    bench.fetcher.paths()
    slow = bench.method.refusals(identity, ["job_events.2"])
    bench.clock.advance(1)
    bench.fetcher.answers = {ME: me(), "jobs/1/": NO, "jobs/2/": NO}
    newer = now(bench.method.revalidate(identity))
    hidden = "not visible to this user"
    assert refused(bench.method.refusals(newer, ["job_events.1", "job_events.2"])) == {"job_events.1": hidden, "job_events.2": hidden}
    bench.fetcher.asked[0][2].callback(YES)
    assert refused(slow) == {"job_events.2": hidden}
    for user in (identity, newer):
        assert refused(bench.method.refusals(user, ["job_events.1", "job_events.2"])) == {"job_events.1": hidden, "job_events.2": hidden}
    bench.clock.advance(5)
    bench.fetcher.answers = {"jobs/1/": YES, "jobs/2/": YES}
    assert refused(bench.method.refusals(newer, ["job_events.1", "job_events.2"])) == {}, "a newer answer counts"


def test_revalidation_of_what_has_ended() -> None:
    """A credential that the API rejects now is refused, for handshakes too. One that belongs to another user now is refused too."""
    bench = Bench()
    identity = enter(bench)
    bench.fetcher.answers = {ME: ENDED}
    with pytest.raises(Refused):
        now(bench.method.revalidate(identity))
    with pytest.raises(Refused):
        now(bench.method.authenticate(cookie("k"), HERE))
    assert bench.fetcher.paths() == [ME]
    bench.fetcher.answers = {ME: me(8)}
    with pytest.raises(Refused, match="another user"):
        now(bench.method.revalidate(identity))


def test_revalidation_while_the_api_is_away() -> None:
    """Revalidation is `Unavailable` and the cache is unchanged, so open connections stay as they are."""
    bench = Bench()
    identity = enter(bench)
    bench.fetcher.answers = {ME: BROKEN}
    with pytest.raises(Unavailable):
        now(bench.method.revalidate(identity))
    assert now(bench.method.authenticate(cookie("k"), HERE)) is not None


def test_revalidation_does_not_join_an_earlier_question() -> None:
    """Revalidation does not join a handshake's call, whose answer may be older than a revocation. Several connections share one call."""
    bench = Bench()
    identity = enter(bench)
    bench.clock.advance(60)
    bench.method.authenticate(cookie("k"), HERE)
    asked = [bench.method.revalidate(identity) for _ in range(3)]
    assert len(bench.fetcher.asked) == 2
    bench.fetcher.asked[1][2].callback(ENDED)
    for each in asked:
        with pytest.raises(Refused):
            now(each)


def test_stop() -> None:
    """After stop, each question is `Unavailable`, and no timer and no connection is left."""
    bench = Bench()
    identity = enter(bench)
    checked = bench.method.refusals(identity, ["job_events.1"])
    bench.fetcher.asked[0][2].callback(BROKEN)  # it pauses now
    waiting: list[Deferred[object]] = [bench.method.authenticate(cookie("other"), HERE), bench.method.revalidate(identity)]  # type: ignore[list-item]
    assert now(bench.method.stop()) is None
    assert bench.fetcher.stopped
    for each in waiting:
        with pytest.raises(Unavailable):
            now(each)
    assert refused(checked) == {"job_events.1": "unavailable"}
    assert bench.clock.getDelayedCalls() == []


def test_no_secret_is_shown() -> None:
    """The repr of an identity, errors, log lines and tracebacks contain no part of a credential."""
    bench = Bench(invalid_s=0)
    brought = [
        head(cookie='sessionid="canary-1"; csrftoken=canary-2'),
        head("session_key=canary-3"),
        head("token=canary-4"),
        head(authorization="Bearer canary-5"),
        head(authorization="Basic dXNlcjpjYW5hcnktNg=="),
        head(cookie="token=%22canary-7%22"),
        head("x=canary-8", cookie="canary=canary-9", referer="canary-10", user_agent="canary-11"),
    ]
    shown = []
    with logged() as lines:
        for each in brought:
            for answer in (me(), ENDED, BROKEN, Answer(200, b"canary-12"), Failure(Unavailable("away"))):
                asked = bench.method.authenticate(each, HERE)
                asked.addErrback(lambda failure: shown.append(failure.getTraceback(detail="verbose") and repr(failure.value)))
                for _, _, fire in bench.fetcher.asked:
                    fire.callback(answer)
                bench.fetcher.paths()
                bench.clock.advance(61)
                asked.addCallback(lambda identity: shown.append(repr(identity)))
    assert len(lines.texts) > 5
    for canary in ("canary", "dXNlc"):
        assert canary not in lines.everything()
        assert canary not in "".join(filter(None, shown))
    assert "X-WS" not in repr(enter(bench).private)


@each_row("url", ["", "tower.example", "http://user:pass@h"])
def test_bad_settings_fail_when_the_method_is_made(url: str) -> None:
    """A setting that can't be used is an error when the method is made, not at the first client."""
    with pytest.raises(ConfigError, match=r"tower\.url"):
        TowerMethod(TowerSettings(url=url), Bench().clock)


@each_row("revocation", [Revocation(user=7), Revocation(session=hashlib.sha256(b"k").hexdigest()[:32]), None])
def test_a_revocation_empties_the_cache_of_its_user(revocation: Revocation | None) -> None:
    """After a revocation the API is asked again, about the credential and the objects. Other users' answers stay cached."""
    bench = Bench()
    identity = enter(bench)
    bench.fetcher.answers = {"/api/v2/jobs/1/": YES}
    assert refused(bench.method.refusals(identity, ["job_events.1"])) == {}
    enter(bench, "other", me(8))
    bench.clock.advance(1)
    bench.method.forget(revocation)
    bench.clock.advance(0.001)
    bench.fetcher.answers = {ME: me(8)}
    now(bench.method.authenticate(cookie("other"), HERE))
    assert bench.fetcher.paths() == ([] if revocation else [ME])
    bench.fetcher.answers = {ME: me(), "/api/v2/jobs/1/": NO}
    again = now(bench.method.authenticate(cookie("k"), HERE))
    assert again is not None
    assert refused(bench.method.refusals(again, ["job_events.1"])) == {"job_events.1": "not visible to this user"}
    assert bench.fetcher.paths() == [ME, "/api/v2/jobs/1/"]
    now(bench.method.authenticate(cookie("k"), HERE))
    assert bench.fetcher.paths() == []


def test_a_call_from_before_a_revocation_is_not_shared_or_cached() -> None:
    """A later client does not join a call from before a revocation, and the answer of that call is not cached for it."""
    bench = Bench()
    before = bench.method.authenticate(cookie("k"), HERE)
    bench.method.forget(Revocation(user=7))
    bench.clock.advance(0.5)
    after = bench.method.authenticate(cookie("k"), HERE)
    (_, _, first), (_, _, second) = bench.fetcher.asked
    first.callback(me())
    assert now(before) is not None
    assert not after.called
    second.callback(ENDED)
    with pytest.raises(Refused):
        now(after)
    bench.clock.advance(11)  # invalid_s
    bench.fetcher.paths()
    bench.method.authenticate(cookie("k"), HERE)
    assert bench.fetcher.paths() == [ME]


def test_a_successor_goes_on_counting() -> None:
    """A reload sets no count back. What the replaced method does later counts, too."""
    before, after = Bench(), Bench()
    before.fetcher.answers = {"/me/": me()}
    for _ in range(2):
        user = now(before.method.authenticate(cookie("s"), "192.0.2.1"))
    assert user is not None
    now(before.method.authenticate(head(authorization="Basic YTpi"), "192.0.2.1"))
    after.method.take_over(before.method)
    counted: Any = after.method.figures()
    assert counted["cache_hits"]["valid"] == 1
    assert (counted["calls"]["made"], counted["calls"]["passwords"]["made"]) == (1, 1)
    assert counted["calls"]["seconds"]["buckets"]["+Inf"] == 1
    before.method.undecided(user, ["job_events.42"])
    late = before.method.refusals(user, ["job_events.42"])
    before.fetcher.asked[-1][2].callback(Answer(200, b"{}"))
    assert now(late) == now(before.method.refusals(user, ["job_events.42"])) == {}
    counted = after.method.figures()
    assert counted["cache_hits"]["allowed"] == 1
    assert (counted["calls"]["made"], counted["calls"]["seconds"]["buckets"]["+Inf"]) == (2, 2)
