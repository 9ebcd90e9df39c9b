from __future__ import annotations

from pika import spec

from tests.kit.unconfirming_broker import UnconfirmingBroker
from towerws.config.load import load
from towerws.doctor.broker import check_broker
from towerws.doctor.examination import Check, Level, examine


def test_a_broker_that_hangs_in_the_login() -> None:
    """A broker that greets and never answers the login is a problem of the login, and no fault of the doctor."""
    with UnconfirmingBroker(mute=spec.Connection.StartOk) as broker:
        settings = load({"auth": "open", "broker": broker.url, "attempt-s": "0.3"}, {}).broker
        assert settings is not None
        check = Check("broker", lambda: check_broker(settings.urls[0], settings, only=True))
        last = examine([check], lambda finding: None, lambda text: None)[-1]
    assert (last.level, last.check, "no answer in time" in last.text) == (Level.PROBLEM, "login", True), last
