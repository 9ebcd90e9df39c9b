"""A reload of the whole service in memory. A daemon that reloads while clients are connected is in `tests/integration`."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.selectreactor import SelectReactor
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from tests.kit.rows import each_row
from tests.test_clock import close
from tests.test_outgoing import certificate
from towerws.auth.tower import TowerMethod
from towerws.config.certificates import fingerprint, read_certificate
from towerws.config.exposure import exposure
from towerws.config.load import Loaded, Setting, load_all
from towerws.config.options import OPTIONS
from towerws.core.errors import ConfigError
from towerws.core.identity import Identity
from towerws.reload import Reloader, merge
from towerws.service import TowerwsService
from towerws.status import status_figures
from towerws.websocket.credential_monitor import CREDENTIALS_AT_ONCE

WALL = 1_800_000_000.0


class Daemon:
    """A service with its configuration file."""

    def __init__(self, folder: Path, **flags: str) -> None:
        self.file, self.secret = folder / "towerws.toml", folder / "secret"
        self.file.touch(0o600)
        self.secret.touch(0o600)
        self.secret.write_text("s" * 32)
        self._flags = {"config": str(self.file), "auth": "jwt,tower,open", "tower-url": "http://tower.example"}
        self._flags |= {"jwt-algorithms": "HS256", "jwt-secret-file": str(self.secret), **flags}
        self.reactor = SelectReactor()
        loaded = self.load()
        self.service = TowerwsService(loaded.settings, self.reactor)
        self.service.warnings = tuple(exposure(loaded))
        self.levels: list[str] = []
        self.told: list[str] = []
        self.reloader = Reloader(self.service, loaded, self.load, set_log_level=self.levels.append, manager=self, wall=lambda: WALL)
        self.lines: list[str] = []
        globalLogPublisher.addObserver(cast("ILogObserver", self._observe))

    def load(self) -> Loaded:
        """Read the configuration."""
        return load_all(cast("dict[str, str | None]", self._flags), {})

    def reload(self, text: str | None = None) -> list[str]:
        """Write the file, and reload. Returns the new lines of the log."""
        if text is not None:
            self.file.write_text(text)
        self.lines.clear()
        self.reloader.request("SIGHUP")
        return list(self.lines)

    # the service manager

    def reloading(self) -> None:
        """Note it."""
        self.told.append("reloading")

    def reloaded(self) -> None:
        """Note it."""
        self.told.append("reloaded")

    def close(self) -> None:
        """Release descriptors, and calls that would come later."""
        globalLogPublisher.removeObserver(cast("ILogObserver", self._observe))
        for call in self.reactor.getDelayedCalls():
            call.cancel()
        close(self.reactor)

    def _observe(self, event: LogEvent) -> None:
        self.lines.append(formatEvent(event))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with three methods of authentication and no broker."""
    made = Daemon(tmp_path)
    yield made
    made.close()


def test_a_reload_during_a_hand_over_reaches_the_successor(daemon: Daemon) -> None:
    """The new process may have read the file before it was changed. One that failed leaves nothing behind for the next one."""
    reloads: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, frame: reloads.append(number))
    try:
        restarts = daemon.service.restarts
        restarts.enable(["towerws"], ".", "")
        hand_over = restarts._hand_over
        assert hand_over is not None
        hand_over.under_way = True
        assert daemon.reload("[limits]\nper_user = 7") == ["SIGHUP: reloaded: limits.per_user"]
        hand_over.under_way = False
        hand_over.cancel()
        restarts.restart().addErrback(lambda failure: None)
        restarts.handed_over(os.getpid())
        assert reloads == []
        restarts._replaced_by, hand_over.under_way = 0, True
        daemon.reload("[limits]\nper_user = 8")
        restarts.handed_over(os.getpid())
        assert len(reloads) == 1
        assert daemon.reload("[limits]\nper_user = 9") == ["SIGHUP: passed on to the process that has taken over"]
        assert len(reloads) == 2
    finally:
        signal.signal(signal.SIGHUP, before)


