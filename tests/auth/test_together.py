"""The methods `jwt` and `tower` in one chain. A credential for one of them is not shown to the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from tests.auth.jwt_kit import CANARY, NOW, claims, make_method, sign
from tests.auth.tower_kit import Bench, head, me, now
from tests.kit.rows import each_row
from towerws.auth.base import Method, Refused, Unavailable
from towerws.auth.chain import Chain, make_methods
from towerws.auth.jwt_token import read_claim
from towerws.core.http_head import Head
from towerws.core.identity import Identity
from towerws.core.settings import GroupSettings, JwtSettings, Settings, TowerSettings
from towerws.core.topics import GroupTable

GOOD = sign()
BAD = {
    "expired": sign(claims(exp=NOW - 1)),
    "forged": sign(key=CANARY.encode() * 8),
    "another algorithm": sign(algorithm="HS512"),
    "for somebody else": sign(claims(aud="portal")),
    "a stranger's": sign(claims(sub=None)),
    "no signature": sign().rpartition(".")[0] + ".",
    "too long": sign(claims(padding="x" * 9000)),
}
WAYS = {
    "header": lambda token: head(authorization=f"Bearer {token}", cookie="sessionid=k; csrftoken=c"),
    "URL": lambda token: head(f"token={token}", authorization="Bearer oauth0token", cookie="sessionid=k; csrftoken=c"),
    "cookie": lambda token: head(cookie=f"portal={token}; sessionid=k; csrftoken=c"),
}


class JwtAndTower:
    """The two methods in order, and the questions to Tower."""

    def __init__(self, folder: Path, *order: str, **jwt: Any) -> None:
        bench = Bench()
        self.fetcher = bench.fetcher
        self.fetcher.answers = {"/me/": me(7)}
        methods: dict[str, Method] = {"jwt": make_method(folder, bench.clock, cookie="portal", **jwt), "tower": bench.method}
        self.chain = Chain([methods[name] for name in order])

    def enter(self, brought: Head) -> Any:
        """Return the user of a handshake."""
        return now(self.chain.authenticate(brought, "192.0.2.1"))

    @property
    def sent(self) -> str:
        """Return all headers that Tower received."""
        return repr([headers for _, headers, _ in self.fetcher.asked])


@each_row("way", WAYS)
@each_row("bad", BAD)
def test_a_jwt_is_never_shown_to_tower(tmp_path: Path, way: str, bad: str) -> None:
    """A refused JWT refuses the handshake, and the API is not asked about other credentials in it."""
    both = JwtAndTower(tmp_path, "jwt", "tower")
    with pytest.raises(Refused):
        both.enter(WAYS[way](BAD[bad]))
    assert both.fetcher.asked == []


def test_nor_while_keys_cannot_be_had(tmp_path: Path) -> None:
    """A JWT that can't be checked just now is unavailable. Tower is not asked."""
    both = JwtAndTower(tmp_path, "jwt", "tower", algorithms=("ES256",), jwks_url="https://127.0.0.1:9/keys")
    now(both.chain._by_name["jwt"].stop())  # from here on no keys are fetched
    with pytest.raises(Unavailable):
        both.enter(head(authorization=f"Bearer {sign(algorithm='ES256')}"))
    assert both.fetcher.asked == []


def test_each_knows_its_own(tmp_path: Path) -> None:
    """A valid JWT is enough. Tower checks other credentials, and gets only its own cookies."""
    both = JwtAndTower(tmp_path, "jwt", "tower")
    assert both.enter(WAYS["header"](GOOD)).method == "jwt"
    assert now(both.chain.identify(GOOD)).method == "jwt"
    assert both.fetcher.asked == []
    assert now(both.chain.identify("oauth0token", "192.0.2.1")).user_id == 7
    assert both.enter(head(authorization="Bearer oauth0token")).user_id == 7
    assert "oauth0token" in both.sent
    assert both.enter(head(cookie="portal=not-a-jwt; sessionid=k; csrftoken=c")).method == "tower"
    assert "portal" not in both.sent
    assert both.enter(head()) is None


def test_the_other_order_shows_every_token_to_tower(tmp_path: Path) -> None:
    """This order is not recommended: Tower takes every bearer token for its own, so no JWT is accepted."""
    both = JwtAndTower(tmp_path, "tower", "jwt")
    both.enter(head(authorization=f"Bearer {GOOD}"))
    assert GOOD in both.sent


@each_row(
    ("auth", "user", "claim", "topic", "heard"),
    [
        ("jwt,tower", "7", ["notices.*"], "notices.7", False),
        ("tower,jwt", "7", ["notices.*"], "notices.7", False),
        ("jwt,tower", "7", {"notices": ["*"]}, "notices.7", False),
        ("jwt,tower", "7", "notices.* jobs.summary", "notices.7", False),
        ("jwt,tower", "7", ["control.*"], "control.limit_reached_7", False),
        ("jwt,tower", "7", ["notices.7"], "notices.7", True),
        ("jwt,tower", "7", {"notices": [7, "*"]}, "notices.7", True),
        ("jwt,tower", "7", ["notices.7"], "notices.8", False),
        ("jwt,tower", "ada", ["notices.*"], "notices.ada", False),
        ("jwt,tower", "ada", ["notices.ada"], "notices.ada", True),
        ("jwt,tower", "7", ["chat.*", "jobs.*"], "chat.7", True),
        ("jwt", "7", ["notices.*"], "notices.7", True),
        ("jwt", "7", ["notices.*"], "notices.8", False),
        ("jwt", "ada", ["notices.*"], "notices.ada", True),
    ],
)
def test_own_topics_of_two_users_with_one_id(tmp_path: Path, auth: str, user: str, claim: object, topic: str, heard: bool) -> None:
    """A token's `sub` and the id of one of AWX's users may be the same. A whole group in the token then grants no `own` topic."""
    secret = tmp_path / "secret"
    secret.write_text("x" * 32)
    settings = Settings(
        auth=tuple(auth.split(",")),
        broker=None,
        tower=TowerSettings(url="http://tower.example") if "tower" in auth else None,
        jwt=JwtSettings(algorithms=("HS256",), secret_file=str(secret)),
        groups={"notices": GroupSettings(policy="own"), "chat": GroupSettings()},
    )
    chain = Chain(tuple(make_methods(settings, Clock())))
    identity = Identity(user, "jwt", private=read_claim(claim)[0])
    refused = GroupTable(settings.groups).refusals(identity, [topic]) | now(chain.refusals(identity, [topic]))
    assert (topic not in refused) is heard
