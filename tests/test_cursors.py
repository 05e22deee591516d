# SPDX-License-Identifier: Apache-2.0
"""What is remembered of where pages ended."""

from unittest import mock

import pytest

from synapse_federation_admin.destinations.pagination import Cursor, Cursors

pytestmark = pytest.mark.one_synapse


def test_age() -> None:
    """After ten minutes a cursor is forgotten."""
    clock = mock.Mock(return_value=0)
    cursors = Cursors[str](clock)
    cursors.remember("page", Cursor("row", 500, 0))

    clock.return_value = 10 * 60 * 1000
    assert cursors.find("page") == Cursor("row", None, 0)
    clock.return_value += 1
    assert cursors.find("page") is None


def test_number() -> None:
    """Of many cursors the last 4096 are remembered."""
    cursors = Cursors[str](lambda: 0)
    for page in range(5000):
        cursors.remember(page, Cursor("row", 5000, 0))

    assert cursors.find(5000 - 4096 - 1) is None
    assert cursors.find(5000 - 4096) is not None
