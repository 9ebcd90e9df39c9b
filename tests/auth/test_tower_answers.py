from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towerws.auth.base import Refused, Unavailable
from towerws.auth.tower_answers import Answer, Me, read_me, read_visible


def answer(content: object, status: int = 200) -> Answer:
    """An answer with JSON in it."""
    return Answer(status, json.dumps(content).encode())


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({"id": 7, "is_superuser": False, "is_system_auditor": False}, Me(7, reads_all=False)),
        ({"id": 7}, Me(7, reads_all=False)),
        ({"id": 1, "is_superuser": True}, Me(1, reads_all=True)),
        ({"id": 2, "is_system_auditor": True}, Me(2, reads_all=True)),
        ({"id": 2, "is_superuser": "true", "is_system_auditor": 1}, Me(2, reads_all=False)),
    ],
)
def test_who_it_is(user: dict[str, object], expected: Me) -> None:
    """The id, and whether the user may read everything: by `true` only."""
    assert read_me(answer({"count": 1, "next": None, "previous": None, "results": [user]})) == expected


@pytest.mark.parametrize("refusal", [answer({"detail": "x"}, 401), answer({}, 403), answer({"count": 0, "results": []}), Answer(401, None)])
def test_a_bad_credential(refusal: Answer) -> None:
    """401, 403 and nobody mean that the credential is not good."""
    with pytest.raises(Refused):
        read_me(refusal)


@pytest.mark.parametrize(
    "odd",
    [
        *(Answer(status, b"") for status in (201, 204, 301, 302, 307, 400, 404, 405, 429, 500, 502, 503, 504)),
        Answer(200, None),
        Answer(200, b""),
        Answer(200, b"<html>"),
        Answer(200, b"\xff\xfe"),
        Answer(200, b"[" * 500_000),
        Answer(200, b'{"count": ' + b"1" * 5000 + b"}"),
        answer([]),
        answer(None),
        answer({}),
        answer({"count": 1}),
        answer({"count": 1, "results": []}),
        answer({"count": 1, "results": [7]}),
        answer({"count": 1, "results": {"0": {"id": 7}}}),
        answer({"count": 1, "results": [{"id": "7"}]}),
        answer({"count": 1, "results": [{"id": True}]}),
        answer({"count": 1, "results": [{}]}),
        answer({"count": 2, "results": [{"id": 7}, {"id": 8}]}),
        answer({"count": False, "results": []}),
    ],
)
def test_what_says_neither(odd: Answer) -> None:
    """Everything else says neither yes nor no, and the error repeats nothing of the body."""
    with pytest.raises(Unavailable) as caught:
        read_me(odd)
    assert "html" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_redirect_is_explained() -> None:
    """A redirect names its two causes: a migration of AWX's, or the wrong address."""
    for read in (read_me, read_visible):
        with pytest.raises(Unavailable, match=r"302, a redirect: AWX is migrating its database, or tower\.url"):
            read(Answer(302, b""))


def test_whether_an_object_is_visible() -> None:
    """200 is yes, 403 and 404 are no, 401 is the end of the credential, and the rest says nothing."""
    assert read_visible(Answer(200, b"whatever"))
    assert read_visible(Answer(200, None))
    assert not read_visible(Answer(403, b""))
    assert not read_visible(Answer(404, b""))
    with pytest.raises(Refused):
        read_visible(Answer(401, b""))
    for status in (204, 302, 400, 429, 500, 503):
        with pytest.raises(Unavailable):
            read_visible(Answer(status, b""))


def test_whose_fault_it_is() -> None:
    """5xx is the API's; redirects and 4xx may be the client's, or a gateway's answer to a stranger."""
    assert [status for status in (200, 204, 301, 302, 400, 401, 404, 429, 500, 503) if Answer(status, b"").is_fault] == [500, 503]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["count", "results", "id", "is_superuser"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.binary(max_size=50) | JSON.map(lambda content: json.dumps(content).encode()), st.sampled_from([200, 200, 200, 401, 500]))
def test_whatever_the_api_answers(body: bytes, status: int) -> None:
    """An answer is a user, a refusal or unavailable: nothing else comes out of it."""
    with contextlib.suppress(Refused, Unavailable):
        user = read_me(Answer(status, body))
        assert type(user.user_id) is int
        assert status == 200
