from __future__ import annotations

import pytest

from tests.kit.rows import each_row
from towerws.config.load import load
from towerws.core.http_head import CREDENTIAL_REFUSED, NO_CREDENTIAL
from towerws.core.origins import HOST_REFUSED
from towerws.doctor import public
from towerws.doctor.daemon import AdminPort
from towerws.doctor.examination import Finding
from towerws.doctor.public import PublicUrl, check_public
from towerws.doctor.websocket import Handshake, read_url

SECRET = {"jwt-algorithms": "HS256", "jwt-secret-file": "/nowhere"}


def findings(monkeypatch: pytest.MonkeyPatch, auth: str, token: str | None, status: int, text: str) -> list[Finding]:
    """What the doctor finds if each handshake gets this answer, and the admin port none."""
    monkeypatch.setattr(public, "handshake", lambda *_: Handshake(status, {}, text, 0.001, 90, 50000))
    settings = load({"auth": auth, "broker": "embedded:", **(SECRET if auth == "jwt" else {})}, {})
    url = PublicUrl(read_url("https://tower.example.com/websocket/"), "", token, 0)
    steps = check_public(url, settings, AdminPort("tcp:1:interface=127.0.0.1"))
    return [step for step in steps if isinstance(step, Finding)]


@each_row(
    ("auth", "token", "status", "text", "level", "said", "change"),
    [
        ("jwt", None, 403, NO_CREDENTIAL, "ok", "without a credential (403), as it must", ""),
        ("jwt", None, 401, NO_CREDENTIAL, "ok", "without a credential (401), as it must", ""),
        ("open", None, 403, NO_CREDENTIAL, "problem", "though auth is open", "restart it with this configuration"),
        ("jwt", "t", 403, NO_CREDENTIAL, "problem", "a proxy takes the Authorization header away", "pass Authorization on"),
        ("jwt", "t", 403, CREDENTIAL_REFUSED, "problem", "refuses the credential", "check the token"),
        ("jwt", None, 403, CREDENTIAL_REFUSED, "problem", "a proxy adds a credential", "unchanged"),
        ("open", None, 403, HOST_REFUSED, "problem", "refuses the Host", 'origins = ["https://tower.example.com"]'),
        ("open", "t", 403, HOST_REFUSED, "problem", "refuses the Host", "trusted_proxies"),
        ("jwt", None, 403, "<html>403 Forbidden</html>", "problem", "the proxy itself refuses", "rules"),
        ("jwt", "t", 401, "<html>401 Authorization Required</html>", "problem", "the proxy itself refuses", "rules"),
    ],
)
def test_a_refused_handshake(
    monkeypatch: pytest.MonkeyPatch, auth: str, token: str | None, status: int, text: str, level: str, said: str, change: str
) -> None:
    """Only a missing credential is in order, and only if the configuration asks for one. Other checks need a handshake that gets so far."""
    found = {each.check: each for each in findings(monkeypatch, auth, token, status, f"{text}\n")}
    upgrade = found["upgrade"]
    assert (upgrade.level.value, said in upgrade.text, change in upgrade.change) == (level, True, True), upgrade
    reached = text in {NO_CREDENTIAL, CREDENTIAL_REFUSED}
    assert ("origin" in found) == reached
    if not reached:
        assert found["path"].level.value == "unknown"
