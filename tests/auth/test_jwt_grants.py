from __future__ import annotations

import pytest

from towerws.auth.jwt_grants import MAX_GRANTS, Grants, parse_grants


@pytest.mark.parametrize(
    "written",
    [
        {"jobs": ["status_changed"], "job_events": ["*"], "ad_hoc_command_events": [42, "43"]},
        ["jobs.status_changed", "job_events.*", "ad_hoc_command_events.42", "ad_hoc_command_events.43"],
    ],
)
def test_both_ways_to_write_grants_say_the_same(written: object) -> None:
    """A table of groups and a list of names are read alike: exact topics, and `*` for all of a group."""
    grants = parse_grants(written)
    for granted in ("jobs.status_changed", "job_events.1", "job_events.*", "ad_hoc_command_events.42", "ad_hoc_command_events.43"):
        assert grants.allow(granted), granted
    for other in ("jobs.summary", "jobs.*", "job_events_.1", "ad_hoc_command_events.4", "ad_hoc_command_events.*", "control.x", ""):
        assert not grants.allow(other), other


def test_nothing_grants_nothing() -> None:
    """An empty list is a list; and what no token says anything of is not granted."""
    assert parse_grants([]) == parse_grants({}) == parse_grants({"jobs": []}) == Grants()
    assert not Grants().allow("jobs.status_changed")


@pytest.mark.parametrize(
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
    """Nothing is guessed: one bad name makes the whole list unusable, and the text does not repeat it."""
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_grants(written)
    assert "status_changed" not in str(caught.value)


def test_the_number_of_grants_is_bounded() -> None:
    """10,000 names are taken, one more is refused, in both ways of writing."""
    names = [f"job_events.{number}" for number in range(MAX_GRANTS)]
    assert len(parse_grants(names).topics) == MAX_GRANTS
    assert len(parse_grants({"job_events": list(range(MAX_GRANTS))}).topics) == MAX_GRANTS
    with pytest.raises(ValueError, match="more than 10000"):
        parse_grants([*names, "jobs.a"])
    with pytest.raises(ValueError, match="more than 10000"):
        parse_grants({"job_events": list(range(MAX_GRANTS + 1))})
