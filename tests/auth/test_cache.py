from __future__ import annotations

from towerws.auth.cache import TtlCache


def test_an_answer_is_good_for_its_lifetime() -> None:
    """An answer is there until its lifetime has passed, and no longer."""
    cache: TtlCache[str] = TtlCache(10, 5)
    cache.put("k", "yes", 100)
    assert cache.get("k", 100) == "yes"
    assert cache.get("k", 109.9) == "yes"
    assert cache.get("k", 110) is None
    assert len(cache) == 0
    assert cache.get("other", 100) is None


def test_who_wants_it_fresh_gets_nothing_older() -> None:
    """An answer from before `since` is not given, but stays for those who take it."""
    cache: TtlCache[str] = TtlCache(10, 5)
    cache.put("k", "yes", 100)
    assert cache.get("k", 105, since=101) is None
    assert cache.get("k", 105, since=100) == "yes"
    assert cache.get("k", 105) == "yes"


def test_entries_are_bounded_and_the_oldest_goes() -> None:
    """However many different keys come, the number of entries stays within the bound; a renewed one counts as new."""
    cache: TtlCache[int] = TtlCache(1000, 3)
    for number in range(3):
        cache.put(number, number, number)
    cache.put(0, 10, 4)
    cache.put(3, 3, 5)
    assert [cache.get(number, 6) for number in range(4)] == [10, None, 2, 3]
    for number in range(1000):
        cache.put(number, number, 7)
        assert len(cache) <= 3


def test_what_is_discarded_is_gone() -> None:
    """Discarding works, also of what is not there."""
    cache: TtlCache[int] = TtlCache(10, 3)
    cache.put("k", 1, 0)
    cache.discard("k")
    cache.discard("k")
    assert cache.get("k", 0) is None
