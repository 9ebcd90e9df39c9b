from __future__ import annotations

import dataclasses

import pytest

from tests.kit.rows import each_row
from towerws.core.settings import BrokerUrl, GroupSettings, HistorySettings, Secret, Settings, WebSocketSettings


def test_a_secret_is_never_shown() -> None:
    """Neither `str`, `repr` nor formatting gives a secret away; `reveal` does."""
    secret = Secret("hunter22")
    assert "hunter22" not in f"{secret} {secret!r} {[secret]} {secret!s:>20}"
    assert secret.reveal() == "hunter22"


def test_secrets_compare_by_value() -> None:
    """Equal secrets are equal, and hash alike."""
    assert Secret("a") == Secret("a") != Secret("b")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != "a"


@each_row(
    ("host", "vhost", "tls", "shown"),
    [
        ("h", "/", False, "amqp://u%40x:***@h:1/%2F"),
        ("::1", "tower", True, "amqps://u%40x:***@[::1]:1/tower"),
    ],
)
def test_a_broker_url_is_shown_masked(host: str, vhost: str, tls: bool, shown: str) -> None:
    """The text of a URL has everything but the password, quoted where it must be."""
    url = BrokerUrl(host=host, port=1, username="u@x", password=Secret("hunter22"), vhost=vhost, tls=tls)
    assert str(url) == shown
    assert "hunter22" not in repr(url)


@each_row("settings", [HistorySettings(), WebSocketSettings(), GroupSettings(), Settings(broker=None, auth=("open",))])
def test_settings_are_frozen(settings: object) -> None:
    """Nothing can be changed once it is made, and no name can be added."""
    assert dataclasses.is_dataclass(settings)
    name = dataclasses.fields(settings)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, name, None)
    assert not hasattr(settings, "__dict__")
