"""Reload by SIGHUP: reads the configuration again, and puts it in force without closing a connection.

state     | on a request      | if the file is good | if the file is bad | when all sessions are reviewed
idle      | reads the file    | reviewing           | logs it, idle      | -
reviewing | logs it, again    | -                   | -                  | idle
again     | logs it, again    | -                   | -                  | reads the file

`merge` decides which of the new settings can be put in force, and which need a restart.

The reload first makes everything that can fail: methods of authentication, keys, certificates, warnings. Only then the new settings
replace the old ones, in one step. So a bad file changes nothing. If that step fails by an error of our own, the log says so. Afterwards
each session is reviewed: it gives up topics that the groups no longer allow. Each iteration of the reactor reviews a few sessions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from twisted.logger import Logger
from twisted.python.failure import Failure

from towerws.config.exposure import exposure
from towerws.config.load import Loaded, check_rules, shown_setting
from towerws.config.options import BY_KEY, OPTIONS
from towerws.core.errors import ConfigError
from towerws.core.settings import Settings
from towerws.process import too_few_descriptors

if TYPE_CHECKING:
    from towerws.service import TowerwsService

_LEVELS = BY_KEY["log_level"].choices
METHODS = ("tower", "jwt")
"""The sections that exist only if `auth` names them. `auth` itself needs a restart."""


class Manager(Protocol):
    """The service manager, which is told of a reload."""

    def reloading(self) -> None:
        """A reload has begun."""

    def reloaded(self) -> None:
        """The reload has ended, with or without success."""


@dataclass(slots=True)
class Reloads:
    """Counts since the start. `at` is when the settings in force were read, in seconds since 1970."""

    at: float
    done: int = 0
    failed: int = 0
    failure: str | None = None
    """Why the last reload failed. None if it succeeded, or if there was none."""

    def figures(self) -> Mapping[str, object]:
        """Return the figures for `/status`."""
        return {"done": self.done, "failed": self.failed, "last_failure": self.failure, "at": round(self.at, 3)}


class Reloader:
    """Reloads the settings of one daemon.

    `loaded` is in force. `load` reads flags, environment and file again, and raises `ConfigError` if they are bad. `set_log_level` gets the
    name of a level.
    """

    _log = Logger()

    def __init__(
        self,
        service: TowerwsService,
        loaded: Loaded,
        load: Callable[[], Loaded],
        *,
        set_log_level: Callable[[str], None] = lambda level: None,
        manager: Manager | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._service = service
        self._loaded = loaded
        self._load = load
        self._set_log_level = set_log_level
        self._manager = manager
        self._wall = wall
        self._running = self._again = False

    def request(self, by: str) -> None:
        """Reload. `by` is the signal's name, for the log. Reports every result in the log, and raises nothing.

        During a hand-over the successor reloads, too. Once it has replaced this process, only the successor reloads.
        """
        if self._service.restarts.reload_requested():
            self._log.info("{by}: passed on to the process that has taken over", by=by)
        elif self._service.stopping:
            self._log.warn("{by}: nothing is reloaded: the daemon is stopping", by=by)
        elif self._running:
            self._again = True
            self._log.warn("{by}: a reload is under way; when it ends, the configuration is read once more", by=by)
        else:
            self._begin(by)

    def _begin(self, by: str) -> None:
        self._running, before = True, self._loaded
        if self._manager is not None:
            self._manager.reloading()
        try:
            self._reload(by)
        except ConfigError as error:
            self._failed(by, str(error))
        except Exception as error:  # noqa: BLE001 - whatever failed, the daemon serves on
            self._log.failure("{by}: the reload failed unexpectedly", by=by)
            reason = f"an internal error, {type(error).__name__}"
            if self._loaded is before:
                self._failed(by, reason)
            else:
                self._failed_in_part(by, reason)

    def _reload(self, by: str) -> None:
        before = self._loaded
        merged = merge(before, self._load())
        settings = merged.loaded.settings
        warnings = (*exposure(merged.loaded), *too_few_descriptors(merged.loaded))
        put_in_force, files = self._service.prepare(settings)
        reloads = self._service.reloads
        self._loaded, reloads.at = merged.loaded, self._wall()
        reviewed = put_in_force().addErrback(self._not_reviewed)
        if not (quieter := _LEVELS.index(settings.log_level) > _LEVELS.index(before.settings.log_level)):
            self._set_log_level(settings.log_level)
        reloads.failure = None
        reloads.done += 1
        nothing = "only options that need a restart have changed" if merged.restart else "nothing has changed"
        changed = ", ".join((*merged.changed, *files)) or nothing
        self._log.info("{by}: reloaded: {changed}", by=by, changed=changed)
        if quieter:
            self._set_log_level(settings.log_level)
        for sentence in merged.restart:
            self._log.warn("{by}: {sentence}", by=by, sentence=sentence)
        for sentence in warnings:
            if sentence not in self._service.warnings:
                self._log.warn("{sentence}", sentence=sentence)
        self._service.warnings = warnings
        reviewed.addCallback(lambda _: self._end(by))

    def _failed(self, by: str, reason: str) -> None:
        self._log.error("{by}: not reloaded: {reason}; the settings from before stay in force", by=by, reason=reason)
        self._end_failed(by, reason)

    def _failed_in_part(self, by: str, reason: str) -> None:
        self._log.error(
            "{by}: reloaded in part: {reason}; the new settings began to replace the old ones: restart the daemon", by=by, reason=reason
        )
        self._end_failed(by, f"reloaded in part: {reason}")

    def _end_failed(self, by: str, reason: str) -> None:
        reloads = self._service.reloads
        reloads.failed += 1
        reloads.failure = reason
        self._end(by)

    def _not_reviewed(self, failure: Failure) -> None:
        self._log.failure("not all subscriptions could be compared with the new groups", failure)

    def _end(self, by: str) -> None:
        self._running, again, self._again = False, self._again, False
        if again and not self._service.stopping:
            self._begin(by)
        elif self._manager is not None:
            self._manager.reloaded()


class Merged(NamedTuple):
    """The result of `merge`.

    `loaded` is what the reload puts in force. `changed` names the options that have another value in it. `restart` has one sentence for
    each option that changed and needs a restart.
    """

    loaded: Loaded
    changed: tuple[str, ...]
    restart: tuple[str, ...]


def merge(before: Loaded, after: Loaded) -> Merged:
    """Take the options that can be reloaded from `after`, and all others from `before`, which is in force.

    Raises `ConfigError` if the two break a rule together, though each of them is valid.
    """
    old, new = before.settings, after.settings
    taken = {each.name: getattr(new, each.name) for each in fields(Settings) if each.metadata["reload"]}
    kept = {name for name in METHODS if getattr(old, name) is None or taken[name] is None}
    taken |= {name: getattr(old, name) for name in kept}
    settings = replace(old, **taken)
    by_key = {
        option.key: (after if option.reload and option.key.partition(".")[0] not in kept else before).by_key[option.key]
        for option in OPTIONS
    }
    check_rules(settings, by_key)
    changed = [option.key for option in OPTIONS if by_key[option.key].value != before.by_key[option.key].value]
    if old.groups != new.groups:
        changed.append("groups")
    return Merged(Loaded(settings, by_key, after.file), tuple(changed), tuple(_restart(before, after)))


def differences(one: Loaded, other: Loaded) -> list[str]:
    """Return a text for each option with different values, with both values. A secret's file with other content counts, too."""
    texts = [
        f"{key} = {shown_setting(option, new.value)} instead of {shown_setting(option, old.value)}"
        for key, option in BY_KEY.items()
        if (new := one.by_key[key]).value != (old := other.by_key[key]).value
    ]
    texts += [f"the content of {key}" for key in _secrets_changed(other, one)]
    return [*texts, "groups"] if one.settings.groups != other.settings.groups else texts


def _restart(before: Loaded, after: Loaded) -> Iterator[str]:
    for option in OPTIONS:
        old, new = before.by_key[option.key], after.by_key[option.key]
        if not option.reload and old.value != new.value:
            place = option.key if new.is_default else new.origin
            kept = shown_setting(option, old.value)
            yield f"{place} = {shown_setting(option, new.value)}: needs a restart; {kept} stays in force until then"
    for key in _secrets_changed(before, after):
        yield f"{after.by_key[key].origin}: the file's content has changed and needs a restart; the old content stays in force until then"


def _secrets_changed(before: Loaded, after: Loaded) -> Iterator[str]:
    """Yield the options whose file has other content, though the option itself has not changed."""
    old, new = before.settings.broker, after.settings.broker
    if old is None or new is None:
        return
    same = {key for key in ("broker", "broker_password_file", "position_key_file") if before.by_key[key].value == after.by_key[key].value}
    if {"broker", "broker_password_file"} <= same and old.urls != new.urls:
        yield "broker_password_file"
    if "position_key_file" in same and old.position_key != new.position_key:
        yield "position_key_file"
