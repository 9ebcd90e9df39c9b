from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.kit.rows import each_row
from towerws.config.addresses import mask_url, parse_address, parse_broker_url, split_urls, url_for_file
from towerws.core.settings import BrokerUrl, Secret


@each_row(
    ("text", "shown", "local"),
    [
        ("tcp:8051:interface=127.0.0.1", "127.0.0.1:8051", True),
        ("tcp:8051:interface=127.1.2.3:backlog=100", "127.1.2.3:8051", True),
        ("tcp:port=8051:interface=localhost", "localhost:8051", True),
        ("tcp:8051", "0.0.0.0:8051", False),
        ("tcp:0:interface=10.0.0.1", "10.0.0.1:0", False),
        (r"tcp:8051:interface=\:\:1", "[::1]:8051", True),
        (r"tcp6:8051:interface=\:\:1", "[::1]:8051", True),
        (r"tcp6:8051:interface=\:\:ffff\:127.0.0.1", "[::ffff:127.0.0.1]:8051", True),
        ("tcp6:8051", "[::]:8051", False),
        ("ssl:8043:privateKey=key.pem:interface=127.0.0.1", "127.0.0.1:8043", True),
        ("tls:/etc/certs", "[::]:443", False),
        ("haproxy:tcp:8051:interface=127.0.0.1", "127.0.0.1:8051", True),
        ("unix:/run/a.sock:mode=660", "/run/a.sock", True),
        ("systemd:domain=INET:index=0", "systemd:domain=INET:index=0", False),
        ("systemd:domain=UNIX:name=web", "systemd:domain=UNIX:name=web", True),
    ],
)
def test_understood(text: str, shown: str, local: bool) -> None:
    """An endpoint string is parsed as Twisted does, and recognized as local or not."""
    address = parse_address(text)
    assert (str(address), address.local) == (shown, local)


@each_row(
    ("text", "rule"),
    [
        ("", "must be an endpoint"),
        ("8051", "must be an endpoint"),
        ("127.0.0.1:8051", "for example tcp:8051:interface=127.0.0.1"),
        ("tpc:8051", r"did you mean tcp:\?"),
        ("haproxy:", "must be an endpoint"),
        ("stdio:", "must be an endpoint"),
        ("tcp:", "the port must be"),
        ("tcp:http", "the port must be"),
        ("tcp:-1", "the port must be"),
        ("tcp:65536", "the port must be"),
        ("tcp:\uff18\uff10", "the port must be"),
        ("tcp6:8051:interface=::1", r"colons of an IPv6 address or a path as \\:"),
        ("tcp6:8051:interface=127.0.0.1", "is an IPv6 address"),
        ("tcp:8051:iface=127.0.0.1", "takes only port, interface, backlog"),
        ("tcp:8051:backlog=x", "backlog must be"),
        ("tls:", "needs the folder"),
        ("unix:", "needs a path"),
        ("unix:/a:mode=9", "octal"),
        ("unix:/a:lockfile=x", "lockfile"),
        ("systemd:index=0", "needs domain"),
        ("systemd:domain=INET", "either index or name"),
        ("systemd:domain=INET:index=x", "a number from 0"),
        ("tcp:8051\\", "in the middle of an escape"),
    ],
)
def test_refused(text: str, rule: str) -> None:
    """An endpoint on which Twisted could not listen is refused with the rule."""
    with pytest.raises(ValueError, match=rule):
        parse_address(text)


@each_row(
    ("one", "other", "clash"),
    [
        ("tcp:1:interface=127.0.0.1", "tcp:1:interface=127.0.0.1", True),
        ("tcp:1:interface=127.0.0.1", "tcp:1", True),
        ("tcp:1:interface=127.0.0.1", "tcp:1:interface=127.0.0.2", False),
        ("tcp:1", "tcp:2", False),
        ("tcp:0", "tcp:0", False),
        ("unix:/a", "unix:/a:mode=660", True),
        ("unix:/a", "tcp:1", False),
        ("tcp:1", "unix:/a", False),
        ("systemd:domain=INET:index=0", "systemd:domain=INET:index=0", True),
        ("systemd:domain=INET:index=0", "systemd:domain=INET:index=1", False),
    ],
)
def test_clashes(one: str, other: str, clash: bool) -> None:
    """Two addresses clash if they can't both be listened on."""
    assert parse_address(one).clashes(parse_address(other)) is clash


