from __future__ import annotations

import fcntl
import json
import os
import pty
import queue
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from click.testing import CliRunner
from private_rabbitmq import free_port

from tests.integration.tower_api import OAUTH, Api, serve_tower
from tests.kit.daemon import DEADLINE_S, TOWERWS, Daemon
from tests.kit.rows import each_row
from tests.kit.standin import StandIn
from towerws.cli import main
from towerws.core.origins import HOST_REFUSED, ORIGIN_REFUSED
from towerws.tail.session import DEFAULT_TOPICS


class Running:
    """A running `towerws tail`, whose lines the test can wait for."""

    def __init__(self, *arguments: str, stdout: int = subprocess.PIPE) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        self.process = subprocess.Popen(
            [*TOWERWS, "tail", *arguments], stdout=stdout, stderr=subprocess.PIPE, env=environment, encoding="utf-8"
        )
        self._out = self._lines(self.process.stdout) if stdout == subprocess.PIPE else None
        self._err = self._lines(self.process.stderr)

    @staticmethod
    def _lines(stream: IO[str] | None) -> queue.Queue[str]:
        assert stream is not None
        lines: queue.Queue[str] = queue.Queue()

        def read() -> None:
            with stream:
                for line in stream:
                    lines.put(line.rstrip("\n"))

        threading.Thread(target=read, daemon=True).start()
        return lines

    def line(self) -> str:
        """The next line of its output."""
        assert self._out is not None
        return self._out.get(timeout=DEADLINE_S)

    def notice(self) -> str:
        """The next line on standard error."""
        return self._err.get(timeout=DEADLINE_S)

    def interrupt(self) -> int:
        """Send Ctrl-C. Returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def standin() -> Iterator[StandIn]:
    """A stand-in for the daemon."""
    with StandIn() as running:
        yield running


@pytest.fixture
def tails() -> Iterator[list[Running]]:
    """The commands that a test starts. They end with the test."""
    started: list[Running] = []
    yield started
    for running in started:
        running.process.kill()
        running.process.wait()


def asked(standin: StandIn) -> dict[str, Any]:
    """The next request, without its number."""
    request = standin.requests.get(timeout=DEADLINE_S)
    del request["id"]
    return request


def test_plain_lines(standin: StandIn, tails: list[Running]) -> None:
    """In a pipe each event of the topics is a plain line. Ctrl-C ends it with exit code 0."""
    tails.append(Running("--url", standin.url, "job_events.42", "jobs.summary"))
    assert asked(standin) == {"groups": {"job_events": ["42"], "jobs": ["summary"]}}
    standin.publish("job_events.41", b'{"stdout": "no"}')
    standin.publish("job_events.42", b'{"stdout": "\\u001b[0;32mok: [web01]\\u001b[0m\\u0007"}')
    standin.publish("jobs.summary", b'{"unified_job_id": 42, "final_counter": 1}')
    assert tails[0].line()[9:].split(None, 1) == ["job_events.42", r"ok: [web01]\x07"]
    assert tails[0].line()[9:].split(None, 1) == ["jobs.summary", "job 42 has made 1 events"]
    assert tails[0].interrupt() == 0


def test_terminal(standin: StandIn) -> None:
    """On a terminal the job's colours pass."""
    ours, theirs = pty.openpty()
    running = Running("--url", standin.url, "job_events.42", stdout=theirs)
    os.close(theirs)
    asked(standin)
    standin.publish("job_events.42", b'{"stdout": "\\u001b[0;32mok: [web01]\\u001b[0m"}')
    read = b""
    while b"\n" not in read:
        read += os.read(ours, 1024)
    assert b"\x1b[0;32mok: [web01]\x1b[0m" in read
    assert running.interrupt() == 0
    os.close(ours)


