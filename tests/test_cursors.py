# SPDX-License-Identifier: Apache-2.0
"""What is remembered of where pages ended."""

import pytest

from synapse_federation_admin.destinations.pagination import Cursor, Cursors

pytestmark = pytest.mark.one_synapse


class Clock:
    ms = 0

    def now_ms(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cursors(clock: Clock) -> Cursors[str]:
    return Cursors(clock.now_ms)


def test_finds_what_it_remembers(cursors: Cursors[str]) -> None:
    """Of two walks that come by the same page, the last one's cursor counts."""
    cursor = Cursor("row", 500, 0)
    cursors.remember("page", Cursor("older", 400, 0))
    cursors.remember("page", cursor)

    assert cursors.find("page") == cursor
    assert cursors.find("other page") is None


def test_count(cursors: Cursors[str], clock: Clock) -> None:
    """A count serves once, within ten seconds."""
    cursors.remember("page", Cursor("row", 500, 0))
    cursors.remember("later", Cursor("row", 500, 0))

    clock.ms += 10_000
    found = [cursors.find("page") for _ in range(2)]
    clock.ms += 1
    found.append(cursors.find("later"))

    assert [cursor and cursor.position for cursor in found] == ["row"] * 3
    assert [cursor and cursor.total for cursor in found] == [500, None, None]


def test_age(cursors: Cursors[str], clock: Clock) -> None:
    """After ten minutes a cursor is forgotten."""
    cursors.remember("page", Cursor("row", 500, 0))

    clock.ms += 10 * 60 * 1000
    assert cursors.find("page") is not None
    clock.ms += 1
    assert cursors.find("page") is None


def test_number(cursors: Cursors[str]) -> None:
    """Of many cursors the last 4096 are remembered."""
    for page in range(5000):
        cursors.remember(page, Cursor("row", 5000, 0))

    assert cursors.find(5000 - 4096 - 1) is None
    assert cursors.find(5000 - 4096) is not None
