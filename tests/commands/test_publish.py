from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.commands.test_publisher import Admin
from tests.kit.rows import each_row
from towerws.cli import main
from towerws.commands.publish import LINE_BYTES, why_no_event
from towerws.commands.publisher import AdminPublisher

LIMIT = 1000


@pytest.fixture
def admin() -> Iterator[Admin]:
    """A daemon's admin port that takes everything."""
    server = Admin()
    yield server
    server.stop()


def publish(*arguments: str, stdin: bytes | None = None, **environ: str) -> Result:
    """One call of the command."""
    return CliRunner().invoke(main, ["publish", *arguments], input=stdin, env={"TOWERWS_BROKER": None, **environ})


def test_one_event(admin: Admin) -> None:
    """The payload's bytes go out as they were written, and one line says that it is confirmed."""
    result = publish("jobs.summary", '{"n":  1.50}', "--admin", admin.url)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "1 event published on jobs.summary and confirmed\n")
    assert [body for _, _, body in admin.bodies] == [b'{"topic":"jobs.summary","payload":{"n":  1.50}}']


def test_a_file_and_a_group_with_an_event(admin: Admin, tmp_path: Path) -> None:
    """`@FILE` is one payload. `--group` and `--event` are a topic. `--quiet` prints nothing."""
    path = tmp_path / "event.json"
    path.write_bytes(b'{\n  "n": 2\n}\n')
    result = publish(f"@{path}", "--group", "job_events", "--event", "42", "--admin", admin.url, "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert admin.bodies[0][1] == {"topic": "job_events.42", "payload": {"n": 2}}


def test_a_file_that_is_too_large(admin: Admin, tmp_path: Path) -> None:
    """It is refused before all of it is in memory."""
    path = tmp_path / "zeros"
    with path.open("wb") as file:
        file.truncate(4 * LINE_BYTES)
    tracemalloc.start()
    try:
        result = publish("jobs.summary", f"@{path}", "--admin", admin.url)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (result.exit_code, admin.bodies) == (2, [])
    assert f"longer than {LINE_BYTES} bytes" in result.stderr
    assert most < 2 * LINE_BYTES


def test_the_admin_port_needs_no_secret(admin: Admin, tmp_path: Path) -> None:
    """With `--admin` no file is read that the configuration names: an operator may publish who may not read the daemon's secrets."""
    config = tmp_path / "towerws.toml"
    config.write_text('broker = "amqp://u@h"\nbroker_password_file = "/none/password"\nposition_key_file = "/none/key"\n')
    result = publish("jobs.summary", "{}", "--admin", admin.url, "--config", str(config))
    assert (result.exit_code, len(admin.bodies)) == (0, 1)
    result = publish("jobs.summary", "{}", "--config", str(config))
    assert result.exit_code == 2
    assert "can't be read: No such file" in result.stderr


def test_lines(admin: Admin) -> None:
    """Each line of standard input is an event; a bad one is named and costs its neighbours nothing."""
    lines = b'{"n": 1}\n\n{"n": 2}\r\nnonsense\n[3]\n{"n": "\xff"}\n{"n": 4}'
    result = publish("job_events.42", "-", "--admin", admin.url, stdin=lines)
    assert result.exit_code == 5
    assert [body["payload"] for _, body, _ in admin.bodies] == [{"n": 1}, {"n": 2}, {"n": 4}]
    said = result.stderr.splitlines()
    assert [line.partition(": ")[2].split(":")[0] for line in said[:3]] == ["line 4", "line 5", "line 6"]
    assert said[3:] == ["3 events published on job_events.42 and confirmed", "towerws: 3 of 7 lines were no events and were left out"]
    assert "nonsense" not in result.stderr


@each_row("end", [b"\n", b"\r\n", b"  \n", b""])
def test_a_line_of_exactly_the_limit(end: bytes, tmp_path: Path) -> None:
    """What is published counts, not the line's end. One byte more is left out."""
    config = tmp_path / "towerws.toml"
    config.write_text(f"max_payload_bytes = {LIMIT * 2}\n")
    event = b'{"a": "%b"}' % (b"x" * (LIMIT * 2 - 9))
    server = Admin()
    result = publish("jobs.1", "-", "--admin", server.url, "--config", str(config), stdin=event + end)
    longer = publish("jobs.1", "-", "--admin", server.url, "--config", str(config), stdin=event.replace(b"x", b"xx", 1) + end)
    server.stop()
    assert (len(event), result.exit_code, longer.exit_code) == (LIMIT * 2, 0, 5), result.stderr
    assert f"has {LIMIT * 2 + 1} bytes" in longer.stderr


@each_row(
    ("payload", "text"),
    [
        (b"", "not a JSON object"),
        (b"{", "not one JSON object: "),
        (b'{"a": 1} {"b": 2}', "not one JSON object: Extra data at character 9"),
        (b"[1]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b'{"a": "%b"}' % (b"x" * LIMIT), "more than 1000"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nests deeper than 512 levels"),
        (b'{"a":' * 513 + b"1" + b"}" * 513, "nests deeper than 512 levels"),
        (b'{"a": "\\ud83d", "b": NaN}', None),
        (b" \n{}\t", None),
    ],
)
def test_why_no_event(payload: bytes, text: str | None) -> None:
    """Each fault has its own words; what AWX sends (lone surrogates, NaN) is none."""
    reason = why_no_event("jobs.summary", payload, LIMIT)
    assert reason == text if text is None else text in str(reason)


@each_row(
    ("arguments", "text"),
    [
        (["jobs", "{}"], "has no '.'"),
        (["jobs.*", "{}"], "'*'"),
        (["jobs.summary"], "expected TOPIC and a payload"),
        ([], "expected TOPIC and a payload"),
        (["jobs.summary", "{}", "more"], "expected TOPIC and a payload"),
        (["--group", "jobs", "{}"], "belong together"),
        (["--group", "jobs", "--event", "summary", "jobs.summary", "{}"], "a payload alone"),
        (["jobs.summary", "nonsense"], "payload on jobs.summary is not a JSON object"),
        (["jobs.summary", "@/nowhere/at/all"], "can't be read"),
        (["jobs.summary", "{}", "--admin", "https://h"], "--admin"),
        (["jobs.summary", "{}", "--admin", "http://h:1", "--broker", "amqp://h"], "one of them"),
        (["jobs.summary", "{}", "--admin", "http://h:1", "--no-mandatory"], "--no-mandatory is for a broker"),
        (["jobs.summary", "{}", "--broker", "redis://h"], "amqp://"),
        (["jobs.summary", "{}", "--timeout", "0"], "--timeout"),
        (["jobs.summary", "-", "--message-id", "a"], "--message-id"),
        (["jobs.summary", "{}"], "where to?"),
        (["jobs.summary", "{}", "--broker", "embedded:"], "--broker: embedded: is no broker to publish to; give --admin"),
    ],
)
def test_usage_errors(arguments: list[str], text: str) -> None:
    """What can't be followed is named, with exit code 2, before anything is sent."""
    admin = [] if "--admin" in arguments or "--broker" in arguments or text == "where to?" else ["--admin", "http://127.0.0.1:1"]
    result = publish(*arguments, *admin)
    assert (result.exit_code, text in result.output) == (2, True), result.output


@each_row("message_id", ["a\nb", "a b", "\u2603", "\xe9", "\udcff", "", "a" * 201])
def test_ids_that_the_admin_port_refuses(message_id: str) -> None:
    """With `--admin`, an id is checked by the daemon's own rule before anything is sent."""
    result = publish("jobs.summary", "{}", "--admin", "http://127.0.0.1:1", "--message-id", message_id)
    assert result.exit_code == 2, result
    assert "--message-id: an id must be 1 to 200 visible ASCII characters, without spaces" in " ".join(result.stderr.split())


@each_row("message_id", ["\udcff", "", "a" * 256, "\xe9" * 128])
def test_ids_that_no_broker_takes(message_id: str) -> None:
    """For a broker, an id is UTF-8 of at most 255 bytes. A byte of the command line that is no UTF-8 is a lone surrogate."""
    result = publish("jobs.summary", "{}", "--broker", "amqp://127.0.0.1:1", "--message-id", message_id)
    assert result.exit_code == 2, result
    assert "--message-id: an id must be 1 to 255 bytes of UTF-8" in " ".join(result.stderr.split())


def test_text_that_is_no_utf_8() -> None:
    """Each argument with such a byte is a usage error."""
    for arguments in (
        ("jobs.\udcff", "{}"),
        ("\udcff.1", "{}"),
        ("--group", "jobs", "--event", "\udcff", "{}"),
        ("jobs.summary", "\udcff"),
        ("jobs.summary", "@\udcff"),
        ("jobs.summary", "{}", "--exchange", "\udcff"),
        ("jobs.summary", "{}", "--config", "\udcff"),
    ):
        result = publish(*arguments, "--broker", "amqp://127.0.0.1:1", "--timeout", "0.1")
        assert result.exit_code == 2, (arguments, result, result.output)
    for where in ("--admin", "--broker"):
        for url in ("http://\udcff:1", "amqp://\udcff:1", "amqp://a:\udcff@127.0.0.1:1", "amqp://127.0.0.1:1/\udcff"):
            result = publish("jobs.summary", "{}", where, url, "--timeout", "0.1")
            assert result.exit_code == 2, (where, url, result, result.output)


def test_a_password_in_a_bad_url_is_not_repeated() -> None:
    """As in every error about a broker's URL."""
    result = publish("jobs.summary", "{}", TOWERWS_BROKER="amqp://user:s3cret#word@host:port")
    assert result.exit_code == 2
    assert "s3cret" not in result.output


@pytest.mark.parametrize(
    ("topic", "text"),
    [
        ("orders.1", "has no [groups.orders]"),
        ("secret.1", 'policy = "never"'),
        ("control.limit_reached", "withholds it"),
        ("known.1", ""),
        ("jobs.summary", ""),
    ],
)
def test_a_topic_without_possible_subscribers_is_a_warning(topic: str, text: str, admin: Admin, tmp_path: Path) -> None:
    """The daemon's configuration says who can listen; where that is nobody, a warning says so, and the event goes out."""
    config = tmp_path / "towerws.toml"
    config.write_text('[groups.known]\nevents = "any"\n[groups.secret]\nevents = "any"\npolicy = "never"\n')
    result = publish(topic, "{}", "--admin", admin.url, "--config", str(config))
    assert (result.exit_code, len(admin.bodies)) == (0, 1)
    assert ("warning" in result.stderr, text in result.stderr) == (bool(text), True)


def test_the_daemons_warnings(admin: Admin) -> None:
    """Findings O9: what the daemon warns of is passed on, once for each topic and for ten of them."""
    admin.warning = "no client can subscribe to nope.1"
    result = publish("nope.1", "-", "--admin", admin.url, stdin=b'{"n": 1}\n{"n": 2}\n')
    assert (result.exit_code, len(admin.bodies)) == (0, 2)
    assert result.stderr.count("towerws: warning: no client can subscribe to nope.1\n") == 1
    told: list[str] = []
    publisher = AdminPublisher(admin.url, told.append)
    for number in range(20):
        publisher.publish(f"nope.{number}", b"{}")
    publisher.close()
    assert len(told) == 10


def test_refused_and_unreachable(admin: Admin) -> None:
    """The daemon's refusal is exit code 3, nobody there is 1; each names the next step."""
    admin.answers = [404]
    refused = publish("jobs.summary", "{}", "--admin", admin.url)
    assert (refused.exit_code, "no such thing" in refused.stderr) == (3, True)
    gone = publish("jobs.summary", "{}", "--admin", "http://127.0.0.1:1", "--timeout", "0.3")
    assert (gone.exit_code, "not confirmed within 0.3 s" in gone.stderr) == (1, True)
    assert "Connection refused" in gone.stderr
    assert "Errno" not in gone.stderr
    assert "Is the daemon running" in gone.stderr


def test_no_queue_behind_the_admin_port(admin: Admin) -> None:
    """Exit code 4, and the hint does not advise `--no-mandatory`, which the admin port does not know."""
    admin.answers = [502]
    admin.outcome = "unroutable"
    result = publish("jobs.summary", "{}", "--admin", admin.url)
    assert (result.exit_code, "no such thing" in result.stderr) == (4, True)
    assert "--no-mandatory" not in result.stderr
    assert "/readyz" in result.stderr
