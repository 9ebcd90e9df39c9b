from __future__ import annotations

import pytest

from tests.kit.rows import each_row
from towerws.auth.jwt_claims import MAX_GRANTS, Grants, parse_grants, read_claim


@each_row(
    "written",
    [
        {"jobs": ["status_changed"], "job_events": ["*"], "ad_hoc_command_events": [42, "43"]},
        ["jobs.status_changed", "job_events.*", "ad_hoc_command_events.42", "ad_hoc_command_events.43"],
    ],
)
def test_both_ways_to_write_grants_say_the_same(written: object) -> None:
    """A table of groups and a list of names mean the same: exact topics, and `*` for all topics of a group."""
    grants = parse_grants(written)
    for granted in ("jobs.status_changed", "job_events.1", "job_events.*", "ad_hoc_command_events.42", "ad_hoc_command_events.43"):
        assert grants.allow(granted), granted
    for other in ("jobs.summary", "jobs.*", "job_events_.1", "ad_hoc_command_events.4", "ad_hoc_command_events.*", "control.x", ""):
        assert not grants.allow(other), other


def test_nothing_grants_nothing() -> None:
    """An empty list is valid. A topic that is not in the list is not granted."""
    assert parse_grants([]) == parse_grants({}) == parse_grants({"jobs": []}) == Grants()
    assert not Grants().allow("jobs.status_changed")


@each_row(
    "written",
    [
        None, 1, True, "jobs.status_changed", {"jobs": "status_changed"}, {"jobs": True}, {"jobs": {"a": 1}}, {"jobs": [1.0]},
        {"jobs": [True]}, {"jobs": [None]}, {"*": ["*"]}, {"jobs": [""]}, {"": ["a"]}, {"jobs": ["a*"]},
        {"jobs": ["#"]}, ["*"], ["#"], ["*.*"], ["jobs"], ["jobs."], [".a"], ["jobs.#"], ["jobs.*.a"], ["jobs-1"], ["jobs.\u00e9"],
        [1], {"jobs": ["a.b"]},
        ["jobs.a\n"], {"jobs": [["a"]]}, [None], {"jobs\n": ["*"]}, {"jobs": [-1.5]},
    ],
)  # fmt: skip
def test_what_is_written_otherwise_is_an_error(written: object) -> None:
    """One bad name makes the whole list unusable, and the text does not repeat it."""
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_grants(written)
    assert "status_changed" not in str(caught.value)


def test_the_number_of_grants_is_bounded() -> None:
    """10,000 names are accepted and one more is refused, in both forms."""
    names = [f"job_events.{number}" for number in range(MAX_GRANTS)]
    assert len(parse_grants(names).topics) == MAX_GRANTS
    assert len(parse_grants({"job_events": list(range(MAX_GRANTS))}).topics) == MAX_GRANTS
    with pytest.raises(ValueError, match="more than 10000"):
        parse_grants([*names, "jobs.a"])
    with pytest.raises(ValueError, match="more than 10000"):
        parse_grants({"job_events": list(range(MAX_GRANTS + 1))})


@each_row(
    ("written", "topics", "groups", "others"),
    [
        (["/keycloak/group", "jobs.a"], {"jobs.a"}, set(), 1),
        (["offline_access", "uma_authorization", "default-roles-awx"], set(), set(), 3),
        (["jobs.a", "jobs.*", "*", "#", "*.*", "jobs.#", "jobs.*.a"], {"jobs.a"}, {"jobs"}, 5),
        (["cn=ops,dc=example,dc=com", "jobs.a"], {"jobs.a"}, set(), 1),
        (["00000000-0000-0000-0000-000000000000", "jobs.a"], {"jobs.a"}, set(), 1),
        (["jobs.a", None, 1, True, 1.5, {}, ["jobs.b"]], {"jobs.a"}, set(), 6),
        (["jobs.a", "", " jobs.b", "jobs.c\n", "J\u00f6bs.d"], {"jobs.a"}, set(), 4),
        ({"jobs": ["a"], "/keycloak/group": ["x"]}, {"jobs.a"}, set(), 1),
        ({"jobs": ["a", None, True, 1.5, ["b"]], "chat": "x", "other": {"a": 1}, "more": None}, {"jobs.a"}, set(), 7),
        ({"*": ["*"], "jobs": ["*", "#"]}, set(), {"jobs"}, 2),
        ([], set(), set(), 0),
        ("jobs.*", set(), {"jobs"}, 0),
        ("jobs.a job_events.42 chat.*", {"jobs.a", "job_events.42"}, {"chat"}, 0),
        ("openid profile jobs.a", {"jobs.a"}, set(), 2),
        ("/keycloak/group", set(), set(), 1),
        ("jobs.a,jobs.b", set(), set(), 1),
        ("jobs.a  jobs.b ", {"jobs.a", "jobs.b"}, set(), 2),
        ("jobs.a\tjobs.b\njobs.c", set(), set(), 1),
        ('["jobs.a"]', set(), set(), 1),
        ("*", set(), set(), 1),
        ("", set(), set(), 0),
    ],
)
def test_a_claim_may_hold_what_is_not_ours(written: object, topics: set[str], groups: set[str], others: int) -> None:
    """Entries that are no topics are counted and grant nothing. They do not change what the others grant."""
    assert read_claim(written) == (Grants(frozenset(topics), frozenset(groups)), others)


@each_row("written", [None, 1, True, 1.5])
def test_a_claim_that_is_no_list(written: object) -> None:
    """A claim of another type is refused, since the configuration probably names the wrong claim."""
    with pytest.raises(ValueError, match="neither"):
        read_claim(written)


@each_row("name", ["jobs.a", "/keycloak/group", None])
def test_the_entries_of_a_claim_are_bounded(name: object) -> None:
    """More than 10,000 entries of any kind are refused."""
    with pytest.raises(ValueError, match="more than 10000"):
        read_claim("jobs.a " * (MAX_GRANTS + 1))
    assert read_claim([name] * MAX_GRANTS)
    with pytest.raises(ValueError, match="more than 10000"):
        read_claim([name] * (MAX_GRANTS + 1))