def test_columns_of_a_terminal(standin: StandIn) -> None:
    """On 80 columns the texts of all topics begin in one column, with half of the line for them (findings O14)."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    topics = ("jobs.summary", "inventory_update_events.814123", "own.name-of-an-event-that-is-longer-than-what-has-room-for")
    running = Running("--url", standin.url, "--no-follow", *topics, stdout=theirs)
    os.close(theirs)
    asked(standin)
    for topic in topics:
        standin.publish(topic, b'{"unified_job_id": 1, "stdout": "text"}' if "own" not in topic else b"[1]")
    read = b""
    while read.count(b"\n") < len(topics):
        read += os.read(ours, 1024)
    lines = [line[9:] for line in re.sub(r"\x1b\[[0-9;]*m", "", read.decode()).splitlines()]
    assert lines == [
        "jobs.summary                   text",
        "inventory_update_events.814123 text",
        "own.name-of-an-\u2026at-has-room-for [1]",
    ]
    assert running.interrupt() == 0
    os.close(ours)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_its_end_is_a_close_frame(standin: StandIn, tails: list[Running], number: signal.Signals) -> None:
    """Ctrl-C ends the connection with a close frame, so that the daemon's log shows no lost client (findings O14)."""
    tails.append(Running("--url", standin.url, "own.thing"))
    asked(standin)
    tails[0].process.send_signal(number)
    assert standin.closes.get(timeout=DEADLINE_S) == 1000
    assert tails[0].process.wait(DEADLINE_S) == 0
    assert tails[0]._err.empty()


def test_ctrl_c_without_a_daemon(standin: StandIn, tails: list[Running]) -> None:
    """Between two attempts there is no connection to close, and Ctrl-C ends it at once."""
    tails.append(Running("--url", standin.url, "own.thing"))
    asked(standin)
    standin.stop()
    assert "connection lost" in tails[0].notice()
    assert tails[0].interrupt() == 0


def test_raw(standin: StandIn, tails: list[Running]) -> None:
    """`--json` prints each frame on one line, also if the producer wrote its JSON over several."""
    tails.append(Running("--url", standin.url, "--json", "own.thing"))
    asked(standin)
    standin.publish("own.thing", b'{"a":\n  "\\ud800"}')
    standin.publish("own.thing", b'{"a": {broken}')
    standin.publish("own.thing", b'{"a": 2}')
    first, second = json.loads(tails[0].line()), json.loads(tails[0].line())
    assert first == {"type": "event", "position": "1-standin", "group": "own", "event": "thing", "payload": {"a": "\ud800"}}
    assert second["payload"] == {"a": 2}
    assert "not JSON" in tails[0].notice()


def test_follows_jobs(standin: StandIn, tails: list[Running]) -> None:
    """Without topics, it subscribes to the output of a job that starts, and unsubscribes at the job's end."""
    tails.append(Running("--url", standin.url))
    first = asked(standin)["groups"]
    standin.publish("jobs.status_changed", b'{"unified_job_id": 42, "status": "pending", "type": "job"}')
    assert asked(standin) == {"groups": {**first, "job_events": ["42"]}, "since": "1-standin"}
    standin.publish("job_events.42", b'{"stdout": "text", "counter": 1}')
    standin.publish("jobs.summary", b'{"unified_job_id": 42, "final_counter": 1}')
    assert asked(standin) == {"groups": first}
    assert [tails[0].line()[9:].split(None, 1)[1] for _ in range(3)] == ["job 42 pending", "text", "job 42 has made 1 events"]


class SlowApi(Api):
    """The fake AWX. It answers the question about a job only when the test allows it."""

    asked_about_job: threading.Event
    may_answer: threading.Event

    def do_GET(self) -> None:
        """http.server calls this."""
        if self.path.startswith("/api/v2/jobs/"):
            self.asked_about_job.set()
            assert self.may_answer.wait(DEADLINE_S)
        super().do_GET()


