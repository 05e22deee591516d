# SPDX-License-Identifier: Apache-2.0
"""How many contacts a bulk run may begin now. Pure: it is told the time."""

from collections import deque

# What could not be begun when it was due is made up for, up to so much.
_MAX_DEBT_S = 2.0

# The rate is that of the last so many seconds.
_RATE_WINDOW_S = 10.0


class Pace:
    """Allows so many per second, evenly."""

    def __init__(self, per_second: float, now_s: float) -> None:
        """Begin; the first is allowed at once.

        Args:
            per_second: How many.
            now_s: The time, in seconds, by a clock that goes on evenly.
        """
        self._per_second = per_second
        self._allowed = 1.0
        self._at_s = now_s

    def allowed(self, now_s: float) -> int:
        """Return how many may be begun now."""
        elapsed_s = max(now_s - self._at_s, 0)
        self._at_s = now_s
        self._allowed = min(
            self._allowed + elapsed_s * self._per_second,
            max(_MAX_DEBT_S * self._per_second, 1.0),
        )
        return int(self._allowed)

    def begun(self, count: int) -> None:
        """Take note that so many have been begun."""
        self._allowed -= count

    def next_in_s(self) -> float:
        """Return after how many seconds the next one is allowed."""
        return max(1 - self._allowed, 0) / self._per_second


class Rate:
    """How many are done per second, lately."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._done = 0

    def add(self, count: int, now_s: float) -> float | None:
        """Count some more; return how many per second, None if it is too early."""
        self._done += count
        self._samples.append((now_s, self._done))
        while len(self._samples) > 2 and self._samples[1][0] < now_s - _RATE_WINDOW_S:
            self._samples.popleft()
        first_s, first = self._samples[0]
        if now_s - first_s < 1:
            return None
        return (self._done - first) / (now_s - first_s)
