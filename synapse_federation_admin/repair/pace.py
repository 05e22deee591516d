# SPDX-License-Identifier: Apache-2.0
"""At which pace a run contacts destinations: how many it begins now. Pure."""

# How long to wait between two looks at what is due and what has ended.
_SHORTEST_TICK_MS = 10
_LONGEST_TICK_MS = 50

# Contacts begun in one go, at the most for so many seconds of the pace. What was not
# begun when it was due is made up for, to an extent.
_BURST_S = 0.03
_MAX_DEBT_S = 2.0

# If the reactor is late by so much, half as many are begun in one go.
_LATE_S = 0.02

# For how long one at a time is begun: the first ones cost the most.
_SLOW_START_S = 1.0

# How long nothing is begun when no descriptor or thread was left. Half as many are then
# under way at the most; of those so many come back, if it does not happen again.
_REST_S = 1.0
_REGAINED_PER_S = 1.0


class Pace:
    """How many contacts may be begun, as time goes by."""

    def __init__(self, per_second: float, most: int) -> None:
        """Begin slowly.

        Args:
            per_second: How many are begun in a second.
            most: How many may be under way.
        """
        self._per_second = per_second
        self._most = most
        self._room = float(most)
        # How many are due, how late the reactor was, and since when it goes on; less
        # than 0 while it rests.
        self._due = 1.0
        self._late_s = 0.0
        self._running_s = 0.0

    @property
    def is_resting(self) -> bool:
        """Whether nothing is begun for a while, since nothing was left for the last."""
        return self._running_s < 0

    @property
    def pause_ms(self) -> int:
        """How long to wait until more is to be begun."""
        next_ms = int((1 - self._due) / self._per_second * 1000)
        return min(max(next_ms, _SHORTEST_TICK_MS), _LONGEST_TICK_MS)

    def allows(self, in_flight: int) -> int:
        """Return how many may be begun now, where so many are under way."""
        if self.is_resting:
            return 0
        calm = int(self._per_second * _BURST_S * _LATE_S / (_LATE_S + self._late_s))
        in_one_go = 1 if self._running_s < _SLOW_START_S else max(calm, 1)
        return max(min(int(self._due), in_one_go, int(self._room) - in_flight), 0)

    def begun(self) -> None:
        """Take note that one was begun."""
        self._due -= 1

    def exhausted(self, in_flight: int) -> None:
        """Take note that nothing was left for one, where so many are under way."""
        self._room = max(in_flight / 2, 1)
        self._running_s = -_REST_S

    def waited(self, waited_s: float, late_s: float) -> None:
        """Take note that time has gone by, and by how much the reactor was late.

        Both may jump with the clock of the host: a day that it is set forward is not
        made up for, and one that it is set back not waited for.
        """
        self._late_s = max(late_s, 0)
        waited_s = min(max(waited_s, 0), _MAX_DEBT_S)
        self._running_s += waited_s
        most_due = max(self._per_second * _MAX_DEBT_S, 1)
        self._due = min(self._due + waited_s * self._per_second, most_due)
        self._room = min(self._room + waited_s * _REGAINED_PER_S, self._most)