def test_first_lines_of_a_job_while_awx_is_asked(tails: list[Running], tmp_path: Path) -> None:
    """A job prints lines while the daemon asks AWX about the job. `towerws tail` shows them, once and in order."""
    SlowApi.asked_about_job, SlowApi.may_answer = threading.Event(), threading.Event()
    with serve_tower(SlowApi) as (_, api), Daemon(tmp_path, "embedded:", "--tower-url", api, auth="tower") as daemon:
        tails.append(Running("--url", daemon.url, "--token", OAUTH))
        while daemon.get("/status")[1]["hub"]["topics"] < len(DEFAULT_TOPICS):
            assert tails[0].process.poll() is None
        daemon.publish("jobs.status_changed", {"unified_job_id": 42, "status": "running", "type": "job"})
        assert SlowApi.asked_about_job.wait(DEADLINE_S)
        daemon.publish("job_events.42", {"counter": 1, "stdout": "first"})
        daemon.publish("schedules.changed", {"id": 5})
        daemon.publish("job_events.42", {"counter": 2, "stdout": "second"})
        SlowApi.may_answer.set()
        lines = [tails[0].line()[9:].split(None, 1)[1] for _ in range(4)]
        assert lines == ["job 42 running", "schedule 5 changed", "first", "second"]
        daemon.publish("job_events.42", {"counter": 3, "stdout": "third"})
        assert tails[0].line().endswith("third")


def test_from_where_added_topics_begin(standin: StandIn, tails: list[Running]) -> None:
    """Added topics begin at the first event that may have added them, also after a connection that was lost before the answer."""
    tails.append(Running("--url", standin.url))
    base = asked(standin)["groups"]

    def status(job: int, status: str = "running") -> None:
        standin.publish("jobs.status_changed", json.dumps({"unified_job_id": job, "status": status, "type": "job"}).encode())

    def output(job: int, text: str) -> None:
        standin.publish(f"job_events.{job}", json.dumps({"stdout": text, "counter": 1}).encode())

    # While a request waits for its answer, two more jobs start: the next requests begin at their statuses.
    def start_two_more() -> None:
        status(2)
        output(2, "of 2")
        status(3)

    standin.before_subscribed = start_two_more
    status(1)
    assert asked(standin) == {"groups": {**base, "job_events": ["1"]}, "since": "1-standin"}
    assert asked(standin) == {"groups": {**base, "job_events": ["1", "2"]}, "since": "2-standin"}
    assert asked(standin) == {"groups": {**base, "job_events": ["1", "2", "3"]}, "since": "4-standin"}
    assert [tails[0].line().split()[-1] for _ in range(4)] == ["running", "running", "running", "2"]

    # The connection is lost before the answer: the old topics resume from the newest event, the added one from its own.
    def lose() -> None:
        status(5)
        standin.drop()

    standin.before_subscribed = lose
    status(4)
    assert asked(standin) == {"groups": {**base, "job_events": ["1", "2", "3", "4"]}, "since": "5-standin"}
    resumed = asked(standin)
    assert resumed["groups"] == {**base, "job_events": ["1", "2", "3"]}
    assert resumed["since"] in {"5-standin", "6-standin"}, "the newest event that came before the loss"
    added = asked(standin)
    assert added["since"] == "5-standin"
    assert added["groups"]["job_events"][:4] == ["1", "2", "3", "4"]


def test_resumes(standin: StandIn, tails: list[Running]) -> None:
    """After a lost connection it resumes: events published meanwhile are printed once, in order."""
    tails.append(Running("--url", standin.url, "own.thing"))
    asked(standin)
    standin.publish("own.thing", b"[1]")
    assert tails[0].line().endswith("[1]")
    standin.before_subscribed = lambda: standin.publish("own.thing", b"[3]")
    standin.drop()
    standin.publish("own.thing", b"[2]")
    assert asked(standin) == {"groups": {"own": ["thing"]}, "since": "1-standin"}
    standin.publish("own.thing", b"[4]")
    assert [tails[0].line()[-3:] for _ in range(3)] == ["[2]", "[3]", "[4]"]
    notice = tails[0].notice()
    assert notice.startswith("connection lost (")
    assert "uncleanly" not in notice
    assert tails[0].notice() == "connected again"


