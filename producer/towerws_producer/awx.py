"""Shared code of AWX's channel layers: towerws's groups, and a producer whose failures do not affect AWX.

AWX calls its channel layer in database commit hooks and in the callback receiver. An exception there becomes an HTTP 500, or AWX stores
events twice. So nothing here raises. If a setting can't be used, a log line says so, and every event is dropped and counted.
"""

import json
import os
import re
from collections import Counter
from typing import Any, Mapping, Optional

from towerws_producer.address import without_kombus_slashes
from towerws_producer.errors import BadTopic, ConfigError, ProducerError
from towerws_producer.folded_log import FoldedLog
from towerws_producer.producer import Producer
from towerws_producer.topics import topic_of_flat_name

GROUPS = frozenset(
    {
        "jobs",
        "schedules",
        "inventories",
        "job_events",
        "ad_hoc_command_events",
        "project_update_events",
        "inventory_update_events",
        "system_job_events",
        "workflow_events",
        "control",
    }
)
"""The groups that browsers subscribe to, in AWX 1.0 to 24 (awx/main/models, awx/main/signals.py)."""

BROADCAST = "broadcast-group_send"
"""AWX 10 to 21 send a copy of each event to this group, wrapped in JSON, for the other nodes."""

SESSION_KEYS = "control-limit_reached"
"""AWX 1.0 to 1.0.6 put the key of the ended session into this event. The key must not leave the process."""

_wrapped_group = re.compile(r'\s*\{\s*"group"\s*:\s*"([^"\\]*)"').match


def is_ours(name: str) -> bool:
    """Whether a channel layer's group name (`job_events-42`) is an event for browsers."""
    return name.partition("-")[0] in GROUPS


def wrapped_name(text: Any) -> str:
    """Return the group's name in a broadcast copy, or "" if there is none."""
    if not isinstance(text, str):
        return ""
    match = _wrapped_group(text)
    if match:
        return match.group(1)
    try:
        found = json.loads(text)
    except ValueError:
        return ""
    name = found.get("group") if isinstance(found, dict) else None
    return name if isinstance(name, str) else ""


class Relay:
    """Publishes a channel layer's messages by AWX's group names. No method raises."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """`config` is the settings' CONFIG: `url` or `broker`, `exchange`, and other arguments of `Producer`."""
        self._log = FoldedLog()
        self._producer: Optional[Producer] = None
        self.refused: Counter[str] = Counter()
        try:
            self._producer = Producer(**_arguments(config))
        except Exception as error:  # noqa: BLE001 - see this module's docstring
            # The text of a `ConfigError` has no password. Of any other error only the type is logged.
            why = str(error) if isinstance(error, ConfigError) else type(error).__name__
            self._log.fold("config", f"no event will be published: {why}")

    @property
    def producer(self) -> Optional[Producer]:
        """The producer. None if the settings can't be used."""
        return self._producer

    def send(self, name: Any, message: Any) -> None:
        """Publish the text of a channel layer's message to a group."""
        try:
            self._send(name, message)
        except ProducerError as error:
            self._refuse(error.reason, str(error))
        except Exception as error:  # noqa: BLE001 - see this module's docstring
            self._refuse("bug", type(error).__name__)

    def _send(self, name: Any, message: Any) -> None:
        if name == SESSION_KEYS:
            self._refuse("withheld", f"the group {SESSION_KEYS} holds session keys in this version of AWX")
            return
        if not isinstance(name, str):
            raise BadTopic("a group's name is text")
        topic = topic_of_flat_name(name)
        text = message.get("text") if isinstance(message, Mapping) else None
        if not isinstance(text, (str, bytes)):
            self._refuse("payload", f"the message to {topic} has no text")
        elif self._producer is None:
            self._refuse("config", "no event is published: the settings can't be used, as said at the start")
        else:
            self._producer.emit(topic, text)

    def _refuse(self, reason: str, text: str) -> None:
        self.refused[reason] += 1
        self._log.fold(reason, f"dropped an event: {text}")


def _arguments(config: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = {name: value for name, value in config.items() if name not in _OTHERS}
    url = arguments.pop("url", None)
    if arguments.get("broker") is None and not os.environ.get("TOWERWS_BROKER"):
        arguments["broker"] = without_kombus_slashes(url) if isinstance(url, str) else url
    return arguments


# Keys of CONFIG for the layers that this one replaces. A settings file may keep them, and they are ignored.
_OTHERS = frozenset(
    {"model", "prefix", "hosts", "expiry", "group_expiry", "capacity", "channel_capacity", "symmetric_encryption_keys", "TEST_CONFIG"}
)
