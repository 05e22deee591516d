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


def test_age(cursors: Cursors[str], clock: Clock) -> None:
    """After ten minutes a cursor is forgotten."""
    cursors.remember("page", Cursor("row", 500, 0))

    clock.ms += 10 * 60 * 1000
    assert cursors.find("page") == Cursor("row", None, 0)
    clock.ms += 1
    assert cursors.find("page") is None


def test_number(cursors: Cursors[str]) -> None:
    """Of many cursors the last 4096 are remembered."""
    for page in range(5000):
        cursors.remember(page, Cursor("row", 5000, 0))

    assert cursors.find(5000 - 4096 - 1) is None
    assert cursors.find(5000 - 4096) is not None