def test_position_of_a_quiet_time_is_kept(standin: StandIn, tails: list[Running]) -> None:
    """A connection lost before any event resumes where its subscription began."""
    standin.publish("own.thing", b"[1]")
    tails.append(Running("--url", standin.url, "own.thing"))
    asked(standin)
    standin.publish("other.thing", b"[2]")
    standin.drop()
    assert asked(standin)["since"] == "1-standin"


def test_lost_before_the_first_answer(standin: StandIn, tails: list[Running]) -> None:
    """There is a daemon, since it welcomed the client. So tail reconnects."""
    standin.before_subscribed = standin.drop
    tails.append(Running("--url", standin.url, "own.thing"))
    for _ in range(2):
        assert asked(standin)["groups"] == {"own": ["thing"]}
    standin.publish("own.thing", b"[1]")
    assert tails[0].line().endswith("[1]")
    assert tails[0].notice().startswith("connection lost (")
    assert tails[0].notice() == "connected again"


def test_unknown_position(tails: list[Running]) -> None:
    """If the daemon no longer holds the position (another log), it says so, and prints later events."""
    with StandIn() as first:
        port = first.port
        tails.append(Running("--url", first.url, "own.thing"))
        asked(first)
    with StandIn(port, log="another") as second:
        assert asked(second)["since"] == "0-standin"
        second.publish("own.thing", b"[1]")
        assert tails[0].line().endswith("[1]")
    notices = [tails[0].notice() for _ in range(3)]
    assert "recovered: false" in notices[1]
    assert notices[2] == "connected again"


def test_says_what_is_missing(tails: list[Running]) -> None:
    """A denied topic and a gap are one line each. Other topics go on."""
    with StandIn(deny=("job_events.1",)) as standin:
        tails.append(Running("--url", standin.url, "job_events.1", "job_events.2"))
        asked(standin)
        assert tails[0].notice() == "job_events.1 denied: not yours"
        standin.say({"type": "gap", "topics": ["job_events.2"], "from": "1", "to": "2", "reason": "history"})
        assert tails[0].notice() == "gap (history): events were lost on job_events.2"
        standin.say({"type": "something_new"})
        standin.publish("job_events.2", b'{"stdout": "text"}')
        assert tails[0].line().endswith("text")


def test_a_job_that_can_not_be_checked_at_once(standin: StandIn, tails: list[Running]) -> None:
    """If AWX takes too long, the daemon answers `unavailable`. tail asks again, from the same position, until the daemon knows."""
    standin.unavailable.add("job_events.42")
    tails.append(Running("--url", standin.url))
    base = asked(standin)["groups"]
    standin.publish("jobs.status_changed", b'{"unified_job_id": 42, "status": "running", "type": "job"}')
    wanted = {"groups": {**base, "job_events": ["42"]}, "since": "1-standin"}
    assert asked(standin) == wanted
    standin.publish("job_events.42", b'{"stdout": "first", "counter": 1}')
    standin.publish("schedules.changed", b'{"id": 1}')
    assert asked(standin) == wanted
    standin.publish("jobs.status_changed", b'{"unified_job_id": 43, "status": "running", "type": "job"}')
    while (request := asked(standin)) == wanted:
        pass
    assert request == {"groups": {**base, "job_events": ["43"]}, "since": "4-standin"}
    standin.unavailable.clear()
    while "job_events.42" not in standin.topics():
        assert asked(standin)["since"] == "1-standin"
    assert [tails[0].line().split()[-1] for _ in range(4)] == ["running", "changed", "running", "first"]
    assert tails[0].notice() == "job_events.42 denied: unavailable"
    assert tails[0].interrupt() == 0