class Session:
    """The part of a session that the credential monitor uses."""

    def __init__(self, identity: Identity, on_review: Callable[[], object]) -> None:
        self.identity = identity
        self.reviews = 0
        self._on_apply = on_review

    def apply_groups(self) -> None:
        """Count it."""
        self.reviews += 1
        self._on_apply()

    def recheck(self) -> None:
        """The check succeeds."""

    def revoke(self) -> None:
        """Not expected."""
        raise AssertionError


def test_nothing_refers_to_the_old_settings(daemon: Daemon) -> None:
    """Every user of a section that can be reloaded has the new one afterwards: no object keeps the old one."""
    daemon.reload()
    daemon.service.websockets.protocol()
    text = """
        origins = ["https://portal.example"]
        log_level = "debug"
        [limits]
        per_user = 7
        replay_bytes_per_s = "1MiB"
        accepts_per_s = 50
        [websocket]
        ping_s = 31
        compression_bytes = 999
        [tower]
        valid_s = 3
        [jwt]
        leeway_s = 3
        [groups.orders]
        events = "any"
    """
    before = daemon.service._settings
    old: dict[str, Any] = {name: getattr(before, name) for name in ("access", "limits", "websocket", "tower", "jwt", "groups")}
    del before
    changed = "log_level, origins, tower.valid_s, jwt.leeway_s, limits.per_user, limits.accepts_per_s, limits.replay_bytes_per_s, "
    assert daemon.reload(text) == [f"SIGHUP: reloaded: {changed}websocket.compression_bytes, websocket.ping_s, groups"]
    for call in daemon.reactor.getDelayedCalls():  # methods that were replaced wait for what they were asked
        call.reset(0)
    daemon.reactor.runUntilCurrent()
    gc.collect()
    while old:
        name, section = old.popitem()
        holders = [each for each in gc.get_referrers(section) if type(each).__name__ != "frame"]
        assert holders == [], name
    service = daemon.service
    assert service.websockets.protocol.autoPingInterval == 31
    assert service.context.deflater.min_bytes == 999
    assert service.context.replays.connection_rate == 1024**2 / 64
    assert service.websockets.connection_limits.limits.per_user == 7
    assert service._why_no_subscriber("orders", "created") is None
    assert "orders" in service._page().groups
    assert daemon.levels == ["info", "debug"]


@each_row(
    ("text", "secret", "reason"),
    [
        ("lissen = 1", "s" * 32, "unknown key 'lissen'; did you mean listen?"),
        ("[limits]\nper_user = 0", "s" * 32, "limits.per_user = 0: must be at least 1"),
        ("[limits", "s" * 32, "not valid TOML: "),
        ('origins = ["portal"]', "s" * 32, "origins = ['portal']: "),
        ("", "short", "must hold at least 32 bytes, for HS256"),
        ("[limits]\nper_user = 5", "short", "must hold at least 32 bytes, for HS256"),
        ("[tower]\ntls_ca = '/nowhere'", "s" * 32, "/nowhere"),
    ],
)
def test_a_bad_file_changes_nothing(daemon: Daemon, text: str, secret: str, reason: str) -> None:
    """One line says why, a counter counts it, and everything stays: also what is good in the same file."""
    service = daemon.service
    before = (service._settings, service.context.groups, service.websockets.settings, service.auth._methods)
    failed = service.reloads.failed
    daemon.secret.write_text(secret)
    (line,) = daemon.reload(text)
    assert line.startswith("SIGHUP: not reloaded: ")
    assert reason in line
    assert line.endswith("; the settings from before stay in force")
    assert before == (service._settings, service.context.groups, service.websockets.settings, service.auth._methods)
    assert service.reloads.failed == failed + 1
    assert reason in str(service.reloads.failure)
    assert daemon.told[-2:] == ["reloading", "reloaded"]
    daemon.secret.write_text("s" * 32)
    assert daemon.reload("") == ["SIGHUP: reloaded: nothing has changed"], "and a good file is good again"
    figures = cast("dict[str, object]", status_figures(service)["reloads"])
    assert (figures["failed"], figures["last_failure"], figures["at"]) == (failed + 1, None, WALL)


