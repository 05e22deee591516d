# SPDX-License-Identifier: Apache-2.0
"""The pace at which a run contacts destinations."""

import pytest

from synapse_federation_admin.repair.pace import Pace

pytestmark = pytest.mark.one_synapse


def begun_in(pace: Pace, seconds: float, late_s: float = 0, in_flight: int = 0) -> int:
    """Begin what the pace allows for some time; return how much that is."""
    begun = 0
    for _ in range(int(seconds * 100)):
        for _ in range(pace.allows(in_flight)):
            pace.begun()
            begun += 1
        pace.waited(0.01, late_s)
    return begun


def test_pace() -> None:
    """It begins slowly, and then keeps to what is asked for."""
    pace = Pace(500, 400)
    assert begun_in(pace, 1) == pytest.approx(100, abs=1)
    # What was due by then is made up for.
    begun_in(pace, 3)
    assert begun_in(pace, 2) == pytest.approx(1000, abs=20)


def test_late_reactor() -> None:
    """Fewer are begun in one go while the reactor is late."""
    calm, late = Pace(500, 400), Pace(500, 400)
    begun_in(calm, 1)
    begun_in(late, 1, late_s=1)
    assert calm.allows(0) == 15
    assert late.allows(0) == 1


def test_nothing_left() -> None:
    """Where nothing was left it rests, and half as many are under way then."""
    pace = Pace(500, 400)
    begun_in(pace, 3)
    pace.exhausted(8)
    assert pace.is_resting
    assert begun_in(pace, 0.9) == 0
    assert begun_in(pace, 1.3, in_flight=2) > 0
    assert not pace.is_resting
    # Two have come back since, one in each second.
    assert pace.allows(2) == 4
    assert pace.allows(6) == 0


def test_clock() -> None:
    """A clock that is set forward, or back, changes the pace for no longer than 2 s."""
    pace = Pace(10, 400)
    begun_in(pace, 2)
    pace.waited(86_400, 86_400)
    pace.waited(-86_400, -86_400)
    assert begun_in(pace, 5) <= 70
    assert pace.pause_ms <= 50