def test_the_only_topic_can_not_be_checked_at_once(standin: StandIn, tails: list[Running]) -> None:
    """That is no refusal: tail asks again."""
    standin.unavailable.add("job_events.42")
    tails.append(Running("--url", standin.url, "job_events.42"))
    asked(standin)
    standin.publish("job_events.42", b'{"stdout": "first", "counter": 1}')
    standin.unavailable.clear()
    while "job_events.42" not in standin.topics():
        assert asked(standin)["since"] == "0-standin"
    assert tails[0].line().endswith("first")


def test_urls_that_are_none() -> None:
    """Each is one line with the rule, and exit code 2."""
    rows: list[tuple[str, str]] = [
        ("ws://", "must be ws://host:port"),
        ("http://h/", "must be ws://host:port"),
        ("//h/", "must be ws://host:port"),
        ("ws://user@h/", "without a user"),
        ("ws://:secret@h/", "without a user"),
        ("ws://h/#a", "or a fragment"),
        ("ws://h/#", "or a fragment"),
        ("ws://h:0/websocket/", "1 to 65535"),
        ("ws://h:65536/", "Port out of range"),
        ("ws://h:x/", "Port could not be cast"),
        ("ws://[::1/", "Invalid IPv6 URL"),
        ("ws://h/a b", "without spaces"),
        ("ws://h/\u00e4", "must be ASCII"),
        ("ws://h\u00e4/", "must be ASCII"),
        ("ws://h/\x1b[2J", "must be ASCII"),
        ("ws://h/\u202e", "must be ASCII"),
    ]
    for url, rule in rows:
        done = CliRunner().invoke(main, ["tail", "--url", url])
        assert done.exit_code == 2, url
        assert rule in done.output, (url, done.output)
        assert "Traceback" not in done.output, url


def test_frames_of_another_server(standin: StandIn, tails: list[Running]) -> None:
    """A frame that is none of the protocol's is one notice, and later events are printed."""
    tails.append(Running("--url", standin.url, "own.thing"))
    asked(standin)
    rows: list[object] = [
        [], "text", 5, None, {}, {"type": []}, {"type": None}, {"type": "event"}, {"type": "subscribed"}, {"type": "gap"}, {"type": "bye"},
        {"type": "gap", "topics": 5, "reason": "history", "to": "1"}, {"type": "subscribed", "position": None, "denied": [1]},
        {"type": "error"}, {"type": "revoked", "position": "x", "denied": 7}, {"type": "event", "group": "own"},
    ]  # fmt: skip
    for frame in rows:
        standin.say(frame)
        assert tails[0].notice().startswith("skipped a frame that "), frame
    standin.publish("own.thing", b"[1]")
    assert tails[0].line().endswith("[1]")


def test_comes_back_when_told(standin: StandIn, tails: list[Running]) -> None:
    """`bye` says when to reconnect. null means never, which is an error."""
    tails.append(Running("--url", standin.url, "own.thing"))
    asked(standin)
    standin.say({"type": "bye", "reconnect_after_ms": 1, "reason": "restart"})
    standin.drop()
    assert "since" in asked(standin)
    standin.say({"type": "bye", "reconnect_after_ms": None, "reason": "policy"})
    assert tails[0].process.wait(DEADLINE_S) == 1


def test_no_token_in_time(standin: StandIn, tails: list[Running]) -> None:
    """A daemon that got no token in time refused access, as one that answers 403."""
    tails.append(Running("--url", standin.url, "own.thing"))
    asked(standin)
    standin.say({"type": "bye", "reconnect_after_ms": None, "reason": "no credential"})
    assert tails[0].process.wait(DEADLINE_S) == 3
    assert "--token" in tails[0].notice()


@pytest.mark.parametrize(
    ("status", "code", "text"), [(403, 3, "--token"), (401, 3, "--token"), (503, 1, "try again"), (404, 1, "/websocket/")]
)
def test_refused(tails: list[Running], status: int, code: int, text: str) -> None:
    """A refusal names the next step, and has its own exit code if access is denied."""
    with StandIn(refuse=status) as standin:
        tails.append(Running("--url", standin.url, "own.thing"))
        assert tails[0].process.wait(DEADLINE_S) == code
    assert text in tails[0].notice() + " " + (tails[0].notice() if code == 1 else "")