SECRET_LETTERS = "QXZ"  # none of our texts has four of these and the signs around them in a row
passwords = st.text(alphabet=SECRET_LETTERS + "#@:/?%&=+,;'\"\\ []*", min_size=4, max_size=12).filter(
    lambda text: any(c in SECRET_LETTERS for c in text)
)
names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=20)
hosts = st.sampled_from(["rabbit", "rabbit-1.example.org", "10.0.0.1", "[::1]", "[fe80::1]"])


def url(
    host: str = "h", port: int = 5672, username: str = "guest", password: str = "guest", vhost: str = "/", *, tls: bool = False
) -> BrokerUrl:
    """A URL from its parts, each with the usual default."""
    return BrokerUrl(host=host, port=port, username=username, password=Secret(password), vhost=vhost, tls=tls)


@each_row(
    ("text", "expected"),
    [
        ("amqp://h", url()),
        ("amqp://h/", url()),
        ("amqp://h/%2F", url()),
        ("amqp://h/%2f", url()),
        ("AMQP://h:5673/tower", url(port=5673, vhost="tower")),
        ("amqps://h", url(port=5671, tls=True)),
        ("amqp://h:/v", url(vhost="v")),
        ("amqp://[::1]:5673/v", url("::1", 5673, vhost="v")),
        ("amqp://[::1]", url("::1")),
        ("amqp://awx:pw@rabbitmq:5672/awx", url("rabbitmq", username="awx", password="pw", vhost="awx")),
        ("amqp://user:p#ss@w:rd@host:5672/vhost", url("host", username="user", password="p#ss@w:rd", vhost="vhost")),
        ("amqp://user:a/b?c=d%20e@host", url("host", username="user", password="a/b?c=d e")),
        ("amqp://user:50%@host", url("host", username="user", password="50%")),
        ("amqp://us%40er:p%25%2Fw@host/a%2Fb", url("host", username="us@er", password="p%/w", vhost="a/b")),
        ("amqp://user@host", url("host", username="user", password="")),
        ("amqp://user:@host", url("host", username="user", password="")),
    ],
)
def test_parsed(text: str, expected: BrokerUrl) -> None:
    """A URL is parsed from the right and percent-decoded, with the usual defaults."""
    parsed = parse_broker_url(text)
    assert parsed == expected
    assert parsed.password.reveal() == expected.password.reveal()


@each_row(
    ("text", "rule"),
    [
        ("", "amqp://user:password@host"),
        ("rabbit", "amqp://user:password@host"),
        ("http://h", "amqp://user:password@host"),
        ("amqp:/h", "amqp://user:password@host"),
        ("amqp://", "needs a host"),
        ("amqp://u:p@", "needs a host"),
        ("amqp://u:p@/v", "needs a host"),
        ("amqp://::1", "needs a host"),
        ("amqp://h h", "needs a host"),
        ("amqps://rabbit_mq", "TLS can't check a certificate for a name with _"),
        ("amqps://u:p@a.-b", "TLS can't check"),
        ("amqp://a..b", "the host's name"),
        ("amqp://" + "a" * 64, "the host's name"),
        ("amqp://[1:2]", "the host's IPv6 address"),
        ("amqp://h:0", "the port must be"),
        ("amqp://h:65536", "the port must be"),
        ("amqp://h:x", "the port must be"),
        ("amqp://:p@h", "user name before the @"),
        ("amqp://h/a/b", "as %2F"),
        ("amqp://h/v#x", "no fragment"),
        ("amqp://h/v?heartbeat=5&secret=1", r"a query string \(heartbeat\) isn't read"),
        ("amqp://h?x", "a query string isn't read"),
        ("amqp://h/%00", "virtual host must be printable"),
        ("amqp://h/" + "v" * 128, "at most 127 bytes"),
        ("amqp://u:%FF@h", "the password isn't UTF-8"),
        ("amqp://u:***@h", "is the mask"),
    ],
)
def test_refused_urls(text: str, rule: str) -> None:
    """An invalid URL is refused with the rule."""
    with pytest.raises(ValueError, match=rule):
        parse_broker_url(text)