def test_methods_with_the_same_settings_and_files_stay(daemon: Daemon) -> None:
    """A reload for another reason keeps caches and counts. A key file with another content makes its method again."""
    jwt, tower, anonymous = daemon.service.auth._methods
    assert isinstance(tower, TowerMethod)
    daemon.reload("[limits]\nper_user = 5")
    assert daemon.service.auth._methods == (jwt, tower, anonymous)
    daemon.secret.write_text("t" * 32)
    assert daemon.reload() == ["SIGHUP: reloaded: the files of auth jwt"]
    assert daemon.service.auth._methods[0] is not jwt
    assert daemon.service.auth._methods[1:] == (tower, anonymous)
    (stopping,) = daemon.reactor.getDelayedCalls()
    assert stopping.getTime() <= daemon.reactor.seconds(), "it has no question left"
    guesses = tower._sign_ins
    daemon.reload("[tower]\nvalid_s = 1")
    successor = daemon.service.auth._methods[1]
    assert isinstance(successor, TowerMethod)
    assert successor is not tower
    assert successor._sign_ins is guesses, "who guesses passwords gets no new start"
    ended: list[None] = []
    daemon.service.auth.stop().addCallback(ended.append)
    assert ended == [None]
    assert daemon.reactor.getDelayedCalls() == []


def test_files_are_named_only_if_their_content_changed(daemon: Daemon) -> None:
    """A method is also made again because of its settings or the groups."""
    own = "[groups.mine]\nevents = 'any'\npolicy = 'own'\n"
    assert daemon.reload(own) == ["SIGHUP: reloaded: groups"]
    assert daemon.reload(own + "[jwt]\nleeway_s = 7") == ["SIGHUP: reloaded: jwt.leeway_s"]
    daemon.secret.write_text("t" * 32)
    assert daemon.reload("[jwt]\nleeway_s = 8") == ["SIGHUP: reloaded: jwt.leeway_s, groups, the files of auth jwt"]


def test_one_part_of_a_long_address(daemon: Daemon) -> None:
    """The log has both addresses in full, and does not say that nothing has changed."""
    files = ":".join(f"{name}=/etc/letsencrypt/live/towerws.example/{name}.pem" for name in ("privateKey", "certKey"))
    before = daemon.reloader._loaded
    shown = "ssl:8043:{}:dhParameters=/etc/towerws/{}.pem"
    listen = {each: Setting(shown.format(files, each), "towerws.toml: listen") for each in ("old", "new")}
    daemon.reloader._loaded = replace(before, by_key={**before.by_key, "listen": listen["old"]})
    daemon.reloader._load = lambda: replace(before, by_key={**before.by_key, "listen": listen["new"]})
    assert daemon.reload() == [
        "SIGHUP: reloaded: only options that need a restart have changed",
        f"SIGHUP: towerws.toml: listen = {listen['new'].value!r}: needs a restart; {listen['old'].value!r} stays in force until then",
    ]


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")  # Twisted passes them
def test_a_new_chain_is_another_certificate(tmp_path: Path) -> None:
    """An issuer may renew the intermediate certificate alone."""
    prints = set()
    for name in ("leaf", "one", "other"):
        (tmp_path / name).mkdir()
        files = certificate(tmp_path / name)
        if name == "leaf":
            leaf = files
    for chain in ("", f":extraCertChain={tmp_path}/one/cert.pem", f":extraCertChain={tmp_path}/other/cert.pem"):
        for _ in range(2):
            prints.add(fingerprint(read_certificate(f"ssl:0:privateKey={leaf[1]}:certKey={leaf[0]}{chain}")))
    assert len(prints) == 3


def test_a_reload_during_a_reload(daemon: Daemon) -> None:
    """It is answered, and the file is read once more at the end: it may have changed since. However many come, once."""
    monitor = daemon.service.context.credential_monitor
    seen: list[str] = []

    def again() -> None:
        if not seen:
            daemon.file.write_text("[groups.two]\nevents = 'any'")
            for _ in range(3):
                daemon.reloader.request("SIGHUP")
        seen.append("review")

    count = 2 * CREDENTIALS_AT_ONCE + 1
    sessions = [Session(Identity(number, "tower", session=str(number)), again) for number in range(count)]
    for session in sessions:
        monitor.enter(session)
    for call in daemon.reactor.getDelayedCalls():
        call.cancel()
    lines = daemon.reload("[groups.one]\nevents = 'any'")
    assert len(seen) == CREDENTIALS_AT_ONCE, "the rest comes in later iterations"
    assert daemon.told == ["reloading"]
    assert lines[:3] == ["SIGHUP: a reload is under way; when it ends, the configuration is read once more"] * 3
    for _ in range(10):
        daemon.reactor.runUntilCurrent()
    assert [session.reviews for session in sessions] == [2] * count
    assert list(daemon.service.context.groups.configured) == ["two"]
    assert daemon.service.reloads.done == 2
    assert daemon.told == ["reloading", "reloading", "reloaded"]
    assert sum("a reload is under way" in line for line in daemon.lines) == 3


