# SPDX-License-Identifier: Apache-2.0
"""What is remembered of the pages that were handed out."""

import pytest

from synapse_federation_admin.destinations.pagination import PageEnd, PageEnds, Walker

ONE = Walker("client", "connection 1", 100)
OTHER = Walker("client", "connection 2", 100)
LATER = Walker("client", "connection 3", 100)


class Clock:
    ms = 0

    def now_ms(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ends(clock: Clock) -> PageEnds[str]:
    return PageEnds(clock.now_ms)


def test_finds_what_it_remembers(ends: PageEnds[str]) -> None:
    """An end is found by its list, its offset and its client, and by nothing else."""
    ends.remember("list", 100, ONE, PageEnd("row", 500))

    assert ends.find("list", 100, ONE) == PageEnd("row", 500)
    assert ends.find("list", 100, OTHER) == PageEnd("row", 500)
    assert ends.find("list", 200, ONE) is None
    assert ends.find("other list", 100, ONE) is None
    assert ends.find("list", 100, Walker("other", "connection 1", 100)) is None


def test_connections_are_kept_apart(ends: PageEnds[str]) -> None:
    """Two walks on two connections each go on from their own page."""
    ends.remember("list", 100, ONE, PageEnd("one", 500))
    ends.remember("list", 100, OTHER, PageEnd("other", 501))

    assert ends.find("list", 100, ONE) == PageEnd("one", 500)
    assert ends.find("list", 100, OTHER) == PageEnd("other", 501)
    assert ends.find("list", 100, ONE) == PageEnd("one", 500)


def test_limits_are_kept_apart(ends: PageEnds[str]) -> None:
    """Two walks in steps of different size are told apart without their connections."""
    ends.remember("list", 100, Walker("client", "a", 50), PageEnd("fifty", 500))
    ends.remember("list", 100, Walker("client", "b", 100), PageEnd("hundred", 500))

    assert ends.find("list", 100, Walker("client", "c", 50)) == PageEnd("fifty", 500)
    assert ends.find("list", 100, LATER) == PageEnd("hundred", 500)


def test_walks_in_turn_are_kept_apart(ends: PageEnds[str]) -> None:
    """Walks that take turns, on a new connection each time, get each its own page."""
    ends.remember("list", 100, ONE, PageEnd("one", 500))
    ends.remember("list", 100, OTHER, PageEnd("other", 501))

    found = [ends.find("list", 100, LATER) for _ in range(2)]

    assert found == [PageEnd("one", 500), PageEnd("other", 501)]


def test_given_up_walk(ends: PageEnds[str], clock: Clock) -> None:
    """Who begins again goes on from where the new walk stands, not the old one."""
    ends.remember("list", 100, ONE, PageEnd("old", 500))
    clock.ms += 5000
    ends.remember("list", 100, OTHER, PageEnd("new", 501))

    assert ends.find("list", 100, LATER) == PageEnd("new", 501)


def test_page_again(ends: PageEnds[str]) -> None:
    """A page may be asked for again."""
    ends.remember("list", 100, ONE, PageEnd("row", 500))

    found = [ends.find("list", 100, LATER) for _ in range(3)]

    assert found == [PageEnd("row", 500)] * 3


def test_age(ends: PageEnds[str], clock: Clock) -> None:
    """After ten minutes an end is forgotten."""
    ends.remember("list", 100, ONE, PageEnd("row", 500))

    clock.ms += 10 * 60 * 1000
    assert ends.find("list", 100, ONE) is not None
    clock.ms += 1
    assert ends.find("list", 100, ONE) is None


def test_number_of_pages(ends: PageEnds[str]) -> None:
    """Of many pages the last 2048 are remembered, and no others kept in memory."""
    for offset in range(3000):
        ends.remember("list", offset, ONE, PageEnd("row", 5000))

    assert ends.find("list", 3000 - 2048 - 1, ONE) is None
    assert ends.find("list", 3000 - 2048, ONE) is not None
    assert len(ends._places) == 2048


def test_number_of_walks(ends: PageEnds[str]) -> None:
    """Of many walks through one page the last eight are remembered."""
    for number in range(20):
        walker = Walker("client", f"connection {number}", 100)
        ends.remember("list", 100, walker, PageEnd(f"row {number}", 500))

    assert [len(walks) for walks in ends._places.values()] == [8]
    assert ends.find("list", 100, Walker("client", "connection 19", 100)) == PageEnd(
        "row 19", 500
    )