@each_row("why", [HOST_REFUSED, ORIGIN_REFUSED])
def test_refused_for_another_reason(why: str) -> None:
    """A token does not help if the daemon refuses the Host or the Origin that it gets. Its own text is shown."""
    with StandIn(refuse=403, why=why) as standin:
        run = Running("--url", standin.url, "own.thing")
        assert run.process.wait(DEADLINE_S) == 3
    notice = run.notice()
    assert (why in notice, "--token" in notice, "towerws doctor" in notice) == (True, False, True), notice


def test_nothing_allowed(tails: list[Running]) -> None:
    """It ends if every topic is denied."""
    with StandIn(deny=("own.thing",)) as standin:
        tails.append(Running("--url", standin.url, "own.thing"))
        assert tails[0].process.wait(DEADLINE_S) == 3


def test_nothing_allowed_to_follow(tails: list[Running]) -> None:
    """The topics that a run needs to follow jobs count, too: without any topic, it ends."""
    with StandIn(deny=DEFAULT_TOPICS) as standin:
        tails.append(Running("--url", standin.url))
        assert tails[0].process.wait(DEADLINE_S) == 3


def test_nothing_allowed_any_more(standin: StandIn, tails: list[Running]) -> None:
    """It ends if the daemon takes all its topics away, also while it follows a job: no event would tell it of the job's end."""
    tails.append(Running("--url", standin.url))
    asked(standin)
    standin.publish("jobs.status_changed", b'{"unified_job_id": 42, "status": "running", "type": "job"}')
    assert asked(standin)["groups"]["job_events"] == ["42"]
    denied = [{"topic": topic, "reason": "not yours"} for topic in DEFAULT_TOPICS]
    standin.say({"type": "revoked", "groups_current": ["job_events.42"], "denied": denied, "position": "1-standin"})
    assert tails[0].process.wait(DEADLINE_S) == 3
    notices = [tails[0].notice() for _ in range(5)]
    assert notices[4].startswith("towerws: the daemon denies every topic of this command")


def test_no_daemon(tails: list[Running]) -> None:
    """Without a daemon the error names the next step."""
    tails.append(Running("--url", f"ws://127.0.0.1:{free_port()}/websocket/"))
    assert tails[0].process.wait(DEADLINE_S) == 1
    assert "refused" in tails[0].notice()
    assert "Is the daemon up" in tails[0].notice()


def test_token(standin: StandIn, tails: list[Running], tmp_path: Path) -> None:
    """A token, from the command line or a file, goes into the Authorization header."""
    (tmp_path / "token").write_text("secret\n")
    tails.append(Running("--url", standin.url, "--token", f"@{tmp_path / 'token'}", "own.thing"))
    asked(standin)
    assert standin.headers[0]["Authorization"] == "Bearer secret"


def test_closed_pipe(standin: StandIn, tails: list[Running]) -> None:
    """`towerws tail | head -1` ends cleanly and quietly."""
    reader, writer = os.pipe()
    tails.append(Running("--url", standin.url, "own.thing", stdout=writer))
    os.close(writer)
    asked(standin)
    os.close(reader)
    standin.publish("own.thing", b"[1]")
    assert tails[0].process.wait(DEADLINE_S) == 0
    assert tails[0]._err.empty()


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_full_disk(standin: StandIn, flags: list[str]) -> None:
    """`towerws tail > file` on a full disk ends with exit code 1, and says what it can't do. The daemon is not blamed."""
    with Path("/dev/full").open("wb") as full:
        running = Running("--url", standin.url, "own.thing", *flags, stdout=full.fileno())
    try:
        asked(standin)
        standin.publish("own.thing", b"[1]")
        assert running.process.wait(DEADLINE_S) == 1
        assert running.notice() == "towerws: can't write: No space left on device"
        assert running._err.empty()
    finally:
        running.process.kill()
        running.process.wait()