def test_password_from_a_file() -> None:
    """A file's password is used for URLs without one. Together with a password in the URL it is refused."""
    assert parse_broker_url("amqp://u@h", Secret("pw")).password.reveal() == "pw"
    assert parse_broker_url("amqp://h", Secret("pw")) == url(password="pw")
    with pytest.raises(ValueError, match="use one of them"):
        parse_broker_url("amqp://u:x@h", Secret("pw"))


def test_several() -> None:
    """A comma is a separator only if another URL follows."""
    assert split_urls("amqp://u:p,w@a , amqps://b,amqp://c") == ["amqp://u:p,w@a", "amqps://b", "amqp://c"]
    assert split_urls("embedded:") == ["embedded:"]


@given(
    user=names, password=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), vhost=names, host=hosts, port=st.integers(1, 65535)
)
def test_round_trip(user: str, password: str, vhost: str, host: str, port: int) -> None:
    """Each percent-encoded part is decoded exactly."""
    assume(password != "***" and max(len(user.encode()), len(vhost.encode())) <= 127)
    parsed = parse_broker_url(f"amqp://{quote(user, safe='')}:{quote(password, safe='')}@{host}:{port}/{quote(vhost, safe='')}")
    assert (parsed.username, parsed.password.reveal(), parsed.vhost) == (user, password, vhost)
    assert (parsed.host, parsed.port) == (host.strip("[]"), port)
    again = parse_broker_url(str(parsed).replace(":***@", ":other@", 1))
    assert (again.username, again.vhost, again.host, again.port) == (user, vhost, host.strip("[]"), port)


@given(password=passwords.filter(lambda text: "%" not in text), host=hosts)
def test_password_as_it_is(password: str, host: str) -> None:
    """A password needs no encoding, unless it contains a %."""
    assert parse_broker_url(f"amqp://user:{password}@{host}/v").password.reveal() == password


@given(
    password=passwords,
    scheme=st.sampled_from(["amqp", "amqps", "http", "AMQP", "rabbit"]),
    host=st.one_of(hosts, st.sampled_from(["", "h:0", "h:x", "h h", "h?x=y", "h#f"])),
    vhost=st.sampled_from(["", "/", "/v", "/a/b", "/v?heartbeat=1", "/v#f", "/%FF", "/\0"]),
)
@example(password="QXZ#", scheme="http", host="h", vhost="/v")
def test_a_password_is_never_shown(password: str, scheme: str, host: str, vhost: str) -> None:
    """No error, no masked form and no text of a parsed URL holds the password, in whole or four characters of it."""
    text = f"{scheme}://user:{password}@{host}{vhost}"
    said = [mask_url(text)]
    try:
        parsed = parse_broker_url(text)
    except ValueError as error:
        said.append(str(error))
    else:
        said += [str(parsed), repr(parsed), url_for_file(parsed), url_for_file(parsed, password_elsewhere=True)]
    pieces = {password[i : i + 4] for i in range(len(password) - 3)}
    for piece in pieces:
        if any(letter in piece for letter in SECRET_LETTERS):
            assert all(piece not in each for each in said)


@each_row(
    ("text", "masked"),
    [
        ("amqp://h:5672/v", "amqp://h:5672/v"),
        ("amqp://u:p@h:5672/v", "amqp://***@h:5672/v"),
        ("amqp://u:p@h:99999999/v", "amqp://***@h…"),
        ("amqp://user:secret/v", "amqp://…"),
        ("ftp://u:p@h", "…://***@h"),
        ("u:p@h", "'…'"),
    ],
)
def test_masked(text: str, masked: str) -> None:
    """A bad URL is shown as far as it can't be a password."""
    assert mask_url(text) == masked


@each_row(
    ("text", "elsewhere", "shown"),
    [
        ("amqp://h", False, "amqp://h:5672/%2F"),
        ("amqp://u:p@h/v", False, "amqp://u:***@h:5672/v"),
        ("amqp://u@h/v", False, "amqp://u@h:5672/v"),
        ("amqp://u@h/v", True, "amqp://u@h:5672/v"),
        ("amqp://h/v", True, "amqp://guest@h:5672/v"),
    ],
)
def test_for_a_file(text: str, elsewhere: bool, shown: str) -> None:
    """A URL for a file has its password masked, and none where none is needed."""
    assert url_for_file(parse_broker_url(text, Secret("pw") if elsewhere else None), password_elsewhere=elsewhere) == shown