def test_no_reload_while_stopping(daemon: Daemon) -> None:
    """A daemon that stops reads no file."""
    daemon.service.stopping = True
    assert daemon.reload("lissen = 1") == ["SIGHUP: nothing is reloaded: the daemon is stopping"]
    assert daemon.told == []


def test_an_internal_error_changes_nothing(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own mistake while a reload is prepared is logged with its traceback, and the daemon serves on."""

    def broken(settings: object, reactor: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(daemon.service.auth, "make_replacements", broken)
    first, second = daemon.reload("[limits]\nper_user = 5")
    assert first == "SIGHUP: the reload failed unexpectedly"
    assert second == "SIGHUP: not reloaded: an internal error, RuntimeError; the settings from before stay in force"
    assert daemon.service.websockets.connection_limits.limits.per_user == 1000
    assert daemon.told == ["reloading", "reloaded"]


def test_an_internal_error_in_the_warnings_changes_nothing(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warnings about the new settings are made before these are in force."""

    def broken(loaded: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("towerws.reload.exposure", broken)
    _, line = daemon.reload("[limits]\nper_user = 5")
    assert line == "SIGHUP: not reloaded: an internal error, RuntimeError; the settings from before stay in force"
    assert daemon.service.websockets.connection_limits.limits.per_user == 1000
    monkeypatch.undo()
    assert daemon.reload() == ["SIGHUP: reloaded: limits.per_user"]


@each_row("where", ["context.reload", "websockets.reload", "log level"])
def test_an_internal_error_after_the_settings_were_replaced(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """The log and `/status` don't say that the settings from before are in force. The next reload compares with the new ones."""
    service = daemon.service
    daemon.reload("[limits]\nper_user = 1000")
    failed, done = service.reloads.failed, service.reloads.done

    def broken(*_: object) -> None:
        raise RuntimeError("ours")

    owner, name = {
        "context.reload": (service.context, "reload"),
        "websockets.reload": (service.websockets, "reload"),
        "log level": (daemon.reloader, "_set_log_level"),
    }[where]
    monkeypatch.setattr(owner, name, broken)
    service.reloads.at = 0
    first, second = daemon.reload("[limits]\nper_user = 5")
    assert first == "SIGHUP: the reload failed unexpectedly"
    assert second == (
        "SIGHUP: reloaded in part: an internal error, RuntimeError; the new settings began to replace the old ones: restart the daemon"
    )
    assert service._settings.limits.per_user == 5
    figures = service.reloads.figures()
    assert (figures["failed"], figures["done"], figures["at"]) == (failed + 1, done, WALL)
    assert figures["last_failure"] == "reloaded in part: an internal error, RuntimeError"
    assert daemon.told[-2:] == ["reloading", "reloaded"]
    monkeypatch.undo()
    assert daemon.reload() == ["SIGHUP: reloaded: nothing has changed"]


def test_the_figures_are_json(daemon: Daemon) -> None:
    """`/status` has them before any reload, too."""
    figures = json.loads(json.dumps(daemon.service.reloads.figures()))
    assert (figures["done"], figures["failed"], figures["last_failure"]) == (0, 0, None)
    assert figures["at"] > 1_700_000_000


TOWER = {"auth": "tower", "tower-url": "http://tower.example"}
BROKER = {"auth": "open", "broker": "amqp://u@h"}


def loaded(flags: dict[str, str], file: Path | None = None) -> Loaded:
    """The settings of a command line, and of a file."""
    return load_all({"auth": "open", **flags, **({} if file is None else {"config": str(file)})}, {})


def test_each_option_has_an_answer() -> None:
    """Whether SIGHUP puts it in force is known for every option, and most of them do."""
    assert all(isinstance(option.reload, bool) for option in OPTIONS)
    reloading = {option.key.partition(".")[0] for option in OPTIONS if option.reload}
    assert {"limits", "websocket", "jwt", "tower", "origins", "trusted_proxies", "log_level"} <= reloading
    assert not reloading & {"broker", "listen", "admin", "auth", "history", "stream", "insecure"}


@each_row(
    ("before", "after", "changed", "restart"),
    [
        ({}, {}, (), ()),
        ({}, {"limits-per-user": "5", "log-level": "warn"}, ("log_level", "limits.per_user"), ()),
        (
            {},
            {"listen": "tcp:1:interface=127.0.0.1"},
            (),
            ("--listen = 'tcp:1:interface=127.0.0.1': needs a restart; 'tcp:8051:interface=127.0.0.1' stays in force until then",),
        ),
        ({"monitor": "tcp:1"}, {}, (), ("monitor = '': needs a restart; 'tcp:1' stays in force until then",)),
        (
            BROKER | {"broker": "amqp://u:canary@h"},
            BROKER | {"broker": "amqp://u:other@h"},
            (),
            ("--broker = [amqp://***@h]: needs a restart; [amqp://***@h] stays in force until then",),
        ),
        (
            {"history-max-age-s": "60"},
            {"websocket-ping-s": "30"},
            ("websocket.ping_s",),
            ("history.max_age_s = 120: needs a restart; 60 stays in force until then",),
        ),
        (TOWER, TOWER | {"tower-url": "http://other.example"}, ("tower.url",), ()),
        (TOWER, {"auth": "open"}, (), ("--auth = ['open']: needs a restart; ['tower'] stays in force until then",)),
        ({}, TOWER, (), ("--auth = ['tower']: needs a restart; ['open'] stays in force until then",)),
    ],
)
def test_what_is_put_in_force_and_what_needs_a_restart(
    before: dict[str, str], after: dict[str, str], changed: tuple[str, ...], restart: tuple[str, ...]
) -> None:
    """Each changed option is either in force or named with both values. No password is shown."""
    old, new = loaded(before), loaded(after)
    merged = merge(old, new)
    assert merged.changed == changed
    assert merged.restart == restart
    for option in OPTIONS:
        wanted = new if option.key in changed else old
        assert merged.loaded.by_key[option.key].value == wanted.by_key[option.key].value, option.key
    assert merged.loaded.settings.listen == old.settings.listen
    assert merged.loaded.settings.tower == (old if "auth" in "".join(restart) else new).settings.tower
    again = merge(merged.loaded, new)
    assert (again.changed, again.restart) == ((), restart), "the same file once more"


def test_groups(tmp_path: Path) -> None:
    """Groups are put in force."""
    file = tmp_path / "towerws.toml"
    file.touch()
    before = loaded({}, file)
    file.write_text("[groups.orders]\nevents = 'any'")
    merged = merge(before, loaded({}, file))
    assert merged.changed == ("groups",)
    assert list(merged.loaded.settings.groups) == ["orders"]


def test_the_content_of_a_broker_s_files(tmp_path: Path) -> None:
    """A new password or position key in the same file is noticed. It needs a restart."""
    password, key = tmp_path / "password", tmp_path / "key"
    password.write_text("one")
    key.write_text("key-one")
    flags = BROKER | {"broker-password-file": str(password), "position-key-file": str(key)}
    before = loaded(flags)
    assert merge(before, loaded(flags)).restart == ()
    password.write_text("two")
    key.write_text("key-two")
    merged = merge(before, loaded(flags))
    ends = ": the file's content has changed and needs a restart; the old content stays in force until then"
    assert merged.restart == (f"--broker-password-file{ends}", f"--position-key-file{ends}")
    assert merged.loaded.settings.broker == before.settings.broker


def test_a_rule_that_the_mixture_breaks() -> None:
    """Old and new settings are valid. What would be in force is not, because one of two options needs a restart."""
    before = loaded({"history-max-bytes": "4MiB"})
    after = loaded({"history-max-bytes": "64MiB", "websocket-backlog-bytes": "8MiB"})
    with pytest.raises(ConfigError, match=r"^--websocket-backlog-bytes = 8388608: websocket.backlog_bytes must be at most"):
        merge(before, after)
