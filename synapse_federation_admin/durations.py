# SPDX-License-Identifier: Apache-2.0
"""Durations as people write them in the configuration, and read them; and times."""

import re
from datetime import datetime, timezone
from itertools import pairwise

SECOND_MS = 1000
_MINUTE = 60 * SECOND_MS
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR

_UNITS = ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min"), (SECOND_MS, "s"))

# From when on a duration has its largest unit only.
_PLAIN_FROM = {"d": 3, "h": 6, "min": 10, "s": 0}

# As `parse_duration` takes it.
DURATION = re.compile(r"([0-9]{1,9})([smhdw])")

_UNIT_MS = {
    "s": 1000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
}


def parse_duration(text: str) -> int | None:
    """Return the ms of a duration such as `7d`; None if it is none."""
    match = DURATION.fullmatch(text)
    return int(match[1]) * _UNIT_MS[match[2]] if match else None


def duration(ms: float) -> str:
    """Return a duration as a person says it: `39 d`, `2 h 5 min`, `0.13 s`."""
    if ms < SECOND_MS:
        return f"{max(ms, 0):.0f} ms"
    if ms < 10 * SECOND_MS:
        return f"{ms / SECOND_MS:.1f} s".replace(".0 s", " s")
    for (unit_ms, unit), (next_ms, next_unit) in pairwise((*_UNITS, (1, ""))):
        amount = int(ms // unit_ms)
        if amount:
            rest = int(ms % unit_ms // next_ms)
            if amount < _PLAIN_FROM[unit] and rest:
                return f"{amount} {unit} {rest} {next_unit}"
            return f"{amount} {unit}"
    return "0 s"


def utc(ts: float) -> datetime | None:
    """Return a time in ms since the epoch, in UTC; None if it is none.

    What a database or another server says may be no time at all.
    """
    try:
        return datetime.fromtimestamp(ts / 1000, timezone.utc)
    except (TypeError, ValueError, OverflowError, OSError):
        return None
