from __future__ import annotations

import pytest

from towerws.core.identity import Identity
from towerws.core.settings import Secret

TOKEN = "9t8Fq0csrf"


@pytest.mark.parametrize(
    ("csrftoken", "told", "vouched"),
    [
        (TOKEN, TOKEN, True),
        (TOKEN, TOKEN + "x", False),
        (TOKEN, "", False),
        (TOKEN, None, False),
        (TOKEN, [TOKEN], False),
        ("é", "é", True),
        ("", "", False),
        (None, "", False),
        (None, None, False),
    ],
)
def test_who_vouches_for_a_page(csrftoken: str | None, told: object, vouched: bool) -> None:
    """With a cookie, only who can read the other cookie; without one nobody has to."""
    secret = None if csrftoken is None else Secret(csrftoken)
    assert Identity(7, cookie=True, csrftoken=secret).vouched_for_by(told) is vouched
    assert Identity(7, csrftoken=secret).vouched_for_by(told)


def test_what_is_never_shown() -> None:
    """Neither the token nor what the method keeps for itself is in an identity's text."""
    assert "canary" not in repr(Identity(7, csrftoken=Secret("canary"), private="canary"))
